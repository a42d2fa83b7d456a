package partition

import (
	"testing"

	"retinue/internal/consulkit/consultest"
	"retinue/internal/mutanttest"
)

// mutants are mistakes that two coordinators with one partition come from, put into the code on purpose. Each must turn a test red.
var mutants = []struct {
	name     string
	file     string
	old, new string
	tests    string // that notice it
	consul   bool   // only a real Consul shows it
}{
	{"a hold that the clock does not end", "holder.go",
		"h.given[p].Load() == c.Epoch || h.cfg.Clock.Now() >= c.Until", "h.given[p].Load() == c.Epoch", "TestHeldByTheClock", false},
	{"a hold that lasts until Consul says otherwise", "machine.go",
		"if m.session.id != \"\" && now >= m.session.until {\n		m.lose(now)\n	}\n	m.stand", "m.stand", "TestLossByTheClock|TestRenewal", false},
	{"a session relied on for as long as Consul may keep it", "machine.go",
		"return ttl * 4 / 5", "return ttl * 2", "TestLossByTheClock", false},
	{"a lease that begins with the answer", "machine.go",
		"max(m.session.until, ev.sent.Add(lease(m.ttl)))", "max(m.session.until, now.Add(lease(m.ttl)))", "TestRenewal", false},
	{"an older answer that sets the lease back", "machine.go",
		"max(m.session.until, ev.sent.Add(lease(m.ttl)))", "ev.sent.Add(lease(m.ttl))", "TestRenewal", false},
	{"an answer about the session before", "machine.go",
		"if of.session != m.session.id {\n		return\n	}", "", "TestSessionGone|TestUnansweredTake", false},
	{"a lock that is gone and not missed", "machine.go",
		"case part.hold == holdHeld:\n			m.lose(now)", "case false:\n			m.lose(now)", "TestSessionGone", false},
	{"a listing from before the lock", "machine.go",
		"if snap.index < part.after {", "if false {", "TestSessionGone", false},
	{"a hold given for the end of another", "holder.go",
		"ok && c.Epoch == epoch {\n		h.given[p].Store(epoch)", "ok {\n		h.given[p].Store(c.Epoch)", "TestHeldByTheClock", false},
	{"a take without a look at what was seen", "consul.go",
		"seen := &api.KVTxnOp{Verb: api.KVCheckIndex, Key: key, Index: index}\n	if index == 0 {\n		seen =", "seen := &api.KVTxnOp{Verb: api.KVGetOrEmpty, Key: key}\n	if false {\n		seen =", "TestStore", true},
	{"a late give that frees the hold after it", "consul.go",
		"&api.KVTxnOp{Verb: api.KVCheckIndex, Key: key, Index: index},\n		&api.KVTxnOp{Verb: api.KVUnlock", "&api.KVTxnOp{Verb: api.KVUnlock", "TestStore", true},
	{"a hold that begins clean for the next", "consul.go",
		"v := value(record{Owner: s.id, Since: time.Now().UTC()})\n	return s.txn(ctx, fmt.Sprintf(\"take", "v := value(record{Owner: s.id, Since: time.Now().UTC(), Clean: true})\n	return s.txn(ctx, fmt.Sprintf(\"take", "TestStore", true},
	{"an unanswered take that is clean", "machine.go",
		"m.got(p, e.index, part.attempted && part.clean)", "m.got(p, e.index, true)", "TestUnansweredTake", false},
	{"a deleted key for a clean one", "drive.go",
		"clean = !part.known", "clean = true", "TestVacant", false},
	{"others take at once what nobody gave", "drive.go",
		"from = max(from, part.vacant.Add(m.settle()))", "", "TestVacant", false},
	{"who is asked to leave keeps it", "drive.go",
		"part.claim.Leave = m.goal[p] != m.id", "part.claim.Leave = false", "TestLeave", false},
	{"an earlier process left to its TTL", "consul.go",
		"return s.destroy(ctx, pair.Session)", "return nil", "TestStore", true},
	{"the surplus of more than one", "plan.go",
		"if i < n%len(order) {", "if i == 0 {", "TestPlan", false},
	{"a plan that moves what is where it shall be", "plan.go",
		"if owner := owners[p]; lacks[owner] > 0 {", "if owner := owners[p]; lacks[owner] > 1 {", "TestPlan|FuzzPlan", false},
}

func TestMutantsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: mutants are slow (-short)")
	}
	var list []mutanttest.Mutant
	for _, m := range mutants {
		skip := ""
		if m.consul && consultest.Binary() == "" {
			skip = "no consul binary (put one on PATH, or name it in RETINUE_TEST_CONSUL)"
		}
		list = append(list, mutanttest.Mutant{Name: m.name, File: m.file, Old: m.old, New: m.new, Tests: m.tests, Skip: skip})
	}
	mutanttest.Run(t, list)
}

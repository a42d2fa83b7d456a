package elector

import (
	"testing"

	"retinue/internal/consulkit/consultest"
	"retinue/internal/mutanttest"
)

// mutants are the mistakes that elections are known to make, put into the code on purpose. Each must turn a test red.
var mutants = []struct {
	name     string
	file     string
	old, new string
	tests    string // that notice it
	consul   bool   // only a real Consul shows it
}{
	{"a lease without a guard for the clock's error", "config.go",
		"return c.Lease/100 + 50*time.Millisecond", "return 0", "TestInvalidationUnheard", false},
	{"a lease that begins when the answer comes", "session.go",
		"case m.sessionGood(now):\n		m.prove(now, ev.sent)", "case m.sessionGood(now):\n		m.prove(now, ev.received)", "TestLeaseBeginsWithTheRequest", false},
	{"a slow answer that counts from when it comes", "session.go",
		"case m.sessionGood(now):\n		m.prove(now, ev.sent)", "case m.sessionGood(now):\n		m.prove(now, ev.received)", "TestSlowConsul", false},
	{"a renewal that is given up where the next is sent", "driver.go",
		"const maxRenewals = 3", "const maxRenewals = 1", "TestSlowConsul", false},
	{"an older answer that sets the deadline back", "session.go",
		"if sent > s.confirmed {", "if true {", "TestSlowConsul", false},
	{"a lease that resumes from when its renewal was answered", "session.go",
		"max(s.pending, ev.sent)", "max(s.pending, ev.received)", "TestLateAnswersOutOfOrder", false},
	{"an older late answer in the place of a later one", "session.go",
		"max(s.pending, ev.sent)", "ev.sent", "TestLateAnswersOutOfOrder", false},
	{"a renewal answered 200 as proof of leadership", "session.go",
		"case m.sessionGood(now):\n		m.prove", "case true:\n		for _, e := range m.elections {\n			e.proven, e.suspended = e.lock == lockHeld, false\n		}\n		m.prove", "TestRenewalOfADoomedSessionProvesNothing", false},
	{"a session kept under fast revocation although it may have expired", "session.go",
		"case m.cfg.Revocation == Fast && ", "case false && ", "TestRenewalOfADoomedSessionProvesNothing", false},
	{"LockIndex as fencing token", "consul.go",
		"Modify: res.KV.ModifyIndex}", "Modify: res.KV.LockIndex}", "TestStoreConformance/consul", true},
	{"a lock-delay of 0 that the server takes for 15 s", "consul.go",
		`"LockDelay": spec.LockDelay.String(), `, "", "TestConsulLockDelay", true},
	{"a role that trusts the owner instead of the clock", "view.go",
		"v.Proven && now < v.Deadline", "v.Proven", "TestRoleByClockAlone", false},
	{"a release before the application has ended", "machine.go",
		`m.stepdown(now, e, "")`, `m.endLeadership(now, e, "stopping", &release{})`, "TestStop", false},
	{"an observation older than our own commit", "observe.go",
		"if s.Index < e.floor {", "if false {", "TestScripts", false},
	{"a leader that does not mind a revoked lock", "observe.go",
		"case e.lock == lockHeld && !ours:", "case e.lock == lockHeld && !ours && e.seen.Session != \"\":", "TestInvalidationHeard", false},
	{"an answer that hides what the watch has shown before it", "commit.go",
		"if e.lock == lockHeld {\n				m.compare", "if false {\n				m.compare", "TestScripts", false},
	{"an update that takes the lock again", "consul.go",
		"			add(i, kv(api.KVCheckIndex, key, \"\", nil, op.KeyIndex), false) // with", "			// with", "TestStoreConformance/consul", true},
	{"an unlock that frees a lock taken later", "consul.go",
		"			add(i, kv(api.KVCheckIndex, key, \"\", nil, op.KeyIndex), false)\n			add(i, kv(api.KVUnlock, key, b.Session, op.Value, 0), true)",
		"			add(i, kv(api.KVUnlock, key, b.Session, op.Value, 0), true)", "TestStoreConformance/consul", true},
	{"a lock of an earlier process taken for a hand-over", "observe.go",
		"if earlier || e.lock", "if earlier && false || e.lock", "TestLockOfAnEarlierProcess", false},
	{"an unanswered lock that is never asked for again", "session.go",
		"if e.lock == lockHeld {\n			return true", "if e.lock != lockNone {\n			return true", "TestUnansweredLock", false},
	{"a lock without a check of what was seen", "consul.go",
		"			add(i, asSeen(key, op.KeyIndex), false)\n", "", "TestStoreConformance/consul", true},
	{"a Consul that does not look at the check", "model_test.go",
		"			if e.Modify != op.KeyIndex {\n				fail(i, ReasonChanged)\n				continue\n			}\n			e = lockedEntry(e, exists,",
		"			e = lockedEntry(e, exists,", "TestLateLock", false},
	{"a lock-delay that only Consul keeps", "observe.go",
		"if changed && !s.First && invalidated(before, entry) {", "if false {", "TestLockDelayUnknownToConsul", false},
	{"an attempt repeated before the watch shows what it was refused for", "commit.go",
		"		e.behind = true\n", "", "TestLockRefused", false},
	{"an unanswered lock that is given up because the key has changed", "commit.go",
		"if reason != ReasonChanged {", "if true {", "TestLockRefused", false},
	{"a candidate record that an elector's last session keeps locked", "consul.go",
		"return candidateFolder + id + \"/\" + session", "return candidateFolder + id", "TestRestartWithoutState", false},
	{"attempts at a lock that is seen to be held", "commit.go",
		"if e.lock != lockUnknown && (!e.current() || e.seen.Session != \"\") {", "if false {", "TestNoHerd", false},
	{"a candidate that is forgotten with a leadership it was not told of", "machine.go",
		"if c.waiters > 0 && !c.claimed && !m.stopping {", "if false {", "TestLostBeforeItWasTold", false},
	{"a stream that nobody reads as the end of an application", "stream.go",
		"stuck: errors.Is(failed, os.ErrDeadlineExceeded)", "stuck: errors.Is(failed, os.ErrClosed)", "TestHoldUnread", false},
	{"a silent Consul that is taken for a vacancy", "campaign.go",
		" || el.clock.Now() >= clock.Instant(info.SessionDeadline)", "", "TestCampaignAtASilentConsul", false},
	{"a watch that reads a thousand elections for every change", "driver.go",
		"if rest := snapshot.rest(); rest > 0 {", "if rest := snapshot.rest(); false && rest > 0 {", "TestWatchRests", false},
	{"an owner that passes over what became due during a step", "../internal/actor/actor.go",
		"l.Next(stepped)", "l.Next(l.Clock.Now())", "TestDueDuringAStep", false},
	{"a resume of a key that was edited meanwhile, under the old token", "commit.go",
		"VerbConfirm, Election: e.name, KeyIndex: e.key.Modify}) {", "VerbConfirm, Election: e.name, KeyIndex: e.seen.Modify}) {", "TestScripts", false},
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

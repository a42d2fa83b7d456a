package gather

import (
	"testing"

	"retinue/internal/mutanttest"
)

// mutants are the mistakes that scatter/gather is known to make, put into the code on purpose. Each must turn a test red.
var mutants = []struct {
	name     string
	file     string
	old, new string
	tests    string // that notice it
}{
	{"coverage counted without weight", "coverage.go", "	c.Total++\n	if s != Skipped || c.failing {", "	w = 1\n	c.Total++\n	if s != Skipped || c.failing {", "TestModel"},
	{"a partial leaf counted as whole", "coverage.go", "c.covered += w * share", "share = 1; c.covered += w * share", "TestTreeMultipliesCoverage"},
	{"a missing shard ignored", "coverage.go", "	case Missing:\n		c.Missing++", "	case Missing:\n		c.needed -= w\n		c.Missing++", "TestModel"},
	{"hedges without a budget", "budget.go", "b.sum.spent+1 > b.sum.earned+b.reserve ||", "", "TestHedgeBudget"},
	{"hedges without a brake", "budget.go", "|| b.brake && b.sum.wanted >", "|| false && b.sum.wanted >", "TestBrake"},
	{"losers that are not cancelled", "gathering.go", "			g.end(att, cancelled, now)\n		}\n		att.cancel()", "			g.end(att, cancelled, now)\n		}\n		_ = att.cancel", "TestLoserIsCancelledAtOnce"},
	{"leaves that outlive their client", "http.go", "context.WithTimeout(a.r.Context(), total)", "context.WithTimeout(context.WithoutCancel(a.r.Context()), total)", "TestClientAbortCancelsLeaves"},
	{"a hedge to the same replica", "gathering.go", "s.pool.pick(now, hedge, s.used(), rand.Uint64())", "s.pool.pick(now, hedge, nil, rand.Uint64())", "TestHedgeGoesToTheOtherReplica"},
	{"calls that wait for a dead replica", "overdue.go", "	p := max(leaf/2, delay)\n", "	p := max(leaf/2, delay)\n	return time.Hour\n", "TestFrozenReplica/without_hedging"},
	{"calls that wait for a dead replica until it is ejected", "overdue.go", "max(fewTokens, cfg.Eject.Consecutive*cfg.Shards)", "fewTokens", "TestFrozenReplica/too_few_calls_for_an_ejection"},
	{"calls of an ejected replica that wait for a budget", "overdue.go", "	return s.attempts[len(s.attempts)-1].replica.ejected() &&", "	return false && s.attempts[len(s.attempts)-1].replica.ejected() &&", "TestFrozenReplica/a_root_that_has_measured_nothing"},
	{"a suspect replica that is asked like any other", "picker.go", "!asked && r.suspect()", "!asked && false && r.suspect()", "TestFrozenReplicaIsFoundOutSoon"},
	{"a probe that is waited for like any other call", "gathering.go", "		if g.probes > 0 {", "		if false && g.probes > 0 {", "TestProbesAreHedgedSooner"},
	{"a request that keeps hedges for itself which helped", "gathering.go", "(g.hedges - g.won)", "g.hedges", "TestHedgesThatWinMakeRoom"},
	{"an answer that waits until leaves are cancelled", "http.go", "		a.short()\n		a.sendOff()", "		a.g.abandon()\n		a.short()\n		a.sendOff()", "TestAnswersComeBeforeCancellations"},
	{"a root that does not know that it is late", "root.go", " + min(root.late.At(root.clock.Now()), latest(total))", "", "TestReserveCoversLateness"},
	{"retries without a budget", "overdue.go", "if !spend(now) {", "if !spend(now) && false {", "TestOutageIsNotMultiplied"},
	{"an overdue call to a replica that pushed back", "overdue.go", "overdue && next.asked(now)", "false && next.asked(now)", "TestNoHedgeAfterPushback"},
	{"a write that is sent again", "overdue.go", "return g.root.cfg.Hedge.Methods[g.req.method]", "return true || g.root.cfg.Hedge.Methods[g.req.method]", "TestAWriteIsNotSentTwice"},
	{"a client that loosens the policy", "policy.go", "p.MinCoverage = max(p.MinCoverage, coverage)", "p.MinCoverage = max(p.MinCoverage, coverage); p.MinCoverage = coverage", "TestPolicyMet"},
	{"a half answer that looks whole", "http.go", "			a.finish(http.StatusBadGateway, \"merge_failed\")\n			panic(", "			a.finish(http.StatusBadGateway, \"merge_failed\")\n			if true { return }\n			panic(", "TestLargeMergedAnswer"},
	{"a partial answer that caches may keep", "http.go", "		h[\"Cache-Control\"] = []string{\"no-store\"}\n	}\n	if a.req.applied", "		if false { h[\"Cache-Control\"] = []string{\"no-store\"} }\n	}\n	if a.req.applied", "TestPolicies"},
	{"a request that takes the whole budget", "gathering.go", "case room <= 0:", "case room <= 0 && false:", "TestOneRequestDoesNotTakeTheBudget"},
	{"bodies of one request that wait for each other", "memory.go", "(m.over == nil || m.over == h.of)", "(m.over == nil || false && m.over == h.of)", "TestMemoryEndsNobodysProgress"},
	{"requests that do not stand in line", "admission.go", "min(fixed+int64(calls)*a.usual.Load(), a.limit)", "min(fixed+int64(calls)*a.usual.Load(), a.limit); need = 0", "TestRequestsStandInLine"},
	{"requests that wait for those that wait for them", "admission.go", "if a.memory.goesBeyond(of) {", "if false && a.memory.goesBeyond(of) {", "TestWhoGoesBeyondTheBoundNeedNotWait"},
	{"memory that is not given back", "gathering.go", "				late.result.answer.release()", "				if false { late.result.answer.release() }", "TestNothingLeaks"},
	{"a body that another request gets before the client has it", "merge_concat.go", "		r.parts = append(r.parts, a.item.([]byte))\n", "		r.parts = append(r.parts, a.item.([]byte))\n		a.release()\n", "TestBodiesOfManyRequests/concat"},
	{"a last resort beside leaves that pass", "fleet.go", "		if len(use) > 0 {", "		if len(others[shard]) == 0 {", "TestLastResort"},
	{"a useless last resort that every request waits for", "replica.go", "if m.checks == nil && !mayEject(", "if !mayEject(", "TestUselessLastResort"},
	{"a server that lags behind is believed", "catalog.go", "AllowStale: !w.leader", "AllowStale: true", "TestCatalogGoesBack"},
	{"a dead merge that nobody notices", "root.go", "	watched(t)\n", "	if false { watched(t) }\n", "TestMergeDiesWhileLeavesAreAwaited"},
}

func TestMutantsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: mutants are slow (-short)")
	}
	var list []mutanttest.Mutant
	for _, m := range mutants {
		list = append(list, mutanttest.Mutant{Name: m.name, File: m.file, Old: m.old, New: m.new, Tests: m.tests})
	}
	mutanttest.Run(t, list, "-gather.requests=3000", "-gather.leak-requests=4000")
}

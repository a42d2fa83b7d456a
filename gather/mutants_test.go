package gather

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mutants are the mistakes that scatter/gather is known to make, put into the code on purpose. Each must turn a test red.
var mutants = []struct {
	name     string
	file     string
	old, new string
	tests    string // that notice it
}{
	{"coverage counted without weight", "coverage.go", "	c.Total++\n	if s != Skipped || c.failing {", "	w = 1\n	c.Total++\n	if s != Skipped || c.failing {", "TestModel"},
	{"a partial leaf counted as whole", "coverage.go", "c.covered += w * share", "c.covered += w", "TestTreeMultipliesCoverage"},
	{"a missing shard ignored", "coverage.go", "	case Missing:\n		c.Missing++", "	case Missing:\n		c.needed -= w\n		c.Missing++", "TestModel"},
	{"hedges without a budget", "budget.go", "b.sum.spent+1 > b.sum.earned+reserve ||", "false ||", "TestHedgeBudget"},
	{"hedges without a brake", "budget.go", "b.brake && b.sum.wanted > outage*(b.sum.earned+reserve) {", "false {", "TestBrake"},
	{"losers that are not cancelled", "gathering.go", "	g.root.metrics.call(how, now.Sub(att.start))\n	att.cancel()", "	g.root.metrics.call(how, now.Sub(att.start))", "TestLoserIsCancelledAtOnce"},
	{"leaves that outlive their client", "http.go", "context.WithTimeout(a.r.Context(), total)", "context.WithTimeout(context.WithoutCancel(a.r.Context()), total)", "TestClientAbortCancelsLeaves"},
	{"a hedge to the same replica", "gathering.go", "s.pool.pick(now, hedge, s.used(), rand.Uint64())", "s.pool.pick(now, hedge, nil, rand.Uint64())", "TestHedgeGoesToTheOtherReplica|TestFrozenReplica"},
	{"a write that is sent again", "gathering.go", "replay := g.root.cfg.Hedge.Methods[g.req.method]", "replay := true", "TestAWriteIsNotSentTwice"},
	{"a client that loosens the policy", "policy.go", "p.MinCoverage = max(p.MinCoverage, coverage)", "p.MinCoverage = coverage", "TestPolicyMet"},
	{"a half answer that looks whole", "http.go", "			a.finish(http.StatusBadGateway, \"merge_failed\")\n			panic(http.ErrAbortHandler)", "			a.finish(http.StatusBadGateway, \"merge_failed\")\n			return", "TestLargeMergedAnswer"},
	{"a partial answer that caches may keep", "http.go", "		h[\"Cache-Control\"] = []string{\"no-store\"}\n	}\n	if a.req.applied", "	}\n	if a.req.applied", "TestPolicies"},
	{"a request that takes the whole budget", "gathering.go", "if g.hedges >= max(fewHedges, len(g.shards)/10) {", "if false {", "TestOneRequestDoesNotTakeTheBudget"},
	{"bodies of one request that wait for each other", "memory.go", "(m.over == nil || m.over == h.of)", "m.over == nil", "TestMemoryEndsNobodysProgress"},
	{"memory that is not given back", "gathering.go", "			late := <-done\n				late.result.answer.release()", "			<-done", "TestModel|TestNothingLeaks"},
	{"a last resort beside leaves that pass", "fleet.go", "		if len(use) > 0 {", "		if len(others[shard]) == 0 {", "TestLastResort"},
	{"a useless last resort that every request waits for", "replica.go", "if m.checks == nil && !mayEject(", "if !mayEject(", "TestUselessLastResort"},
	{"a server that lags behind is believed", "catalog.go", "AllowStale: !w.leader", "AllowStale: true", "TestCatalogGoesBack"},
	{"a dead merge that nobody notices", "root.go", "	watched(t)\n", "", "TestMergeDiesWhileLeavesAreAwaited"},
}

func TestMutantsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: mutants are slow (-short)")
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			if end, ok := t.Deadline(); ok && time.Until(end) < 150*time.Second {
				t.Skip("skip: no time is left for this mutant (a longer -timeout has it)")
			}
			source, err := os.ReadFile(m.file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), m.old); n != 1 {
				t.Fatalf("%s has %d places to mutate, want 1: the mutant has to follow the code", m.file, n)
			}
			out, err := testMutant(t, m.file, strings.Replace(string(source), m.old, m.new, 1), m.tests)
			if err == nil {
				t.Errorf("%s stayed green:\n%s", m.tests, out)
			} else if !strings.Contains(out, "--- FAIL: ") || strings.Contains(out, "panic: test timed out") {
				t.Errorf("%s did not fail, but could not run:\n%s", m.tests, out)
			}
		})
	}
}

// testMutant runs tests of this package with one file replaced.
func testMutant(t *testing.T, file, source, tests string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	original, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	mutated := filepath.Join(dir, file)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{mutated: []byte(source), filepath.Join(dir, "overlay.json"): overlay} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=120s", "-overlay="+filepath.Join(dir, "overlay.json"), "-run=^("+tests+")$", ".",
		"-gather.requests=3000", "-gather.leak-requests=4000")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

package gather

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mutants are the mistakes that scatter/gather is known to make, put into the code on purpose. Each must turn a test red.
//
// They share one build: each is an insertion that acts where MUTANT is true, and MUTANT becomes a question to the environment.
var mutants = []struct {
	name     string
	file     string
	old, new string
	tests    string // that notice it
}{
	{"coverage counted without weight", "coverage.go", "	c.Total++\n	if s != Skipped || c.failing {", "	if MUTANT { w = 1 }\n	c.Total++\n	if s != Skipped || c.failing {", "TestModel"},
	{"a partial leaf counted as whole", "coverage.go", "c.covered += w * share", "if MUTANT { share = 1 }; c.covered += w * share", "TestTreeMultipliesCoverage"},
	{"a missing shard ignored", "coverage.go", "	case Missing:\n		c.Missing++", "	case Missing:\n		if MUTANT { c.needed -= w }\n		c.Missing++", "TestModel"},
	{"hedges without a budget", "budget.go", "b.sum.spent+1 > b.sum.earned+b.reserve ||", "!MUTANT && b.sum.spent+1 > b.sum.earned+b.reserve ||", "TestHedgeBudget"},
	{"hedges without a brake", "budget.go", "|| b.brake && b.sum.wanted >", "|| !MUTANT && b.brake && b.sum.wanted >", "TestBrake"},
	{"losers that are not cancelled", "gathering.go", "	g.root.metrics.call(how, now.Sub(att.start))\n	att.cancel()", "	g.root.metrics.call(how, now.Sub(att.start))\n	if !MUTANT { att.cancel() }", "TestLoserIsCancelledAtOnce"},
	{"leaves that outlive their client", "http.go", "context.WithTimeout(a.r.Context(), total)", "context.WithTimeout(map[bool]context.Context{false: a.r.Context(), true: context.WithoutCancel(a.r.Context())}[MUTANT], total)", "TestClientAbortCancelsLeaves"},
	{"a hedge to the same replica", "gathering.go", "s.pool.pick(now, hedge, s.used(), rand.Uint64())", "s.pool.pick(now, hedge, map[bool][]*replica{false: s.used()}[MUTANT], rand.Uint64())", "TestHedgeGoesToTheOtherReplica"},
	{"calls that wait for a dead replica", "overdue.go", "	p := max(leaf/2, delay)\n", "	p := max(leaf/2, delay)\n	if MUTANT { return time.Hour }\n", "TestFrozenReplica/few_shards|TestFrozenReplica/without_hedging"},
	{"calls that wait for a dead replica until it is ejected", "overdue.go", "max(fewTokens, cfg.Eject.Consecutive*cfg.Shards)", "map[bool]int{false: max(fewTokens, cfg.Eject.Consecutive*cfg.Shards), true: fewTokens}[MUTANT]", "TestFrozenReplica/too_few_calls"},
	{"calls of an ejected replica that wait for a budget", "overdue.go", "	return s.attempts[len(s.attempts)-1].replica.ejected() &&", "	return !MUTANT && s.attempts[len(s.attempts)-1].replica.ejected() &&", "TestFrozenReplica/a_root"},
	{"retries without a budget", "overdue.go", "if !spend(now) {", "if !MUTANT && !spend(now) {", "TestOutageIsNotMultiplied"},
	{"an overdue call to a replica that pushed back", "overdue.go", "overdue && next.asked(now)", "!MUTANT && overdue && next.asked(now)", "TestNoHedgeAfterPushback"},
	{"a write that is sent again", "overdue.go", "return g.root.cfg.Hedge.Methods[g.req.method]", "return MUTANT || g.root.cfg.Hedge.Methods[g.req.method]", "TestAWriteIsNotSentTwice"},
	{"a client that loosens the policy", "policy.go", "p.MinCoverage = max(p.MinCoverage, coverage)", "p.MinCoverage = max(p.MinCoverage, coverage); if MUTANT { p.MinCoverage = coverage }", "TestPolicyMet"},
	{"a half answer that looks whole", "http.go", "			a.finish(http.StatusBadGateway, \"merge_failed\")\n			panic(", "			a.finish(http.StatusBadGateway, \"merge_failed\")\n			if MUTANT { return }\n			panic(", "TestLargeMergedAnswer"},
	{"a partial answer that caches may keep", "http.go", "		h[\"Cache-Control\"] = []string{\"no-store\"}\n	}\n	if a.req.applied", "		if !MUTANT { h[\"Cache-Control\"] = []string{\"no-store\"} }\n	}\n	if a.req.applied", "TestPolicies"},
	{"a request that takes the whole budget", "gathering.go", "if g.hedges >= max(fewHedges, len(g.shards)/10) {", "if !MUTANT && g.hedges >= max(fewHedges, len(g.shards)/10) {", "TestOneRequestDoesNotTakeTheBudget"},
	{"bodies of one request that wait for each other", "memory.go", "(m.over == nil || m.over == h.of)", "(m.over == nil || !MUTANT && m.over == h.of)", "TestMemoryEndsNobodysProgress"},
	{"requests that do not stand in line", "admission.go", "min(fixed+int64(calls)*a.usual.Load(), a.limit)", "min(fixed+int64(calls)*a.usual.Load(), a.limit); if MUTANT { need = 0 }", "TestRequestsStandInLine"},
	{"requests that wait for those that wait for them", "admission.go", "if a.memory.goesBeyond(of) {", "if !MUTANT && a.memory.goesBeyond(of) {", "TestWhoGoesBeyondTheBoundNeedNotWait"},
	{"memory that is not given back", "gathering.go", "				late.result.answer.release()", "				if !MUTANT { late.result.answer.release() }", "TestNothingLeaks"},
	{"a last resort beside leaves that pass", "fleet.go", "		if len(use) > 0 {", "		if !MUTANT && len(use) > 0 || MUTANT && len(others[shard]) == 0 {", "TestLastResort"},
	{"a useless last resort that every request waits for", "replica.go", "if m.checks == nil && !mayEject(", "if (m.checks == nil || MUTANT) && !mayEject(", "TestUselessLastResort"},
	{"a server that lags behind is believed", "catalog.go", "AllowStale: !w.leader", "AllowStale: MUTANT || !w.leader", "TestCatalogGoesBack"},
	{"a dead merge that nobody notices", "root.go", "	watched(t)\n", "	if !MUTANT { watched(t) }\n", "TestMergeDiesWhileLeavesAreAwaited"},
}

func TestMutantsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: mutants are slow (-short)")
	}
	run := buildMutants(t)
	for i, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel() // most wait for something that never happens
			if end, ok := t.Deadline(); ok && time.Until(end) < 150*time.Second {
				t.Skip("skip: no time is left for this mutant (a longer -timeout has it)")
			}
			out, err := run(t, m.tests, fmt.Sprint(i))
			if err == nil {
				t.Errorf("%s stayed green:\n%s", m.tests, out)
			} else if !strings.Contains(out, "--- FAIL: ") || strings.Contains(out, "panic: test timed out") {
				t.Errorf("%s did not fail, but could not run:\n%s", m.tests, out)
			}
		})
	}
	t.Run("none", func(t *testing.T) { // it is the mutant that turns a test red, and not how it is run
		t.Parallel()
		if out, err := run(t, "TestHedgeBudget|TestTreeMultipliesCoverage|TestPolicies|TestFrozenReplica/few_shards", "none"); err != nil {
			t.Errorf("without a mutant: %v\n%s", err, out)
		}
	})
}

// buildMutants builds the tests of this package with all mutants in, and returns what runs some of them with one of these turned on.
func buildMutants(t *testing.T) (run func(t *testing.T, tests, mutant string) (string, error)) {
	t.Helper()
	dir := t.TempDir()
	sources := map[string]string{}
	for i, m := range mutants {
		if sources[m.file] == "" {
			data, err := os.ReadFile(m.file)
			if err != nil {
				t.Fatal(err)
			}
			sources[m.file] = string(data)
		}
		if n := strings.Count(sources[m.file], m.old); n != 1 {
			t.Fatalf("%s: %s has %d places to mutate, want 1: the mutant has to follow the code", m.name, m.file, n)
		}
		sources[m.file] = strings.Replace(sources[m.file], m.old, strings.ReplaceAll(m.new, "MUTANT", fmt.Sprintf("mutant(%d)", i)), 1)
	}
	sources["mutant.go"] = "package gather\n\nimport \"os\"\n\nvar turnedOn = os.Getenv(\"RETINUE_GATHER_MUTANT\")\n\n" +
		"func mutant(i int) bool { return turnedOn == mutantNames[i] }\n\nvar mutantNames = [...]string{"
	for i := range mutants {
		sources["mutant.go"] += fmt.Sprintf("%q, ", fmt.Sprint(i))
	}
	sources["mutant.go"] += "}\n"
	replace := map[string]string{}
	for file, source := range sources {
		original, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		replace[original] = filepath.Join(dir, file)
		if err := os.WriteFile(replace[original], []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "mutants.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay="+filepath.Join(dir, "overlay.json"), "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the mutants: %v\n%s", err, out)
	}
	return func(t *testing.T, tests, mutant string) (string, error) {
		cmd := exec.CommandContext(t.Context(), binary, "-test.timeout=120s", "-test.run=^("+tests+")$", "-gather.requests=3000", "-gather.leak-requests=4000")
		if strings.Contains(tests, "/") { // a test and its parts: each level has its own expression
			cmd.Args[2] = "-test.run=" + tests
		}
		cmd.Env = append(os.Environ(), "RETINUE_GATHER_MUTANT="+mutant)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
}

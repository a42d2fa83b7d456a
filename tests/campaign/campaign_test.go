package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/tests/harness"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(appEnv); config != "" {
		os.Exit(runApp(config))
	}
	if by := os.Getenv(stepEnv); by != "" {
		os.Exit(stepClock(by))
	}
	harness.Main(m)
}

// A canary is an elector with one mistake in it, in a group of its own, with the faults that should bring the mistake to light. A
// campaign that does not see it would not see it in a real elector either.
type canary struct {
	name string
	mistake
	mode       string
	weights    []weight
	invariants []int // at least one of them is broken
}

var canaries = []canary{
	{"longlease", mistake{"session.go", // a deadline later than what Consul has confirmed
		"s.confirmed = sent\n\t\ts.until = sent.Add(m.cfg.Lease - m.cfg.guard())", "s.confirmed = sent\n\t\ts.until = sent.Add(10 * m.cfg.Lease)"},
		modeTether, []weight{{electorCut, 1, span{3.6, 4.4}, false}}, []int{1}},
	{"deafrenew", mistake{"session.go", // a renewal prolongs the lease when it is sent, whatever becomes of it
		"\ts.inFlight++\n", "\ts.inFlight++\n\tm.prove(now, now)\n"},
		modeBoth, []weight{{electorCut, 1, span{3.6, 4.4}, false}}, []int{1}},
	{"lockindex", mistake{"consul.go", // LockIndex as fencing token
		"Modify: res.KV.ModifyIndex}", "Modify: res.KV.LockIndex}"},
		modeTether, []weight{{appKill, 3, span{0.05, 0.3}, false}, {operatorPut, 2, span{}, false}}, []int{2, 3}},
	{"nodelay", mistake{"config.go", // a safe elector without lock-delay
		"if c.Revocation == Fast {", "if true {"},
		modeRenew, []weight{{operatorInval, 1, span{}, false}}, []int{1}},
}

// mistake is a change to one file of the elector.
type mistake struct{ file, old, new string }

// binary builds the retinue command with the mistake.
func (m mistake) binary(t *testing.T, name string) string {
	t.Helper()
	root := harness.RepoRoot(t)
	original := filepath.Join(root, "elector", m.file)
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		t.Fatalf("%s: %s has %d places to break, want 1: the canary has to follow the code", name, m.file, n)
	}
	dir := harness.Dir(t, "canary")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: filepath.Join(dir, m.file)}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{m.file: []byte(strings.Replace(string(source), m.old, m.new, 1)), "overlay.json": overlay} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "retinue-"+name)
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", out, "./cmd/retinue")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s does not build: %v\n%s", name, err, text)
	}
	return out
}

// The short campaign: half a minute of everything, on sound electors and, side by side with them, on broken ones.
func TestCampaign(t *testing.T) {
	harness.Need(t, harness.Root, harness.Netns, harness.Iptables, harness.Program("nsenter", true))
	s := settings{Seed: 42, Faults: 1000, Limit: 35 * time.Second, Hosts: 3, Every: time.Hour, Servers: true, Logs: os.Getenv("RETINUE_CAMPAIGN_LOGS"), Groups: []groupSpec{
		{Name: "renew", Lease: time.Second, Revocation: "safe", Mode: modeRenew, Elections: 2, Electors: 3},
		{Name: "both", Lease: time.Second, Revocation: "safe", Mode: modeBoth, Elections: 2, Electors: 3},
		{Name: "fast", Lease: time.Second, Revocation: "fast", Mode: modeTether, Elections: 2, Electors: 3},
	}}
	for _, m := range canaries {
		s.Groups = append(s.Groups, groupSpec{Name: m.name, Lease: time.Second, Revocation: "safe", Mode: m.mode, Elections: 1, Electors: 2,
			Binary: m.binary(t, m.name), Weights: m.weights, Canary: true})
	}
	// On a busy machine a mistake may take longer to show.
	s.Attack = func(ctx context.Context, c *campaign) error {
		for range 4 {
			if err := c.attack(ctx); err != nil || c.shown() {
				return err
			}
			c.world.t.Logf("once more: not every mistake has shown itself")
		}
		return nil
	}
	c, err := run(t.Context(), s, testWriter{t})
	if err != nil {
		t.Fatal(err)
	}
	r := c.report()
	t.Logf("%s", r.markdown())
	if r.Faults < 40 {
		t.Errorf("only %d faults in %.0f s", r.Faults, r.Seconds)
	}
	broken := map[string]bool{}
	for _, v := range r.Violations {
		sound := true
		for _, m := range canaries {
			if v.Group != m.name {
				continue
			}
			sound = false
			for _, i := range m.invariants {
				broken[m.name] = broken[m.name] || v.Invariant == i
			}
		}
		if sound {
			t.Errorf("seed %d: %s", s.Seed, v)
		}
	}
	for _, m := range canaries {
		if !broken[m.name] {
			t.Errorf("the campaign did not notice the mistake %q", m.name)
		}
	}
}

// shown says whether every canary has broken a promise by now.
func (c *campaign) shown() bool {
	for _, g := range c.world.groups {
		if g.Canary && !slices.ContainsFunc(g.elections, (*election).broken) {
			return false
		}
	}
	return true
}

// broken says whether two have led at once, or under tokens that do not rise.
func (e *election) broken() bool {
	beliefs := e.ordered()
	for i, b := range beliefs[min(1, len(beliefs)):] {
		if a := beliefs[i]; b.who != a.who && (b.from < a.end() || b.token <= a.token) {
			return true
		}
	}
	return false
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// The plan is a function of the seed, and of nothing else.
func TestPlan(t *testing.T) {
	plan := func(seed uint64) (out string) {
		for _, name := range []string{"g0", "g1"} {
			l := newLanePlan(seed, name, groupWeights, time.Second, span{0.1, 0.5})
			for range 200 {
				out += fmt.Sprintln(l.next())
			}
		}
		return out
	}
	if again := plan(7); plan(7) != again {
		t.Error("one seed, two plans")
	}
	if plan(7) == plan(8) {
		t.Error("two seeds, one plan")
	}
	for _, w := range groupWeights {
		if !strings.Contains(plan(7), string(w.class)) {
			t.Errorf("%q is not among 400 faults", w.class)
		}
	}
}

package main

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/internal/devcluster"
	"retinue/tests/drivercluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) {
	drivercluster.Main()
	harness.Main(m)
}

// The short campaign: each plugin and the agent are killed once under the tasks of two drivers, and nodes are drained a few times.
func TestCampaign(t *testing.T) {
	bin := harness.RetinueBinary(t)
	harness.Need(t, harness.Root, harness.Docker, harness.NewFeature("driver plugin", true, func() error {
		if !devcluster.DriverPluginBeside(bin) {
			return errors.New("not beside " + bin + ": run `make plugin`, and set RETINUE_BIN to bin/retinue")
		}
		return nil
	}))
	s := settings{Seed: 7, Drains: 3, Limit: 20 * time.Minute, Dir: harness.Dir(t, "df"), Retinue: bin, Nomad: harness.NomadBinary(t), Consul: harness.ConsulBinary(t),
		Drivers: []string{devcluster.DriverExec, devcluster.DriverDocker}, Log: func(format string, args ...any) { t.Logf(format, args...) }}
	s.Points = slices.DeleteFunc(slices.Clone(points), func(p point) bool {
		return !slices.Contains([]string{"warming", "paused", "draining", "stopping"}, p.name)
	})
	s.Subject = filepath.Join(s.Dir, "subject")
	if err := buildSubject(t.Context(), s.Subject); err != nil {
		t.Fatal(err)
	}
	s.Faults = []Fault{killPlugin, killAgent}
	s.Salvos = len(s.Faults)
	r, err := run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", r.markdown())
	for _, f := range r.Findings {
		t.Errorf("seed %d: %s", s.Seed, f)
	}
	if r.Tasks != 16 || r.Drains != 3 || r.Increments == 0 {
		t.Errorf("%d tasks, %d drains, %d increments", r.Tasks, r.Drains, r.Increments)
	}
}

// life is a history in short: "run what hook delivery", the lines divided by semicolons.
func life(t *testing.T, text string) []line {
	t.Helper()
	var lines []string
	for one := range strings.SplitSeq(text, ";") {
		f := strings.Fields(one)
		for len(f) < 4 {
			f = append(f, "-")
		}
		lines = append(lines, strings.Join([]string{"1", f[0], strings.ReplaceAll(f[1], "_", " "), f[2], f[3], "1"}, "\t"))
	}
	out, err := parseHistory(strings.ReplaceAll(strings.Join(lines, "\n"), "save state", "save_state"))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestJudge(t *testing.T) {
	t.Parallel()
	const whole = "a begin pre_drain d; a end pre_drain d; a begin drain e; a end drain e; a begin save_state f; a end save_state f; a begin pre_stop g; a end pre_stop g; a signal_terminated; a exit"
	paused, stopping := point{name: "paused"}, point{name: "stopping", stop: true}
	good := outcome{point: paused, fault: killAgent, phase: "paused", ended: true, back: true}
	for _, c := range []struct {
		name    string
		change  func(*outcome)
		history string
		want    []string
		repeats int
	}{
		{"all is well", nil, "a start; " + whole, nil, 0},
		{"a hook ran twice", nil, "a start; a begin pre_drain d; a cut pre_drain d; " + whole, nil, 1},
		{"with another delivery", nil, "a start; a begin pre_drain d2; a cut pre_drain d2; " + whole, []string{delivered}, 1},
		{"it was started again", nil, "b start; a start; " + whole, []string{survives}, 0},
		{"it was started again after its executor was killed", func(o *outcome) { o.fault = killHelper }, "b start; a start; " + whole, nil, 0},
		{"it was started again while it started", func(o *outcome) { o.phase = "warming" }, "b start; a start; " + whole, nil, 0},
		{"two at once", func(o *outcome) { o.phase = "warming" }, "b start; a twin; a start; " + whole, []string{oneOfIt}, 0},
		{"the signal before pre_stop", nil, "a start; a begin pre_drain d; a end pre_drain d; a end drain e; a end save_state f; a begin pre_stop g; a signal_terminated; a end pre_stop g", []string{hooksRun}, 0},
		{"no hooks at all", nil, "a start; a signal_terminated", []string{hooksRun}, 0},
		{"no hooks, its shim was killed in the stop", func(o *outcome) { o.fault, o.point = killHelper, stopping }, "a start; a signal_terminated", nil, 0},
		{"it stays", func(o *outcome) { o.ended = false }, "a start", []string{ends}, 0},
		{"it does not come back", func(o *outcome) { o.back = false }, "a start; " + whole, []string{comesBack}, 0},
		{"it leaves something", func(o *outcome) { o.left = []string{"mount /x"} }, "a start; " + whole, []string{nothing}, 0},
	} {
		o := good
		if c.change != nil {
			c.change(&o)
		}
		o.history = life(t, c.history)
		findings, repeats := o.judge()
		var got []string
		for _, f := range findings {
			got = append(got, f.Promise)
		}
		if !slices.Equal(got, c.want) || repeats != c.repeats {
			t.Errorf("%s: %q, %d repeats; want %q, %d", c.name, got, repeats, c.want, c.repeats)
		}
	}
	if _, err := parseHistory("half a line"); err == nil {
		t.Error("half a line is a history")
	}
}

// The plan is a function of the seed, and every fault comes in it.
func TestPlan(t *testing.T) {
	t.Parallel()
	drivers := []string{"raw_exec", "exec", "docker"}
	seen, again := map[Fault]bool{}, 0
	for n := range 40 {
		a, b := salvoOf(7, n, faults(), drivers), salvoOf(7, n, faults(), drivers)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("salvo %d: %+v and %+v", n, a, b)
		}
		if other := salvoOf(8, n, faults(), drivers); other.begun == a.begun {
			t.Errorf("salvo %d is the same for another seed", n)
		}
		if seen[a.fault] = true; a.again > 0 {
			again++
		}
	}
	if len(seen) != len(faults()) || again == 0 || again == 40 {
		t.Errorf("faults %v, %d of 40 twice", seen, again)
	}
}

// What a finding says has to be in the report.
func TestReportTells(t *testing.T) {
	t.Parallel()
	r := &report{Drivers: []string{"exec"}, Cells: map[string]map[Fault]map[string]int{}, Broken: map[string]int{}}
	good := &shot{outcome: outcome{driver: "exec", point: point{name: "paused"}, fault: killInner, phase: "paused", ended: true, back: true}}
	good.history = life(t, "a start")
	bad := &shot{outcome: good.outcome}
	bad.left = []string{"mount /x"}
	r.add([]*shot{good, bad}, 1)
	text := r.markdown()
	for _, want := range []string{"**1 findings.** 2 tasks met 1 kills", "| paused | 0 | 2 | 0 | 0 |", "| " + nothing + " | 1 |", "mount /x"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

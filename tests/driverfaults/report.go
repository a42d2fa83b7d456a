package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what a campaign found.
type report struct {
	Seed       uint64
	Date       string
	Commit     string
	Versions   string
	Seconds    float64
	Salvos     int
	Tasks      int
	Kills      int
	Repeats    int // hooks that were called more than once
	Drains     int
	Moves      int
	Increments uint64
	Longest    float64 // seconds that an increment took
	Load       string
	Drivers    []string
	Cells      map[string]map[Fault]map[string]int // tasks by phase, fault and driver
	Broken     map[string]int
	Findings   []finding

	log func(format string, args ...any)
}

func newReport(w *world) *report {
	r := &report{log: w.Log, Seed: w.Seed, Date: time.Now().UTC().Format("2006-01-02"), Drivers: w.drivers, Cells: map[string]map[Fault]map[string]int{}, Broken: map[string]int{}}
	if out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output(); err == nil {
		r.Commit = strings.TrimSpace(string(out))
	}
	if self, err := w.cluster.Nomad.Agent().Self(); err == nil {
		r.Versions = "Nomad " + self.Member.Tags["build"]
	}
	return r
}

func (r *report) find(f finding) {
	r.Findings = append(r.Findings, f)
	r.Broken[f.Promise]++
	if r.log != nil {
		r.log("%s", f)
	}
}

// add takes a salvo in.
func (r *report) add(shots []*shot, kills int) {
	r.Salvos++
	r.Kills += kills
	for _, one := range shots {
		r.Tasks++
		phase := one.phaseWord()
		if r.Cells[phase] == nil {
			r.Cells[phase] = map[Fault]map[string]int{}
		}
		if r.Cells[phase][one.fault] == nil {
			r.Cells[phase][one.fault] = map[string]int{}
		}
		r.Cells[phase][one.fault][one.driver]++
		findings, repeats := one.judge()
		r.Repeats += repeats
		for _, f := range findings {
			r.find(f)
		}
	}
}

// phases are those in which the fault met a task, in the order of a life.
func (r *report) phases() (out []string) {
	for _, phase := range []string{"not begun", "created", "restoring", "starting", "warming", "running", "paused", "draining", "saving", "stopping", "stopped", "killed", "exited", "destroyed"} {
		if r.Cells[phase] != nil {
			out = append(out, phase)
		}
	}
	return out
}

// markdown is the report for people.
func (r *report) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	verdict := "**No promise was broken.**"
	if n := len(r.Findings); n > 0 {
		verdict = fmt.Sprintf("**%d findings.**", n)
	}
	p("# The lifecycle driver under faults\n")
	p("Written by `go run ./driverfaults` in tests/; what the words mean is in tests/driverfaults/README.md. `make faults-lifecycle` runs it again.\n")
	p("%s %d tasks met %d kills in %d salvos; %d node drains moved %d servers under load: %d increments acknowledged, lost or counted twice: %d.\n", verdict, r.Tasks, r.Kills, r.Salvos, r.Drains, r.Moves, r.Increments, r.Broken[noLoss])
	p("| | |\n|---|---|")
	p("| again | `go run ./driverfaults -seed %d -salvos %d -drains %d` |", r.Seed, r.Salvos, r.Drains)
	p("| run | %s, commit %s, %s, %d CPUs, load at the end %s, %s, %s |", r.Date, r.Commit, r.Versions, runtime.NumCPU(), r.Load, runtime.Version(), time.Duration(r.Seconds)*time.Second)
	p("| hooks that were called again, with the same delivery | %d |", r.Repeats)
	p("| longest that a user waited for an increment, over a drain | %.1f s |", r.Longest)
	p("\nTasks by their state when the fault came, as the driver had written it down; in each cell %s.\n", strings.Join(r.Drivers, " / "))
	head, rule := "| state |", "|---|"
	for _, f := range faults() {
		head, rule = head+fmt.Sprintf(" %s killed |", f), rule+"--:|"
	}
	p("%s\n%s", head, rule)
	for _, phase := range r.phases() {
		row := "| " + phase + " |"
		for _, f := range faults() {
			var cell []string
			for _, driver := range r.Drivers {
				cell = append(cell, fmt.Sprint(r.Cells[phase][f][driver]))
			}
			row += " " + strings.Join(cell, " / ") + " |"
		}
		p("%s", row)
	}
	p("\n| promise | broken |\n|---|--:|")
	for _, name := range promises() {
		p("| %s | %d |", name, r.Broken[name])
	}
	sorted := slices.Clone(r.Findings)
	slices.SortStableFunc(sorted, func(a, b finding) int { return strings.Compare(a.Promise, b.Promise) })
	for i, f := range sorted {
		if i == 20 {
			p("\n... and %d more", len(sorted)-20)
			break
		}
		p("\n- %s", f)
	}
	return b.String()
}

// publish writes the document, or to standard output.
func (r *report) publish(path string) error {
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Load = strings.Join(strings.Fields(string(data))[:3], " ")
	}
	if path == "" {
		fmt.Print(r.markdown())
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(r.markdown()), 0o644)
}

// Command bench measures the patterns side by side with their peers, in one
// run, with real processes. Leader election: the elector, `consul lock`,
// consul/api's Lock, `nomad var lock` and etcd's Election. Scatter/gather: the
// root, a bare fan-out in Go, hedgedhttp and failsafe-go. Work queue: the
// coordinator, loops written by hand, asynq and Celery. Lifecycle: tasks under
// the decorated drivers and under Nomad's built-in ones. It writes a section of
// BENCHMARKS.md for each, the plots of docs/plots and, on request, JSON.
//
// It promises that the contenders take turns, so that the machine's noise hits
// them alike; that every process it starts is gone when it ends, also when it
// is killed; and that its time is bounded: -quick below five minutes a section,
// the full run below twelve for leader election, thirteen for scatter/gather
// and ten for each of the others.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"retinue/tests/drivercluster"
)

// options are the program's flags.
type options struct {
	quick   bool
	n       int
	out     string
	json    bool
	section string
	only    string
	rounds  time.Duration // at most, for the rounds
	window  time.Duration // of the part that waits for expiries
	idle    time.Duration // over which processor time is measured
}

func main() {
	drivercluster.Main()
	if len(os.Args) > 1 && os.Args[1] == lockRole {
		exit(runLock(os.Args[2:]))
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "fewer repetitions, below five minutes a section")
	flag.IntVar(&o.n, "n", 0, "rounds of the actions that take milliseconds in leader-election (default 200, with -quick 6)")
	flag.StringVar(&o.out, "out", "", "document whose sections are replaced (default BENCHMARKS.md of the repository, with -only none)")
	flag.BoolVar(&o.json, "json", false, "print the results as JSON: a list with an object for each section")
	flag.StringVar(&o.section, "section", "", "the section to measure, "+sectionNames()+"; default all")
	flag.StringVar(&o.only, "only", "", "parts to run, separated by commas: "+strings.Join(partNames(sections()), ", "))
	flag.Parse()
	o.rounds, o.window, o.idle = 5*time.Minute, 170*time.Second, 10*time.Second
	rounds := 200
	if o.quick {
		o.rounds, o.window, o.idle = 20*time.Second, 52*time.Second, 3*time.Second
		rounds = 6
	}
	if o.n == 0 {
		o.n = rounds
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run measures one section after the other, each in a world of its own, and publishes each when it is done.
func run(ctx context.Context, o options) error {
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%5.0fs "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
	}
	chosen, err := choose(o.section, o.only)
	if err != nil {
		return err
	}
	var reports []Report
	for _, s := range chosen {
		report, err := s.measured(ctx, o, say)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := publish(report, o); err != nil {
			return err
		}
		reports = append(reports, report)
	}
	say("done")
	if !o.json {
		return nil
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(reports)
}

// leaderElection brings up the servers and measures.
func (r *rig) leaderElection(ctx context.Context, o options, want func(string) bool, limit time.Duration, report *Report) error {
	if err := r.programs(ctx); err != nil {
		return err
	}
	end := time.Now().Add(limit)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	if err := r.up(ctx); err != nil {
		return err
	}
	err := r.measure(ctx, o, want, end, report)
	report.Missing = append(report.Missing, append(r.missing, elsewhere...)...)
	return err
}

// measure runs the parts that are wanted. What takes milliseconds comes first, while nothing else runs.
func (r *rig) measure(ctx context.Context, o options, want func(string) bool, end time.Time, report *Report) error {
	if want("rounds") {
		r.say("rounds: resign, hand over, kill the application")
		scenarios, handed, err := r.rounds(ctx, o.n, o.rounds)
		if err != nil {
			return fmt.Errorf("rounds: %w", err)
		}
		report.Scenarios = append(report.Scenarios, scenarios...)
		report.Targets = append(report.Targets, roundTargets(scenarios, handed)...)
	}
	if want("local") {
		r.say("local: idle cost, latency of the local API, event fan-out")
		facts, targets, err := r.local(ctx, o.idle)
		if err != nil {
			return fmt.Errorf("local: %w", err)
		}
		report.Facts, report.Targets = append(report.Facts, facts...), append(report.Targets, targets...)
	}
	if want("scale") {
		r.say("scale: 1,000 elections on one elector")
		facts, targets, err := r.scale(ctx, o.idle, o.quick)
		if err != nil {
			return fmt.Errorf("scale: %w", err)
		}
		report.Facts, report.Targets = append(report.Facts, facts...), append(report.Targets, targets...)
	}
	if want("expiry") {
		// What takes seconds gets the time that is left.
		window := min(o.window, time.Until(end)-5*time.Second)
		r.say("expiry: kill electors, wrappers and nodes (%v)", window.Round(time.Second))
		scenarios, polling, bounds, err := r.expiry(ctx, window, !o.quick)
		if err != nil {
			return fmt.Errorf("expiry: %w", err)
		}
		if len(report.Scenarios) > 0 {
			resign := &report.Scenarios[0]
			resign.Rows = compare(append(resign.Rows, polling...))
		}
		report.Scenarios = append(report.Scenarios, scenarios...)
		for _, b := range bounds {
			report.Targets = append(report.Targets, b.target())
		}
	}
	return nil
}

// elsewhere are targets of the design that other programs prove.
var elsewhere = []string{
	"a hanging application, overlaps of leases, stale tokens at a fenced resource, false losses over a day: the fault campaign (`make faults`) is about those",
	"client-go, Curator and Patroni: they need a Kubernetes API server, a ZooKeeper ensemble and a PostgreSQL pair",
}

// command is how to do this run again.
func command() string {
	c := "cd tests && go run ./bench"
	flag.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "quick":
			c += " -quick"
		case "n", "only", "section":
			c += " -" + f.Name + " " + f.Value.String()
		}
	})
	return c
}

// publish writes the section into its document, or to standard output, and a full run's plots and words where they belong.
func publish(report Report, o options) error {
	var section strings.Builder
	report.markdown(&section)
	switch {
	case o.out != "":
		return spliceInto(o.out, report.Section, section.String())
	case o.only != "":
		if !o.json {
			fmt.Print(section.String())
		}
		return nil
	}
	root, err := repoRoot()
	if err != nil {
		return err
	}
	if err := spliceInto(filepath.Join(root, "BENCHMARKS.md"), report.Section, section.String()); err != nil || o.quick {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "docs", "plots"), 0o755); err != nil {
		return err
	}
	for _, p := range report.Plots {
		if err := os.WriteFile(filepath.Join(root, "docs", "plots", p.Name), []byte(p.SVG), 0o644); err != nil {
			return err
		}
	}
	for _, q := range report.Quotes {
		if err := spliceInto(filepath.Join(root, q.File), q.Name, q.Text); err != nil {
			return err
		}
	}
	return nil
}

// roundTargets holds the rounds against the promises.
func roundTargets(scenarios []Scenario, handed *outcome) []Target {
	within := func(what string, s Scenario, p50, p99 time.Duration) Target {
		took := s.Rows[0].Took
		return Target{What: what, Want: "p50 ≤ " + human(p50) + ", p99 ≤ " + human(p99),
			Measured: fmt.Sprintf("p50 %s, p99 %s (n=%d)", human(took.P50), human(took.P99), took.N), Met: took.N > 0 && took.P50 <= p50 && took.P99 <= p99}
	}
	ms := time.Millisecond
	vacancy := Target{What: "planned hand-over: no vacancy", Want: "0", Measured: "not watched"}
	if v := scenarios[1].Rows[0].Vacancy; v != nil {
		vacancy.Measured = fmt.Sprintf("%s; %d of %d in one Raft entry", human(v.Max), countAtomic(handed), len(handed.samples))
		vacancy.Met = v.Max == 0 && countAtomic(handed) == len(handed.samples)
	}
	return []Target{
		within("resign → the successor's application knows", scenarios[0], 10*ms, 50*ms),
		vacancy,
		within("planned hand-over → the successor's application knows", scenarios[1], 5*ms, 30*ms),
		within("application killed → the successor's application knows", scenarios[2], 15*ms, 100*ms),
	}
}

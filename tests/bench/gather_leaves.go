package main

import (
	"context"
	"fmt"
	"time"
)

// fanOuts are the contenders in front of leaves that have one replica: nothing is hedged, the fan-out alone counts.
func (r *rig) fanOuts(ctx context.Context, id string, shards [][]string) (fs fronts, err error) {
	for _, start := range []func() (*front, error){
		func() (*front, error) { return r.peer(ctx, id+"-bare", "bare", "errgroup, net/http", shards) },
		func() (*front, error) { return r.gatherRoot(ctx, id+"-root", shards) },
		func() (*front, error) {
			return r.peer(ctx, id+"-hedgedhttp", "hedgedhttp", "upto 2, after 10s", shards, "-delay", "10s")
		},
		func() (*front, error) {
			return r.peer(ctx, id+"-failsafe", "failsafe-go", "after 10s", shards, "-quantile", "0", "-delay", "10s")
		},
	} {
		f, err := start()
		if f != nil {
			fs = append(fs, f)
		}
		if err != nil {
			fs.stop()
			return nil, err
		}
	}
	return fs, nil
}

// overhead is what one contender adds to the bare fan-out with so many leaves.
type overhead struct {
	leaves     int
	name       string
	took, bare Summary
	perCall    time.Duration
	ratio      float64 // of processor time, to the bare one's
}

func (o overhead) p50() time.Duration { return o.took.P50 - o.bare.P50 }
func (o overhead) p99() time.Duration { return o.took.P99 - o.bare.P99 }

// gatherLeaves compares fan-outs of growing size.
func (r *rig) gatherLeaves(ctx context.Context, a amounts, report *Report) error {
	table := Table{Title: "What the root costs: leaves that answer at once", Explain: "One replica of each leaf, so that nothing is hedged.",
		Head: []string{"contender", "leaves", "n", "p50", "p99", "added p50", "added p99", "processor time per leaf call", "ratio"}}
	var ours []overhead
	for _, leaves := range a.leaves {
		all, err := r.compareFanOut(ctx, leaves, a, report)
		if err != nil {
			return fmt.Errorf("%d leaves: %w", leaves, err)
		}
		for _, o := range all {
			table.Rows = append(table.Rows, o.row())
			if o.name == rootName {
				ours = append(ours, o)
			}
		}
		report.overheads = append(report.overheads, all...)
	}
	report.Tables = append(report.Tables, table)
	report.Targets = append(report.Targets, overheadTargets(ours)...)
	return nil
}

func (r *rig) compareFanOut(ctx context.Context, leaves int, a amounts, report *Report) ([]overhead, error) {
	r.say("  %d leaves", leaves)
	id := fmt.Sprintf("f%d", leaves)
	fleet, err := r.leaves(ctx, id, leaves, 1)
	if err != nil {
		return nil, err
	}
	defer fleet.stop()
	fs, err := r.fanOuts(ctx, id, fleet.shards())
	if err != nil {
		return nil, err
	}
	defer fs.stop()
	burst := 5
	if leaves >= 1000 {
		burst = 1
	}
	if err := r.turns(ctx, fs, a.requests[leaves], burst, a.limit, noScript); err != nil {
		return nil, err
	}
	bare := fs.byName("bare")
	base, cost := summarize(bare.took()), bare.perCall()
	var all []overhead
	for _, f := range fs {
		o := overhead{leaves: leaves, name: f.name, took: summarize(f.took()), bare: base, perCall: f.perCall()}
		if cost > 0 {
			o.ratio = float64(o.perCall) / float64(cost)
		}
		all = append(all, o)
		report.Figures = append(report.Figures, Figure{Part: "leaves", Contender: f.name, Config: f.config, Leaves: leaves, Took: o.took, Failures: f.failures,
			Values: map[string]float64{"added_p50_ns": float64(o.p50()), "added_p99_ns": float64(o.p99()), "cpu_per_leaf_call_ns": float64(o.perCall), "cpu_ratio": o.ratio}})
	}
	return all, nil
}

func (o overhead) row() []string {
	row := []string{o.name, fmt.Sprint(o.leaves), fmt.Sprint(o.took.N), human(o.took.P50), human(o.took.P99), "–", "–", human(o.perCall), humanRatio(o.ratio)}
	if o.name != "bare" {
		row[5], row[6] = signed(o.p50()), signed(o.p99())
	}
	return row
}

// overheadTargets holds the root's part against the promises.
func overheadTargets(ours []overhead) (targets []Target) {
	ms := time.Millisecond
	cpu := Target{What: "processor time per leaf call, over the bare fan-out's", Want: "≤ 1.3×", Met: true}
	for _, o := range ours {
		if o.leaves == 1 {
			continue // dominated by the client's own request
		}
		if cpu.Measured != "" {
			cpu.Measured += ", "
		}
		cpu.Measured += fmt.Sprintf("%.2f× with %d", o.ratio, o.leaves)
		cpu.Met = cpu.Met && o.ratio > 0 && o.ratio <= 1.3
		t := Target{What: fmt.Sprintf("added to a bare fan-out, %d leaves", o.leaves)}
		p50, p99 := 200*time.Microsecond, 2*ms
		switch o.leaves {
		case 10:
		case 100:
			p50, p99 = ms, 8*ms
		case 1000:
			p50, p99 = o.bare.P50*15/100, o.bare.P99*20/100
			t.Want = "p50 ≤ 15 %, p99 ≤ 20 %"
			t.Measured = fmt.Sprintf("p50 %+.0f %%, p99 %+.0f %% (n=%d)", share(o.p50(), o.bare.P50), share(o.p99(), o.bare.P99), o.took.N)
		default:
			continue
		}
		if t.Want == "" {
			t.Want = "p50 ≤ " + human(p50) + ", p99 ≤ " + human(p99)
			t.Measured = fmt.Sprintf("p50 %s, p99 %s (n=%d)", signed(o.p50()), signed(o.p99()), o.took.N)
		}
		t.Met = o.took.N > 0 && o.p50() <= p50 && o.p99() <= p99
		targets = append(targets, t)
	}
	if cpu.Measured == "" {
		return targets
	}
	return append(targets, cpu)
}

// share is part of whole in per cent.
func share(part, whole time.Duration) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"retinue/tests/bench/script"
)

// The tail: how many calls are slow, and how much in the mean.
const (
	slowShare = 0.01
	slowAdd   = 100 * time.Millisecond
	slowSeed  = 1
)

// slowness is how the delays of slow calls are distributed.
type slowness struct {
	id, title, explain string
	vary               bool
}

// slownesses are those that are measured. The first is that of the simulation which the target comes from: it makes its table
// (quantiles of 1 to 1,000 leaves, hedged and not) come out again. With the second the p99 says whether a few more or fewer than
// 1 % of the requests had bad luck twice.
var slownesses = []slowness{
	{id: "tail", vary: true, title: "1 %% of leaf calls take %s longer in the mean, %d leaves with 2 replicas",
		explain: "A slow call takes 50 ms longer, and what is exponentially distributed with a mean of 50 ms on top, as in the simulation of the design. "},
	{id: "tail-fixed", title: "1 %% of leaf calls take exactly %s longer, %d leaves with 2 replicas",
		explain: "The same, but every slow call is late by the same time: then the p99 of hedged requests is either that time or next to nothing, as the share of requests that no hedge helps is below or above 1 %. No target is held against it. "},
}

// tailed is how one contender fared with slow calls.
type tailed struct {
	*front
	took     Summary
	p90      time.Duration
	hopeful  time.Duration // p99 of the requests for which each shard had a replica that was not slow
	hopeless int
	extra    float64 // calls, over one for each leaf
}

// gatherTail has one in a hundred leaf calls be slow.
func (r *rig) gatherTail(ctx context.Context, a amounts, report *Report) error {
	for i, kind := range slownesses {
		n := a.tail
		if i > 0 {
			n /= 2
		}
		if err := r.oneTail(ctx, kind, n, a, report); err != nil {
			return err
		}
	}
	report.Targets = append(report.Targets, tailTarget(report.tails))
	return nil
}

func (r *rig) oneTail(ctx context.Context, kind slowness, n int, a amounts, report *Report) error {
	fleet, err := r.leaves(ctx, kind.id, a.tailSize, 2)
	if err != nil {
		return err
	}
	defer fleet.stop()
	fs, err := r.tailFronts(ctx, fleet, kind)
	defer func() { fs.stop() }()
	if err != nil {
		return err
	}
	one := &front{name: "one leaf", config: "asked directly", url: fleet.nodes[0].Leaves[0], leaves: 1, label: len(fs) + 1}
	before, err := fleet.calls(ctx)
	if err != nil {
		return err
	}
	warmed := 0
	if err := r.turns(ctx, append(slices.Clone(fs), one), n, 5, 5*a.limit/2, func(f *front, n uint64) script.Script {
		if n >= warmN {
			warmed++
		}
		return kind.script(f, n)
	}); err != nil {
		return err
	}
	after, err := fleet.calls(ctx)
	if err != nil {
		return err
	}
	warmed /= len(fs) + 1
	all := []tailed{tailOf(one, 0, warmed)}
	for _, f := range fs {
		all = append(all, tailOf(f, after[f.label]-before[f.label], warmed))
	}
	if report.tails == nil {
		report.tails = all
	}
	report.Tables = append(report.Tables, tailTable(all, kind, a.tailSize))
	for _, t := range all {
		report.Figures = append(report.Figures, Figure{Part: kind.id, Contender: t.name, Config: t.config, Leaves: t.leaves, Took: t.took, Failures: t.failures,
			Values: map[string]float64{"p90_ns": float64(t.p90), "p99_without_hopeless_ns": float64(t.hopeful), "hopeless": float64(t.hopeless), "extra_calls": t.extra}})
	}
	return nil
}

func (k slowness) script(f *front, n uint64) script.Script {
	return script.Script{N: n, Label: f.label, Seed: slowSeed, Slow: slowShare, Add: slowAdd, Vary: k.vary}
}

// tailFronts starts the contenders. hedgedhttp gets the delay that the root has found.
func (r *rig) tailFronts(ctx context.Context, fleet *fleet, kind slowness) (fs fronts, err error) {
	client := newClient(4)
	defer client.CloseIdleConnections()
	shards := fleet.shards()
	var delay time.Duration
	for _, start := range []func() (*front, error){
		func() (*front, error) {
			f, err := r.gatherRoot(ctx, kind.id+"-root", shards)
			if err != nil {
				return f, err
			}
			f.label = script.Labels - 1 // these calls are not counted
			if err := f.warm(ctx, client, 100, kind.script); err != nil {
				return f, err
			}
			delay, err = f.hedgeAfter(ctx)
			return f, err
		},
		func() (*front, error) {
			return r.peer(ctx, kind.id+"-hedgedhttp", "hedgedhttp", "upto 2, after "+human(delay)+", the delay that the root had found", shards, "-delay", delay.String())
		},
		func() (*front, error) {
			return r.peer(ctx, kind.id+"-failsafe", "failsafe-go", "after its own quantile 0.985", shards, "-quantile", "0.985")
		},
		func() (*front, error) {
			f, err := r.gatherRoot(ctx, kind.id+"-unhedged", shards, "--hedge-budget", "0")
			return f.rarely(), err
		},
		func() (*front, error) {
			f, err := r.peer(ctx, kind.id+"-bare", "bare", "errgroup, net/http", shards)
			return f.rarely(), err
		},
	} {
		f, err := start()
		if f != nil {
			fs = append(fs, f)
			f.label = len(fs)
		}
		if err != nil {
			return fs, err
		}
	}
	return fs, nil
}

// rarely: an unhedged request takes ten times as long, and its p99 is known from fewer.
func (f *front) rarely() *front {
	if f != nil {
		f.every = 5
	}
	return f
}

// tailOf sums up; warmed calls of each contender are not of the rounds.
func tailOf(f *front, calls int64, warmed int) tailed {
	took := f.took()
	slices.Sort(took)
	t := tailed{front: f, took: summarize(took)}
	if len(took) == 0 {
		return t
	}
	t.p90 = percentile(took, 90)
	hopeful := times(f.shots, func(s shot) bool { return !slownesses[0].script(f, s.n).Hopeless(f.leaves) })
	slices.Sort(hopeful)
	t.hopeless = len(took) - len(hopeful)
	if len(hopeful) > 0 {
		t.hopeful = percentile(hopeful, 99)
	}
	if asked := (int(f.sent) + warmed) * f.leaves; calls > 0 && asked > 0 {
		t.extra = float64(calls)/float64(asked) - 1
	}
	return t
}

func tailTable(all []tailed, kind slowness, leaves int) Table {
	most := 0
	for _, t := range all[1:] {
		most = max(most, t.hopeless)
	}
	table := Table{Title: "The tail: " + fmt.Sprintf(kind.title, human(slowAdd), leaves),
		Explain: kind.explain + fmt.Sprintf("Which calls are slow is fixed by request, leaf and replica: all contenders meet the same. In %d of the %d requests both replicas of some leaf were slow: "+
			"no second copy makes these fast, and with 1 %% of calls they are 1 %% of the requests (1 - 0.9999^100), so that the p99 lies on their border. The p99 beside it is of the other requests. "+
			"*Ratio* compares the p99 with the root that does not hedge.", most, all[1].took.N),
		Head: []string{"contender", "settings", "n", "p50", "p90", "p99", "ratio", "p99 where a replica was fast", "extra calls"}}
	base := unhedged(all)
	for _, t := range all {
		row := []string{t.name, t.config, fmt.Sprint(t.took.N), human(t.took.P50), human(t.p90), human(t.took.P99), "–", "–", "–"}
		if t.leaves > 1 {
			row[6], row[7], row[8] = fmt.Sprintf("%.2f×", over(t.took.P99, base.took.P99)), human(t.hopeful), fmt.Sprintf("%+.2f %%", t.extra*100)
		}
		table.Rows = append(table.Rows, row)
	}
	return table
}

// unhedged is the root without hedges, hedged the one as it comes.
func unhedged(all []tailed) tailed {
	return all[slices.IndexFunc(all, func(t tailed) bool { return t.name == rootName && t.every > 0 })]
}

func hedgedRoot(all []tailed) tailed {
	return all[slices.IndexFunc(all, func(t tailed) bool { return t.name == rootName && t.every == 0 })]
}

func over(a, b time.Duration) float64 {
	if b <= 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func tailTarget(all []tailed) Target {
	ours, base := hedgedRoot(all), unhedged(all)
	ratio := over(ours.took.P99, base.took.P99)
	return Target{What: fmt.Sprintf("hedging, 1 %% of calls %s slower in the mean, %d leaves: p99 over the unhedged one", human(slowAdd), ours.leaves), Want: "≤ 0.35×, extra calls ≤ 3.2 %",
		Measured: fmt.Sprintf("%.2f× (%s / %s), extra calls %.2f %%; both replicas were slow in %.2f %% of the requests, %.2f× without them (%s)", ratio, human(ours.took.P99), human(base.took.P99), ours.extra*100,
			100*float64(ours.hopeless)/float64(max(1, ours.took.N)), over(ours.hopeful, base.took.P99), human(ours.hopeful)),
		Met: ratio > 0 && ratio <= 0.35 && ours.extra <= 0.032}
}

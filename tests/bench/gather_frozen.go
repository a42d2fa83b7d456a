package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A node freezes: what is asked meanwhile.
const (
	frozenLeaves   = 10
	frozenRate     = 100 // requests a second
	frozenDeadline = "2s"
)

// episode is one freeze as one contender went through it.
type episode struct {
	base     time.Duration // p99 before
	back     time.Duration // after which the p99 was within twice that again
	recover  bool          // it was, before the node went on
	worst    time.Duration
	failed   int
	requests int
	config   string // of the contender
}

// gatherFrozen stops one of two nodes with SIGSTOP, while requests come at a steady rate.
func (r *rig) gatherFrozen(ctx context.Context, a amounts, report *Report) error {
	names := []string{rootName, "hedgedhttp", "failsafe-go", "bare"}
	all := map[string][]episode{}
	for i := range a.freezes {
		for _, name := range names {
			if name != rootName && i > 1 { // what the others do is clear by then
				continue
			}
			e, err := r.freeze(ctx, fmt.Sprintf("z%d-%s", i, strings.Fields(name)[0]), name, a)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			r.say("  %s: p99 %s, back %s (%v) after, worst %s, %d of %d failed", name, human(e.base), human(e.back), e.recover, human(e.worst), e.failed, e.requests)
			all[name] = append(all[name], e)
		}
	}
	table := Table{Title: "A frozen node: SIGSTOP to every second replica", Explain: fmt.Sprintf("%d leaves with a replica on each of two nodes, %d requests a second whatever becomes of them, each with a deadline of %s; "+
		"after %v one node is frozen for %v. *Back* is when the p99 of what was sent from then on is within twice that of before the freeze. Each episode is with new processes.",
		frozenLeaves, frozenRate, frozenDeadline, a.flows, a.frozen),
		Head: []string{"contender", "settings", "episodes", "requests", "p99 before", "back: median", "back: latest", "slowest", "failed"}}
	for _, name := range names {
		s := sumEpisodes(all[name])
		table.Rows = append(table.Rows, s.row(name))
		report.Figures = append(report.Figures, Figure{Part: "frozen", Contender: name, Leaves: frozenLeaves, Took: s.back, Failures: s.failed,
			Values: map[string]float64{"never_back": float64(s.never), "requests": float64(s.requests), "worst_ns": float64(s.worst), "p99_before_ns": float64(s.base)}})
	}
	report.Tables = append(report.Tables, table)
	ours := sumEpisodes(all[rootName])
	report.Targets = append(report.Targets, Target{What: "a frozen node: p99 back within twice its value, failed requests", Want: "≤ 1 s, 0 failed",
		Measured: fmt.Sprintf("latest %s, median %s, %d of %d failed (%d freezes, %d without a return)", human(ours.back.Max), human(ours.back.P50), ours.failed, ours.requests, ours.back.N+ours.never, ours.never),
		Met:      ours.never == 0 && ours.back.N > 0 && ours.back.Max <= time.Second && ours.failed == 0})
	return nil
}

// frozenSum is all episodes of a contender.
type frozenSum struct {
	back                    Summary
	never, failed, requests int
	worst, base             time.Duration
	config                  string
}

func sumEpisodes(all []episode) (s frozenSum) {
	var back, base []time.Duration
	for _, e := range all {
		if e.recover {
			back = append(back, e.back)
		} else {
			s.never++
		}
		s.failed, s.config = s.failed+e.failed, e.config
		s.requests += e.requests
		s.worst = max(s.worst, e.worst)
		base = append(base, e.base)
	}
	s.back, s.base = summarize(back), summarize(base).P50
	return s
}

func (s frozenSum) row(name string) []string {
	median, latest := human(s.back.P50), human(s.back.Max)
	if s.back.N == 0 {
		median = "never"
	}
	if s.never > 0 {
		latest = "never"
	}
	return []string{name, s.config, fmt.Sprint(s.back.N + s.never), fmt.Sprint(s.requests), human(s.base), median, latest, human(s.worst), fmt.Sprint(s.failed)}
}

// freeze is one episode.
func (r *rig) freeze(ctx context.Context, id, name string, a amounts) (e episode, err error) {
	fleet, err := r.leaves(ctx, id, frozenLeaves, 2)
	if err != nil {
		return e, err
	}
	defer fleet.stop()
	f, err := r.startFor(ctx, id, name, fleet.shards())
	if err != nil {
		return e, err
	}
	defer f.kill()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true}}
	defer client.CloseIdleConnections()
	if err := f.warm(ctx, client, 200, noScript); err != nil {
		return e, err
	}
	pid := fleet.nodes[1].pid()
	stop := make(chan error, 1)
	began := time.Now()
	var froze, thawed time.Duration
	go func() {
		if err := pause(ctx, a.flows); err != nil {
			stop <- err
			return
		}
		froze = time.Since(began)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			stop <- err
			return
		}
		_ = pause(ctx, a.frozen)
		thawed = time.Since(began)
		stop <- syscall.Kill(pid, syscall.SIGCONT)
	}()
	shots := f.fire(ctx, client, frozenRate, a.flows+a.frozen)
	if err := <-stop; err != nil {
		return e, err
	}
	e = judgeFreeze(shots, froze, thawed)
	e.config = f.config
	return e, ctx.Err()
}

func (r *rig) startFor(ctx context.Context, id, name string, shards [][]string) (*front, error) {
	switch name {
	case rootName:
		return r.gatherRoot(ctx, id+"-front", shards, "--deadline", frozenDeadline)
	case "hedgedhttp":
		return r.peer(ctx, id+"-front", name, "upto 2, after 5ms", shards, "-timeout", frozenDeadline, "-delay", "5ms")
	case "failsafe-go":
		return r.peer(ctx, id+"-front", name, "after its own quantile 0.985", shards, "-timeout", frozenDeadline)
	default:
		return r.peer(ctx, id+"-front", name, "errgroup, net/http", shards, "-timeout", frozenDeadline)
	}
}

// judgeFreeze sums up what happened to requests sent around a freeze.
func judgeFreeze(shots []shot, froze, thawed time.Duration) (e episode) {
	var before []time.Duration
	var during []shot
	for _, s := range shots {
		switch {
		case s.sent < froze && s.sent+s.took < froze:
			before = append(before, s.took)
		case s.sent < thawed:
			during = append(during, s)
			e.worst = max(e.worst, s.took)
		}
		if !s.ok {
			e.failed++
		}
	}
	e.requests = len(shots)
	if len(before) == 0 || len(during) == 0 {
		return e
	}
	slices.Sort(before)
	e.base = percentile(before, 99)
	slices.SortFunc(during, func(a, b shot) int { return int(a.sent - b.sent) })
	e.back, e.recover = backWithin(during, froze, 2*e.base)
	return e
}

// backWithin finds the earliest time after from, from which on 99 % of the shots took no longer than limit. A tenth of the shots at
// least have to be after it: fewer say nothing.
func backWithin(shots []shot, from, limit time.Duration) (time.Duration, bool) {
	// From the end: slow ones among those that follow.
	slow, best := 0, -1
	for i := len(shots) - 1; i >= 0; i-- {
		if !shots[i].ok || shots[i].took > limit {
			slow++
		}
		if n := len(shots) - i; slow*100 <= n && n*10 >= len(shots) {
			best = i
		}
	}
	if best < 0 {
		return 0, false
	}
	return max(0, shots[best].sent-from), true
}

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

// episode is one freeze as one contender went through it, or a control without one.
type episode struct {
	before   []time.Duration
	during   []shot        // sent while the node was frozen
	froze    time.Duration // when it did
	failed   int
	requests int
	config   string // of the contender
}

// gatherFrozen stops one of two nodes with SIGSTOP, while requests come at a steady rate.
func (r *rig) gatherFrozen(ctx context.Context, a amounts, report *Report) error {
	names := []string{rootName, "hedgedhttp", "failsafe-go", "bare"}
	all, controls := map[string][]episode{}, []episode{}
	for i := range a.freezes {
		for _, name := range names {
			if name != rootName && i > 1 { // what the others do is clear by then
				continue
			}
			e, err := r.freeze(ctx, fmt.Sprintf("z%d-%s", i, strings.Fields(name)[0]), name, a, true)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all[name] = append(all[name], e)
		}
		if i%2 == 0 {
			e, err := r.freeze(ctx, fmt.Sprintf("z%d-control", i), rootName, a, false)
			if err != nil {
				return fmt.Errorf("without a freeze: %w", err)
			}
			controls = append(controls, e)
		}
	}
	table := Table{Title: "A frozen node: SIGSTOP to every second replica", Explain: fmt.Sprintf("%d leaves with a replica on each of two nodes, %d requests a second whatever becomes of them, each with a deadline of %s; "+
		"after %v one node is frozen for %v. *Back* is when the p99 of all that was sent from then on, as long as the node was frozen, is within twice the p99 before; that one is of all episodes of the contender together, as one "+
		"episode has too few requests for it. Each episode is with new processes. In the row without a freeze nothing is stopped: it shows what this machine does to the same figures by itself.",
		frozenLeaves, frozenRate, frozenDeadline, a.flows, a.frozen),
		Head: []string{"contender", "settings", "episodes", "requests", "p99 before", "back: median", "back: p90", "back: latest", "slowest", "failed"}}
	add := func(name, config string, s frozenSum) {
		table.Rows = append(table.Rows, s.row(name, config))
		report.Figures = append(report.Figures, Figure{Part: "frozen", Contender: name, Config: config, Leaves: frozenLeaves, Took: s.back, Failures: s.failed,
			Values: map[string]float64{"never_back": float64(s.never), "requests": float64(s.requests), "worst_ns": float64(s.worst), "p99_before_ns": float64(s.base)}})
		r.say("  %s, %s: p99 %s, back median %s, latest %s, never %d of %d, worst %s, %d of %d failed", name, config, human(s.base), human(s.back.P50), human(s.back.Max), s.never, s.back.N+s.never, human(s.worst), s.failed, s.requests)
	}
	ours, calm := sumEpisodes(all[rootName]), sumEpisodes(controls)
	for _, name := range names {
		add(name, all[name][0].config, sumEpisodes(all[name]))
		if name == rootName {
			add(name, "the same, without a freeze", calm)
		}
	}
	report.Tables = append(report.Tables, table)
	report.Targets = append(report.Targets, Target{What: "a frozen node: p99 back within twice its value, failed requests", Want: "≤ 1 s, 0 failed",
		Measured: fmt.Sprintf("latest %s, median %s, slowest request %s, %d of %d failed (%d freezes, %d without a return; without a freeze latest %s, %d of %d without)", human(ours.back.Max), human(ours.back.P50), human(ours.worst),
			ours.failed, ours.requests, ours.back.N+ours.never, ours.never, human(calm.back.Max), calm.never, calm.back.N+calm.never),
		Met: ours.never == 0 && ours.back.N > 0 && ours.back.Max <= time.Second && ours.failed == 0})
	return nil
}

// frozenSum is all episodes of a contender.
type frozenSum struct {
	back                    Summary
	p90                     time.Duration
	never, failed, requests int
	worst, base             time.Duration
}

func sumEpisodes(all []episode) (s frozenSum) {
	var back, before []time.Duration
	for _, e := range all {
		before = append(before, e.before...)
	}
	if len(before) > 0 {
		slices.Sort(before)
		s.base = percentile(before, 99)
	}
	for _, e := range all {
		if after, ok := backWithin(e.during, e.froze, 2*s.base); ok {
			back = append(back, after)
		} else {
			s.never++
		}
		s.failed, s.requests = s.failed+e.failed, s.requests+e.requests
		for _, shot := range e.during {
			s.worst = max(s.worst, shot.took)
		}
	}
	if s.back = summarize(back); len(back) > 0 {
		slices.Sort(back)
		s.p90 = percentile(back, 90)
	}
	return s
}

func (s frozenSum) row(name, config string) []string {
	median, p90, latest := human(s.back.P50), human(s.p90), human(s.back.Max)
	if s.never > 0 {
		latest = fmt.Sprintf("never in %d", s.never)
	}
	if s.back.N == 0 {
		median, p90 = "never", "never"
	}
	return []string{name, config, fmt.Sprint(s.back.N + s.never), fmt.Sprint(s.requests), human(s.base), median, p90, latest, human(s.worst), fmt.Sprint(s.failed)}
}

// freeze is one episode; a control when nothing is stopped.
func (r *rig) freeze(ctx context.Context, id, name string, a amounts, really bool) (e episode, err error) {
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
		if !really {
			thawed = froze + a.frozen
			stop <- nil
			return
		}
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

// judgeFreeze sorts what happened to requests sent around a freeze.
func judgeFreeze(shots []shot, froze, thawed time.Duration) (e episode) {
	e.froze, e.requests = froze, len(shots)
	for _, s := range shots {
		switch {
		case s.sent < froze && s.sent+s.took < froze:
			e.before = append(e.before, s.took)
		case s.sent < thawed:
			e.during = append(e.during, s)
		}
		if !s.ok {
			e.failed++
		}
	}
	slices.SortFunc(e.during, func(a, b shot) int { return int(a.sent - b.sent) })
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

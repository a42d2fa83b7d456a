package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"retinue/tests/bench/script"
	"retinue/tests/bench/wire"
)

// Ends that are not answers: what hangs, and for how long.
const (
	endLeaves   = 10
	endHang     = time.Second
	endDeadline = 100 * time.Millisecond
	endAbort    = 30 * time.Millisecond // after which the client goes away
	endAlive    = 50 * time.Millisecond
	endAtOnce   = 8
)

// ended is how leaf calls learned that they are not wanted, measured from when they ceased to be.
type ended struct {
	answer Summary // of requests: after the deadline
	p999   time.Duration
	leaf   Summary // of leaf calls
	alive  int     // leaf calls that went on for longer than endAlive
	wrong  int     // requests that ended in another way
	fds    [2]int
}

// endFronts are the contenders of these parts, with a deadline.
func (r *rig) endFronts(ctx context.Context, id string, shards [][]string, deadline time.Duration) (fs fronts, err error) {
	f, err := r.gatherRoot(ctx, id+"-root", shards, "--deadline", deadline.String())
	if err != nil {
		return nil, err
	}
	fs = fronts{f}
	f, err = r.peer(ctx, id+"-bare", "bare", "", shards, "-timeout", deadline.String())
	if err != nil {
		return fs, err
	}
	return append(fs, f), nil
}

// gatherDeadline asks leaves that hang, with a short deadline.
func (r *rig) gatherDeadline(ctx context.Context, a amounts, report *Report) error {
	got, err := r.ends(ctx, "deadline", endDeadline, a.cut, func(ctx context.Context, f *front, client *http.Client, s script.Script) end {
		due := wire.Now() + int64(endDeadline)
		status, _, err := f.exchange(ctx, client, s)
		return end{due: due, late: time.Duration(wire.Now() - due), ok: err == nil && status == http.StatusGatewayTimeout}
	}, report)
	if err != nil {
		return err
	}
	show := func(e ended) string {
		return fmt.Sprintf("answer p50 %s, p99 %s, p99.9 %s; leaf calls cancelled p50 %s, p99 %s, latest %s", signed(e.answer.P50), signed(e.answer.P99), signed(e.p999), signed(e.leaf.P50), signed(e.leaf.P99), signed(e.leaf.Max))
	}
	report.Facts = append(report.Facts, Fact{fmt.Sprintf("after a deadline of %v that %d leaves do not keep, %d requests, %d at a time", endDeadline, endLeaves, a.cut, endAtOnce), show(got[0]), "bare: " + show(got[1])})
	ours := got[0]
	report.Targets = append(report.Targets,
		Target{"deadline: answer after it", "p99.9 ≤ 5 ms", fmt.Sprintf("p99.9 %s (n=%d, %d with another end)", signed(ours.p999), ours.answer.N, ours.wrong), ours.answer.N > 0 && ours.p999 <= 5*time.Millisecond && ours.wrong == 0},
		Target{"deadline: leaf work cancelled after it", "≤ 10 ms", fmt.Sprintf("p99 %s, latest %s (n=%d)", signed(ours.leaf.P99), signed(ours.leaf.Max), ours.leaf.N), ours.leaf.N > 0 && ours.leaf.Max <= 10*time.Millisecond})
	return nil
}

// gatherAbort has the client go away.
func (r *rig) gatherAbort(ctx context.Context, a amounts, report *Report) error {
	got, err := r.ends(ctx, "abort", 10*time.Second, a.cut, func(ctx context.Context, f *front, client *http.Client, s script.Script) end {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		due := make(chan int64, 1)
		timer := time.AfterFunc(endAbort, func() {
			due <- wire.Now()
			cancel()
		})
		defer timer.Stop()
		if _, _, err := f.exchange(ctx, client, s); err == nil || ctx.Err() == nil {
			return end{} // it was answered
		}
		return end{due: <-due, ok: true}
	}, report)
	if err != nil {
		return err
	}
	show := func(e ended) string {
		return fmt.Sprintf("leaf calls cancelled p50 %s, p99 %s, latest %s; alive after %v: %d of %d; open files %d → %d", human(e.leaf.P50), human(e.leaf.P99), human(e.leaf.Max), endAlive, e.alive, e.leaf.N, e.fds[0], e.fds[1])
	}
	report.Facts = append(report.Facts, Fact{fmt.Sprintf("after the client went away, %d requests to %d leaves that hang, %d at a time", a.cut, endLeaves, endAtOnce), show(got[0]), "bare: " + show(got[1])})
	ours := got[0]
	report.Targets = append(report.Targets, Target{fmt.Sprintf("client aborts: leaf requests alive after %v", endAlive), "0", fmt.Sprintf("%d of %d, latest %s", ours.alive, ours.leaf.N, human(ours.leaf.Max)), ours.alive == 0 && ours.leaf.N > 0})
	return nil
}

// end is how one request ended.
type end struct {
	due  int64         // when its leaf calls ceased to be wanted, on the machine's monotonic clock
	late time.Duration // of the answer
	ok   bool          // it ended as it should
}

// meeter has one request meet its end.
type meeter func(ctx context.Context, f *front, client *http.Client, s script.Script) end

// ends has n requests meet an end, and asks the leaves when they learned of it.
func (r *rig) ends(ctx context.Context, id string, deadline time.Duration, n int, do meeter, report *Report) ([]ended, error) {
	fleet, err := r.leaves(ctx, id, endLeaves, 1)
	if err != nil {
		return nil, err
	}
	defer fleet.stop()
	fs, err := r.endFronts(ctx, id, fleet.shards(), deadline)
	defer func() { fs.stop() }()
	if err != nil {
		return nil, err
	}
	var all []ended
	for _, f := range fs {
		e, err := f.meetEnds(ctx, fleet.nodes[0], n, do)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
		report.Figures = append(report.Figures, Figure{Part: id, Contender: f.name, Leaves: endLeaves, Took: e.leaf, Failures: e.wrong,
			Values: map[string]float64{"answer_p50_ns": float64(e.answer.P50), "answer_p999_ns": float64(e.p999), "alive": float64(e.alive), "leaf_calls": float64(e.leaf.N)}})
	}
	return all, nil
}

func (f *front) meetEnds(ctx context.Context, leaf *node, n int, do meeter) (e ended, err error) {
	client := newClient(2 * endAtOnce)
	defer client.CloseIdleConnections()
	if err := f.warm(ctx, client, 20, noScript); err != nil {
		return e, err
	}
	got := make([]end, n)
	one := func(i int) { got[i] = do(ctx, f, client, script.Script{N: uint64(i), Hang: endHang}) }
	together(endAtOnce, min(n, 40), one) // as many connections as it takes are open now
	if _, err := leaf.over(ctx); err != nil {
		return e, err
	}
	e.fds[0] = openFiles(f.pid())
	together(endAtOnce, n, one)
	calls, err := leaf.over(ctx)
	if err != nil {
		return e, err
	}
	e.fds[1] = openFiles(f.pid())
	e.judge(calls, got)
	return e, nil
}

// judge holds the ends of leaf calls against the times when they were due.
func (e *ended) judge(calls []script.Call, got []end) {
	late := make([]time.Duration, 0, len(got))
	for _, g := range got {
		if g.ok {
			late = append(late, g.late)
		} else {
			e.wrong++
		}
	}
	e.answer = summarize(late)
	if slices.Sort(late); len(late) > 0 {
		e.p999 = percentile(late, 99.9)
	}
	var after []time.Duration
	for _, c := range calls {
		if !got[c.N].ok {
			continue
		}
		d := time.Duration(c.Ended - got[c.N].due)
		if after = append(after, d); d > endAlive {
			e.alive++
		}
	}
	e.leaf = summarize(after)
}

// over waits until no call hangs any more, and returns those that did since the last time.
func (n *node) over(ctx context.Context) (calls []script.Call, err error) {
	err = eventually(ctx, endHang+5*time.Second, "leaves are quiet", func(ctx context.Context) error {
		var hanging int
		if err := getJSON(ctx, n.Control+"/hanging", &hanging); err != nil {
			return err
		}
		if hanging > 0 {
			return fmt.Errorf("%d calls hang", hanging)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return calls, getJSON(ctx, n.Control+"/over", &calls)
}

func openFiles(pid int) int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	return len(files)
}

// What is asked at once when memory is measured.
const (
	floodLeaves = 10
	floodSize   = 256 << 10
	floodLimit  = 64 << 20 // the root's --limit-gathered, as it comes
	floodSpare  = 30 << 20
)

// gatherMemory has many clients ask for large answers at once.
func (r *rig) gatherMemory(ctx context.Context, a amounts, report *Report) error {
	fleet, err := r.leaves(ctx, "memory", floodLeaves, 1)
	if err != nil {
		return err
	}
	defer fleet.stop()
	fs, err := r.endFronts(ctx, "memory", fleet.shards(), 10*time.Second)
	defer func() { fs.stop() }()
	if err != nil {
		return err
	}
	var shown []string
	var peaks []int64
	for _, f := range fs {
		idle, err := rss(f.pid())
		if err != nil {
			return err
		}
		whole, failed, took := f.flood(ctx, a)
		peak, err := peakRSS(f.pid())
		if err != nil {
			return err
		}
		peaks = append(peaks, peak)
		shown = append(shown, fmt.Sprintf("%s at most, %s before; %d whole answers, %d refused or failed, %.0f MB/s", mebibytes(peak), mebibytes(idle), whole, failed,
			float64(whole)*floodLeaves*floodSize/1e6/took.Seconds()))
		report.Figures = append(report.Figures, Figure{Part: "memory", Contender: f.name, Leaves: floodLeaves, Failures: failed,
			Values: map[string]float64{"peak_bytes": float64(peak), "idle_bytes": float64(idle), "whole": float64(whole)}})
	}
	report.Facts = append(report.Facts, Fact{fmt.Sprintf("resident memory with %d clients that ask for %s each, without a pause, for %v", a.clients, mebibytes(floodLeaves*floodSize), a.flood), shown[0], "bare: " + strings.Join(shown[1:], ", ")})
	report.Targets = append(report.Targets, Target{fmt.Sprintf("memory under %d concurrent requests, --limit-gathered %s", a.clients, mebibytes(floodLimit)), "≤ the limit and 30 MiB", mebibytes(peaks[0]), peaks[0] <= floodLimit+floodSpare})
	return nil
}

// flood asks with many clients for as long as the part takes.
func (f *front) flood(ctx context.Context, a amounts) (whole, failed int, took time.Duration) {
	client := newClient(a.clients)
	defer client.CloseIdleConnections()
	var good, bad atomic.Int64
	began := time.Now()
	together(a.clients, a.clients, func(i int) {
		for time.Since(began) < a.flood && ctx.Err() == nil {
			if _, err := f.ask(ctx, client, script.Script{N: uint64(i), Size: floodSize}); err != nil {
				bad.Add(1)
			} else {
				good.Add(1)
			}
		}
	})
	return int(good.Load()), int(bad.Load()), time.Since(began)
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

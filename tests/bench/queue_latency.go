package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
)

// latency publishes at half of the rate that the slowest has, one item after another, and tells how old each was when the worker got it, or, with
// a command for each item, when its output was under its last name.
func (q *queueRig) latency(ctx context.Context, report *Report) error {
	worker := "From before the publication to the worker, "
	_, closeDisk, err := q.openDisk(ctx)
	if err == nil {
		defer closeDisk()
	}
	for _, part := range []func(kind string) error{
		func(kind string) error {
			return q.latencies(ctx, report, latencyTable{
				title: "Latency at half load: " + kind, table: kind + ", http", ends: worker + "one POST for each", size: kibi, beside: math.Inf(1), rounds: latencyRounds,
				most: []added{{}, {"", 300 * time.Microsecond, 3 * time.Millisecond}}}, kind,
				[]*queuer{q.loop(kind, "http"), q.httpWorker(q.coordinator(kind, queueName, "http", configHTTP))})
		},
		func(kind string) error {
			return q.latencies(ctx, report, latencyTable{
				title: "Latency in batches of up to 100: " + kind, table: kind + ", batch", ends: worker + "with whatever else waits, at no more than 3,000 items/s, which one publisher can do", size: kibi, beside: 6000, rounds: latencyRounds / 2,
				most: make([]added, 2)}, kind,
				[]*queuer{q.loop(kind, "batch"), q.httpWorker(q.coordinator(kind, queueName, "http, batch 100", configBatch))})
		},
		func(kind string) error {
			return q.latencies(ctx, report, latencyTable{
				title: "Latency of a command for each item, at half load: " + kind, table: kind + ", file", ends: output, size: kibi, slowest: slowest(report, kind+", file"), guess: 100, rounds: latencyRounds,
				most: []added{{}, {}, {", no fsync", time.Millisecond, 8 * time.Millisecond}, {", fsync", 3 * time.Millisecond, 20 * time.Millisecond}, {}}}, kind,
				[]*queuer{arriving(q.loop(kind, "exec")), arriving(q.syncLoop(kind)), arriving(q.exec(kind, false)), arriving(q.exec(kind, true)), arriving(q.watch(kind))})
		},
		func(kind string) error {
			return q.latencies(ctx, report, latencyTable{
				title: "Latency of items of 1 MiB, at half load: " + kind, table: kind + ", 1 MiB", ends: worker + "one POST for each", size: mebi, beside: math.Inf(1), rounds: latencyRounds / 2, most: make([]added, 2)}, kind,
				[]*queuer{q.loop(kind, "http"), q.httpWorker(q.coordinator(kind, queueName, "http", configHTTP))})
		},
		func(kind string) error {
			return q.latencies(ctx, report, latencyTable{
				title: "Latency of items of 1 MiB, a command for each, at half load: " + kind, table: kind + ", file, 1 MiB", ends: output, size: mebi, beside: math.Inf(1), rounds: latencyRounds / 2, most: make([]added, 3)}, kind,
				[]*queuer{arriving(q.loop(kind, "exec")), arriving(q.exec(kind, false)), arriving(q.watch(kind))})
		},
	} {
		if err := q.each(part); err != nil {
			return err
		}
	}
	return nil
}

// output is what the latency of a command ends with.
const output = "From before the publication to the output under its last name"

// latencyTable is what a table of latencies says, and what is promised of each contender beside the first.
type latencyTable struct {
	title, table, ends string
	size               int     // bytes of an item
	slowest, guess     float64 // items/s, as measured before, and where nothing was
	beside             float64 // in place of these: as measured here, and no more than this
	rounds             int
	most               []added
}

const (
	latencyRounds = 8           // how often each contender has its turn, where something is promised
	latencyWarmUp = time.Second // of each turn, which begins a process: not counted
)

// added is the most that a contender may add to the loop's latency, and what tells it from others; zero: nothing is promised.
type added struct {
	name     string
	p50, p99 time.Duration
}

// slowest is the least rate of a table.
func slowest(report *Report, part string) float64 {
	least := math.Inf(1)
	for _, f := range report.Figures {
		if rate := f.Values["items_per_second"]; f.Part == part && rate > 0 {
			least = min(least, rate)
		}
	}
	if math.IsInf(least, 1) {
		return 0
	}
	return least
}

func (q *queueRig) latencies(ctx context.Context, report *Report, l latencyTable, kind string, all []*queuer) error {
	rate := l.slowest / 2
	if rate == 0 {
		rate = l.guess / 2
	}
	load := ""
	if l.beside > 0 {
		rate = l.beside / 2
		for _, c := range all {
			c.size = l.size
			q.say("%s, most: %s", l.table, strings.TrimSpace(c.name+" "+c.config))
			most, err := q.sustained(ctx, kind, c, 2*q.amounts.latency)
			if err != nil {
				return err
			}
			rate = min(rate, most/2)
		}
		load = ", half of what the slowest handles while they are published beside it"
	}
	t := Table{Title: l.title, Explain: fmt.Sprintf("%s; items of %d KiB, %s items/s%s, %d times %v, each contender in turn, each after a second that is not counted. "+
		"Added is the median of what it was in each of these rounds, as broker and disk are not the same in all of them.", l.ends, l.size/kibi, count(rate), load, l.rounds, q.amounts.latency),
		Head: []string{"contender", "settings", "n", "p50", "p99", "max", "added p50", "added p99"}}
	took, rounds := make([][]time.Duration, len(all)), make([][]Summary, len(all))
	for round := range l.rounds { // one after the other: what the broker and the disk do meanwhile is in all of them
		for i, c := range all {
			c.size = l.size
			q.say("%s, latency, round %d of %d: %s", l.table, round+1, l.rounds, strings.TrimSpace(c.name+" "+c.config))
			part, err := q.paced(ctx, kind, c, rate, q.amounts.latency)
			if err != nil {
				return err
			}
			took[i] = append(took[i], part...)
			rounds[i] = append(rounds[i], summarize(part))
		}
	}
	for i, c := range all {
		s := summarize(took[i])
		row := []string{c.name, c.config, fmt.Sprint(s.N), human(s.P50), human(s.P99), human(s.Max), "–", "–"}
		if i > 0 {
			p50, p99 := addedOf(rounds[i], rounds[0])
			row[6], row[7] = signed(p50), signed(p99)
			if most := l.most[i]; most.p50 > 0 {
				q.targets = append(q.targets, Target{What: "added latency at half load, " + l.table + most.name, Want: fmt.Sprintf("p50 ≤ %s, p99 ≤ %s", human(most.p50), human(most.p99)), Measured: fmt.Sprintf("p50 %s, p99 %s (n=%d)", signed(p50), signed(p99), s.N),
					Met: p50 <= most.p50 && p99 <= most.p99})
			}
		}
		t.Rows = append(t.Rows, row)
		report.Figures = append(report.Figures, Figure{Part: l.table + ", latency", Contender: c.name, Config: c.config, Took: s})
	}
	report.Tables = append(report.Tables, t)
	return nil
}

// addedOf is the median of what a contender added to another's percentiles, round by round.
func addedOf(rounds, base []Summary) (p50, p99 time.Duration) {
	var medians, tails []float64
	for i := range rounds {
		medians = append(medians, float64(rounds[i].P50-base[i].P50))
		tails = append(tails, float64(rounds[i].P99-base[i].P99))
	}
	return time.Duration(middle(medians)), time.Duration(middle(tails))
}

// paced publishes at a rate, and returns how long each item took that was published after the warm-up.
func (q *queueRig) paced(ctx context.Context, kind string, c *queuer, rate float64, lasts time.Duration) (took []time.Duration, err error) {
	err = q.beside(ctx, kind, c, func(publish func(context.Context, int) error, seen func(int) error) error {
		sent := 1
		for _, lasts := range []time.Duration{latencyWarmUp, lasts} {
			began := time.Now()
			err := inParallel(func(send func(func() error)) error {
				for n := 0; time.Since(began) < lasts; n++ {
					if err := pause(ctx, time.Until(began.Add(time.Duration(float64(n)/rate*float64(time.Second))))); err != nil {
						return err
					}
					number := sent
					sent++
					send(func() error { return publish(ctx, number) })
				}
				return nil
			})
			if err != nil {
				return err
			}
			if err := seen(sent); err != nil {
				return err
			}
			if took, err = c.latencies(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return took, err
}

// sustained is how many items a second a contender handles while they are published beside it, as many as it can take: what half a load is half of.
// The rates of the other parts are of items that were there before, and whoever publishes needs processors too.
func (q *queueRig) sustained(ctx context.Context, kind string, c *queuer, lasts time.Duration) (rate float64, err error) {
	backlog, look := 1000, 100
	if c.size >= mebi {
		backlog, look = 32, 8
	}
	err = q.beside(ctx, kind, c, func(publish func(context.Context, int) error, seen func(int) error) error {
		sent, began := 1, time.Now()
		err := inParallel(func(send func(func() error)) error {
			for time.Since(began) < lasts {
				for range look {
					number := sent
					sent++
					send(func() error { return publish(ctx, number) })
				}
				if sent > backlog {
					if err := seen(sent - backlog); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := seen(sent); err != nil {
			return err
		}
		rate = float64(sent) / time.Since(began).Seconds()
		_, err = c.latencies(ctx)
		return err
	})
	return rate, err
}

// inParallel does up to 64 things at once: one answer of the broker must not hold up the next item.
func inParallel(all func(send func(func() error)) error) error {
	limit, failed := make(chan struct{}, 64), make(chan error, 1)
	err := all(func(do func() error) {
		limit <- struct{}{}
		go func() {
			defer func() { <-limit }()
			if err := do(); err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		}()
	})
	for range cap(limit) {
		limit <- struct{}{}
	}
	select {
	case err = <-failed:
	default:
	}
	return err
}

// beside runs a contender, and does something beside it once it has taken its first item, number 0.
func (q *queueRig) beside(ctx context.Context, kind string, c *queuer, do func(publish func(context.Context, int) error, seen func(int) error) error) error {
	if err := q.fresh(c); err != nil {
		return err
	}
	defer os.RemoveAll(c.folder)
	if c.helper != nil {
		worker, err := c.helper()
		if err != nil {
			return err
		}
		defer worker.kill()
		if err := eventually(ctx, 20*time.Second, "the worker listens", func(context.Context) error { _, err := os.Stat(c.socket); return err }); err != nil {
			return err
		}
	}
	if c.arrivals != nil {
		if err := c.arrivals.open(c); err != nil {
			return err
		}
		defer c.arrivals.close()
	}
	publish, closing, err := q.publisher(ctx, kind, c)
	if err != nil {
		return err
	}
	defer closing()
	p, err := c.start()
	if err != nil {
		return err
	}
	defer p.kill()
	seen := func(n int) error {
		return eventually(ctx, 60*time.Second, fmt.Sprintf("%s has taken %d items", c.name, n), func(ctx context.Context) error {
			got, err := c.count(ctx)
			if err == nil && got < n {
				err = fmt.Errorf("it has %d\n%s", got, p.tail())
			}
			return err
		})
	}
	if err := publish(ctx, 0); err != nil { // it is up
		return err
	}
	if err := seen(1); err != nil {
		return err
	}
	if _, err := c.latencies(ctx); err != nil {
		return err
	}
	return do(publish, seen)
}

// publisher publishes one item that begins with the time.
func (q *queueRig) publisher(ctx context.Context, kind string, c *queuer) (func(context.Context, int) error, func(), error) {
	if strings.HasPrefix(c.name, queueName) {
		src, err := dial.Open(ctx, q.brokers[kind].URL, source.Options{Queue: c.queue})
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, n int) error {
			return src.Publish(ctx, source.Out{ID: fmt.Sprint(n), Body: payload(c.size, true)})
		}, func() { src.Close(context.WithoutCancel(ctx)) }, nil
	}
	return q.handPublisher(ctx, kind, c.queue, c.size)
}

// arriving makes a contender's outputs tell when they came.
func arriving(c *queuer) *queuer {
	a := &arrivals{}
	c.arrivals, c.count, c.latencies = a, a.count, a.latencies
	return c
}

// arrivals are the outputs that are renamed into a contender's folder. The kernel tells of each; how old its item was is in it.
type arrivals struct {
	dir    string
	output func(name string) string // the file below dir that begins with the time of the publication
	events *os.File
	ended  chan struct{}

	mu   sync.Mutex
	n    int
	took []time.Duration
	err  error
}

func (a *arrivals) open(c *queuer) error {
	a.dir, a.output = c.folder, func(name string) string { return name }
	if !strings.HasPrefix(c.name, loopName) {
		a.dir, a.output = filepath.Join(c.folder, "done", c.queue), func(name string) string { return filepath.Join(name, "stdout") }
	}
	if err := os.MkdirAll(a.dir, 0o777); err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(fd, a.dir, unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return err
	}
	a.events, a.ended = os.NewFile(uintptr(fd), "inotify"), make(chan struct{})
	go a.follow()
	return nil
}

func (a *arrivals) close() {
	a.events.Close()
	<-a.ended
}

func (a *arrivals) follow() {
	defer close(a.ended)
	buf := make([]byte, 64<<10)
	for {
		n, err := a.events.Read(buf)
		now := time.Now()
		if err != nil {
			return
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
			a.add(now, strings.TrimRight(string(rest[unix.SizeofInotifyEvent:end]), "\x00"))
			rest = rest[end:]
		}
	}
}

func (a *arrivals) add(now time.Time, name string) {
	body, err := os.ReadFile(filepath.Join(a.dir, a.output(name)))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	switch {
	case err != nil:
		a.err = err
	default:
		at, err := strconv.ParseInt(string(body[:min(19, len(body))]), 10, 64)
		if err != nil {
			a.err = fmt.Errorf("%s does not begin with a time: %w", name, err)
			return
		}
		a.took = append(a.took, now.Sub(time.Unix(0, at)))
	}
}

func (a *arrivals) count(context.Context) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n, a.err
}

// latencies are those since they were asked for last.
func (a *arrivals) latencies(context.Context) ([]time.Duration, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	took := a.took
	a.took = nil
	return took, a.err
}

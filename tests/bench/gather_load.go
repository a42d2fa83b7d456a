package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"retinue/tests/bench/script"
)

// newClient is a client of contenders. It keeps its connections.
func newClient(conns int) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: conns, DisableCompression: true}}
}

// ask sends one request and reads the whole answer.
func (f *front) ask(ctx context.Context, client *http.Client, s script.Script) (time.Duration, error) {
	began := time.Now()
	status, got, err := f.exchange(ctx, client, s)
	took := time.Since(began)
	want := int64(f.leaves) * script.Body
	if s.Size > 0 {
		want = int64(f.leaves) * int64(s.Size)
	}
	switch {
	case err != nil:
		return took, err
	case status != http.StatusOK:
		return took, fmt.Errorf("%s: status %d", f.name, status)
	case got != want:
		return took, fmt.Errorf("%s: %d bytes instead of %d", f.name, got, want)
	}
	return took, nil
}

func (f *front) exchange(ctx context.Context, client *http.Client, s script.Script) (status int, got int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+"/q"+s.Query(), nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	got, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, got, err
}

// shot is one request and how it went.
type shot struct {
	n    uint64
	sent time.Duration // since the first
	took time.Duration
	ok   bool
}

// warmN is where the numbers of requests begin that are not counted.
const warmN = 1 << 40

// warm opens connections and lets contenders learn. One request at least has to be answered; others may be too slow for a deadline.
func (f *front) warm(ctx context.Context, client *http.Client, n int, say func(f *front, n uint64) script.Script) error {
	failed := 0
	for i := range n {
		if _, err := f.ask(ctx, client, say(f, warmN+uint64(i))); err != nil {
			if failed++; failed == n || ctx.Err() != nil {
				return fmt.Errorf("warming up: %w\n%s", err, f.tail())
			}
		}
	}
	return nil
}

// turns has the contenders answer n requests each, a burst in every round, fewer when time is up.
func (r *rig) turns(ctx context.Context, fs fronts, n, burst int, limit time.Duration, say func(f *front, n uint64) script.Script) error {
	client := newClient(4)
	defer client.CloseIdleConnections()
	for _, f := range fs {
		if err := f.warm(ctx, client, max(4, min(n/10, 50)), say); err != nil {
			return err
		}
	}
	if err := fs.processorTime(func(f *front, used time.Duration) { f.began = used }); err != nil {
		return err
	}
	order, end := slices.Clone(fs), time.Now().Add(limit)
	for round := 0; round*burst < n; round++ {
		if time.Now().After(end) {
			r.say("  time is up after %d of %d requests", round*burst, n)
			break
		}
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, f := range order {
			if f.every > 1 && round%f.every != 0 {
				continue
			}
			for range burst {
				s := say(f, f.sent)
				f.sent++
				took, err := f.ask(ctx, client, s)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					f.failures++
					r.say("  %v", err)
					continue
				}
				f.shots = append(f.shots, shot{n: s.N, took: took, ok: true})
			}
		}
	}
	return fs.processorTime(func(f *front, used time.Duration) { f.used = used - f.began })
}

// processorTime reads what each contender that is a process has used so far.
func (fs fronts) processorTime(note func(f *front, used time.Duration)) error {
	for _, f := range fs {
		if f.process == nil {
			continue
		}
		used, err := cpuTime(f.pid())
		if err != nil {
			return err
		}
		note(f, used)
	}
	return nil
}

func (f *front) took() []time.Duration { return times(f.shots, func(shot) bool { return true }) }

// times are how long those shots took that count.
func times(shots []shot, counts func(shot) bool) []time.Duration {
	var all []time.Duration
	for _, s := range shots {
		if s.ok && counts(s) {
			all = append(all, s.took)
		}
	}
	return all
}

// perCall is the processor time of a leaf call.
func (f *front) perCall() time.Duration {
	if n := len(f.shots) + f.failures; n > 0 {
		return f.used / time.Duration(n*f.leaves)
	}
	return 0
}

// fire sends requests at a steady rate, whatever becomes of them, and returns when all have ended.
func (f *front) fire(ctx context.Context, client *http.Client, rate int, d time.Duration) []shot {
	shots := make([]shot, int(d.Seconds()*float64(rate)))
	var all sync.WaitGroup
	began := time.Now()
	for i := range shots {
		at := time.Duration(i) * time.Second / time.Duration(rate)
		if pause(ctx, at-time.Since(began)) != nil {
			break
		}
		all.Go(func() {
			sent := time.Since(began)
			took, err := f.ask(ctx, client, script.Script{})
			shots[i] = shot{n: uint64(i), sent: sent, took: took, ok: err == nil}
		})
	}
	all.Wait()
	return shots
}

// together has so many clients do something at once, n times in all.
func together(clients, n int, do func(i int)) {
	next := make(chan int)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

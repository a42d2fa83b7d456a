package coordinator

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source/memory"
	"retinue/coordinator/worker"
)

func scheduled(t *testing.T, cron, zone string) Config {
	t.Helper()
	s, err := ScheduleSettings{Name: "tick", Cron: cron, Zone: zone, Body: "now", Key: "k"}.schedule()
	if err != nil {
		t.Fatal(err)
	}
	cfg := quick()
	cfg.Schedules = []Schedule{s}
	return cfg
}

// Ticks are moments, whatever the clocks of the zone do.
func TestTicks(t *testing.T) {
	for _, c := range []struct{ cron, zone, after, now, want string }{
		{"30 3 * * *", "", "2026-03-01T00:00:00Z", "2026-03-01T03:29:59Z", ""},
		{"30 3 * * *", "", "2026-03-01T00:00:00Z", "2026-03-01T03:30:00Z", "tick@2026-03-01T03:30:00Z"},
		{"30 3 * * *", "", "2026-03-01T03:30:00Z", "2026-03-01T03:30:00Z", ""},
		{"30 3 * * *", "Europe/Berlin", "2026-03-01T00:00:00Z", "2026-03-01T02:30:00Z", "tick@2026-03-01T02:30:00Z"},
		{"* * * * *", "", "2026-03-01T00:00:30Z", "2026-03-01T00:10:30Z", "tick@2026-03-01T00:10:00Z"}, // only the last
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z", ""},            // that night has no 2:30
		{"30 3 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z", "tick@2026-10-25T02:30:00Z"},
	} {
		at := func(text string) time.Time {
			tm, err := time.Parse(time.RFC3339, text)
			if err != nil {
				t.Fatal(err)
			}
			return tm
		}
		s := scheduled(t, c.cron, c.zone).Schedules[0]
		got := ""
		if tick := s.last(at(c.after), at(c.now)); !tick.IsZero() {
			got = s.id(tick)
		}
		if got != c.want {
			t.Errorf("%s in %q after %s until %s: %q, want %q", c.cron, c.zone, c.after, c.now, got, c.want)
		}
	}
}

// ran counts executions by item.
type ran struct {
	mu sync.Mutex
	n  map[string]int
}

func (r *ran) worker() workerFunc {
	return func(_ context.Context, task *item.Task) worker.Verdict {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.n == nil {
			r.n = map[string]int{}
		}
		r.n[task.ID]++
		return worker.Verdict{Kind: worker.Ack, Output: &worker.Output{Result: task.Body}}
	}
}

// Three coordinators, one item; one that starts later, after the item has ended, adds none.
func TestTickOnce(t *testing.T) {
	for name, point := range map[string]commit.Point{"journal": commit.Journal{KV: &memoryKV{}}, "rename": commit.Rename{Dir: t.TempDir()}} {
		t.Run(name, func(t *testing.T) {
			var runs ran
			broker := memory.New()
			cfg := scheduled(t, "0 0 1 1 *", "") // not now
			now := time.Now()
			tick := now.Truncate(time.Second)
			var stages []*stage
			for range 3 {
				stages = append(stages, startStage(t, broker, cfg, point, runs.worker()))
			}
			var wg sync.WaitGroup
			for _, s := range stages {
				wg.Go(func() {
					if !s.times.tick(t.Context(), 0, tick, now) {
						t.Error("not published")
					}
				})
			}
			wg.Wait()
			id := cfg.Schedules[0].id(tick)
			if _, got := stages[0].call(t, "GET", "/v1/items/"+id+"?wait=60s", ""); got["state"] != "done" || got["result"] != "now" {
				t.Fatalf("%v", got)
			}
			late := startStage(t, broker, cfg, point, runs.worker())
			if !late.times.tick(t.Context(), 0, tick, now) || late.times.list()[0].How != "elsewhere" {
				t.Errorf("%+v", late.times.list())
			}
			if !late.times.tick(t.Context(), 0, tick.Add(-time.Hour), now) || late.times.list()[0].How != "missed" {
				t.Errorf("%+v", late.times.list())
			}
			settled(t, broker, "q")
			runs.mu.Lock()
			defer runs.mu.Unlock()
			if len(runs.n) != 1 || runs.n[id] != 1 {
				t.Errorf("runs: %v", runs.n)
			}
		})
	}
}

// Killed between the publication and its mark: it is published again, as the same item.
func TestTickKilledBetween(t *testing.T) {
	var runs ran
	broker, kv := memory.New(), &memoryKV{}
	cfg := scheduled(t, "0 0 1 1 *", "")
	s := startStage(t, broker, cfg, commit.Journal{KV: kv}, runs.worker())
	s.call(t, "POST", "/v1/queues/q:pause", "")
	kv.mu.Lock()
	kv.fail = func() error { return errors.New("killed") }
	kv.mu.Unlock()
	now := time.Now()
	tick := now.Truncate(time.Second)
	if s.times.tick(t.Context(), 0, tick, now) || !strings.Contains(s.times.list()[0].Error, "killed") {
		t.Errorf("%+v", s.times.list())
	}
	kv.mu.Lock()
	kv.fail = nil
	kv.mu.Unlock()
	other := startStage(t, broker, cfg, commit.Journal{KV: kv}, runs.worker())
	if !other.times.tick(t.Context(), 0, tick, now) {
		t.Errorf("%+v", other.times.list())
	}
	id := cfg.Schedules[0].id(tick)
	if _, got := other.call(t, "GET", "/v1/items/"+id+"?wait=60s", ""); got["state"] != "done" {
		t.Errorf("%v", got)
	}
	runs.mu.Lock()
	defer runs.mu.Unlock()
	if runs.n[id] != 1 {
		t.Errorf("runs: %v", runs.n)
	}
}

// The tick of this minute is caught up with at the start, and no other.
func TestTimetable(t *testing.T) {
	var runs ran
	began := time.Now()
	s := startStage(t, memory.New(), scheduled(t, "* * * * *", ""), commit.Journal{KV: &memoryKV{}}, runs.worker())
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, got := s.call(t, "GET", "/v1/queues/q/schedules", "")
		if views, ok := got["schedules"].([]any); ok && views[0].(map[string]any)["how"] == "published" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v", got)
		}
	}
	ticks := int(time.Since(began)/time.Minute) + 2
	st, err := s.Stats(t.Context())
	if n := len(s.broker.Items("q")) + int(st.Totals.Ended[item.Done]); err != nil || n > ticks {
		t.Errorf("%d items in %s", n, time.Since(began))
	}
	if view := s.times.list()[0]; !view.Next.After(began) || view.Zone != "UTC" {
		t.Errorf("%+v", view)
	}
}

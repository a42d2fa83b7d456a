package scale

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"retinue/internal/clock"
)

func rules() Config {
	return Config{Queue: "q", Job: "j", Group: "worker", ID: "a", Min: 0, Max: 50, Slots: 4, Target: time.Minute, Cooldown: time.Minute, Drain: 20 * time.Second, Assumed: time.Second, Interval: time.Second}
}

const start = clock.Instant(time.Hour)

// measured is a report that makes an item last so long.
func measured(took time.Duration) []Load {
	return []Load{{ID: "m", Items: 100, BusyS: 100 * took.Seconds(), Index: -1}}
}

func TestDecisions(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		seen   Seen
		wanted int
		count  int
		limit  string // part of one
	}{
		"nothing to do, nobody there":             {seen: Seen{}, wanted: 0, count: 0},
		"the first item":                          {seen: Seen{Ready: 1}, wanted: 1, count: 1},
		"the last one is still in flight":         {seen: Seen{InFlight: 1, Count: 1, Placed: 1, Running: 1}, wanted: 1, count: 1},
		"in flight counts":                        {seen: Seen{Ready: 960, InFlight: 480, Count: 6, Placed: 6, Running: 6, Loads: measured(time.Second)}, wanted: 6, count: 6},
		"delayed items do not":                    {seen: Seen{Delayed: 1000}, wanted: 0, count: 0},
		"from none to one":                        {seen: Seen{Ready: 10000}, wanted: 42, count: 1, limit: "twice"},
		"twice of what runs":                      {seen: Seen{Ready: 10000, Count: 3, Placed: 3, Running: 3}, wanted: 42, count: 6, limit: "twice of the 3 that run"},
		"what is pending does not count for it":   {seen: Seen{Ready: 10000, Count: 8, Placed: 8, Running: 3}, wanted: 42, count: 8, limit: "3 of 8 run yet"},
		"no room in the cluster":                  {seen: Seen{Ready: 10000, Count: 8, Placed: 4, Running: 4}, wanted: 42, count: 8, limit: "placed 4 of 8"},
		"more than the items can fill":            {seen: Seen{Ready: 3, Loads: measured(time.Hour)}, wanted: 45, count: 1, limit: "3 items fill 1 workers"},
		"the maximum":                             {change: func(c *Config) { c.Max = 2 }, seen: Seen{Ready: 10000, Count: 2, Placed: 2, Running: 2}, wanted: 42, count: 2, limit: "maximum is 2"},
		"somebody has set more than the maximum":  {change: func(c *Config) { c.Max = 2 }, seen: Seen{Ready: 10000, Count: 9, Placed: 9, Running: 9}, wanted: 42, count: 2, limit: "maximum is 2"},
		"the minimum, without waiting":            {change: func(c *Config) { c.Min = 3 }, seen: Seen{Count: 1, Placed: 1, Running: 1}, wanted: 0, count: 3, limit: "minimum is 3"},
		"a step down waits":                       {seen: Seen{Count: 5, Placed: 5, Running: 5}, wanted: 0, count: 5, limit: "waits until less was enough for 1m0s"},
		"a broker that does not tell what flies":  {seen: Seen{Ready: 0, InFlight: -1, Count: 1, Placed: 1, Running: 1, Loads: []Load{{ID: "x", InHand: 2}}}, wanted: 1, count: 1},
		"items get longer than what was measured": {seen: Seen{Ready: 396, InFlight: 4, Count: 1, Placed: 1, Running: 1, Loads: []Load{{ID: "x", Items: 10, BusyS: 10, Running: 4, RunningS: 80}}}, wanted: 34, count: 2, limit: "twice"},
		"a little longer is not":                  {seen: Seen{Ready: 236, InFlight: 4, Count: 1, Placed: 1, Running: 1, Loads: []Load{{ID: "x", Items: 10, BusyS: 10, Running: 4, RunningS: 7}}}, wanted: 1, count: 1},
		"a depth that cannot be is not believed":  {seen: Seen{Ready: -1, InFlight: -1}, wanted: 0, count: 0},
		"more items than numbers of workers":      {seen: Seen{Ready: 1 << 60, Count: 50, Placed: 50, Running: 50}, wanted: 1<<31 - 1, count: 50, limit: "maximum is 50"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := rules()
			if test.change != nil {
				test.change(&cfg)
			}
			if err := cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			d := newPolicy(cfg, start).decide(start, test.seen)
			if d.Wanted != test.wanted || d.Count != test.count || !strings.Contains(strings.Join(d.Limits, "; "), test.limit) {
				t.Errorf("wanted %d, want %d; count %d, want %d; limits %q, want %q", d.Wanted, test.wanted, d.Count, test.count, d.Limits, test.limit)
			}
			if text := (Status{Decision: &d}).Explain(time.Now()); !strings.Contains(text, "formula") || !strings.Contains(text, test.limit) {
				t.Errorf("explained as\n%s", text)
			}
		})
	}
}

// A step down comes once less was enough for the whole cooldown, goes as far as was enough, and begins anew after a gap in what was seen.
func TestStepsDown(t *testing.T) {
	p := newPolicy(rules(), start)
	at := func(s int, items int64, count int) int {
		return p.decide(start.Add(time.Duration(s)*time.Second), Seen{Ready: items, Count: count, Placed: count, Running: count, Loads: measured(time.Second)}).Count
	}
	steps := []struct {
		at    int
		items int64
		want  int
	}{{0, 2400, 10}, {30, 1200, 10}, {59, 480, 10}, {61, 480, 5}, {80, 0, 5}, {100, 240, 2}, {122, 0, 1}, {161, 0, 0}}
	count := 10
	for _, s := range steps {
		if count = at(s.at, s.items, count); count != s.want {
			t.Fatalf("at %ds with %d items: %d, want %d", s.at, s.items, count, s.want)
		}
	}
	p = newPolicy(rules(), start)
	count = at(0, 0, 5)
	for s := 1; s <= 59; s++ {
		count = at(s, 0, count)
	}
	p.lost() // for a moment nobody knew
	if count = at(60, 0, count); count != 5 {
		t.Errorf("down to %d right after a gap", count)
	}
	if count = at(119, 0, count); count != 5 {
		t.Errorf("down to %d within the cooldown", count)
	}
	if count = at(120, 0, count); count != 0 {
		t.Errorf("%d are left", count)
	}
}

// Workers whose items take longer than a drain are not stopped under them.
func TestLongItemsAreNotStopped(t *testing.T) {
	cfg := rules()
	cfg.Cooldown = 0
	loads := []Load{{ID: "a", Index: 0, Items: 9, BusyS: 9 * 3600}, {ID: "b", Index: 3, Running: 1, RunningS: 60}, {ID: "c", Index: 7}, {ID: "d", Index: -1, Running: 1, RunningS: 60}}
	seen := Seen{InFlight: 2, Count: 8, Placed: 8, Running: 8, Loads: loads}
	if d := newPolicy(cfg, start).decide(start, seen); d.Count != 4 || !strings.Contains(strings.Join(d.Limits, " "), "worker 3 has an item") {
		t.Errorf("%d, %q", d.Count, d.Limits)
	}
	loads[0].BusyS = 9 // short ones end within the drain, or are given back
	loads[1].RunningS, loads[3].RunningS = 1, 1
	if d := newPolicy(cfg, start).decide(start, seen); d.Count != 1 {
		t.Errorf("%d, %q", d.Count, d.Limits)
	}
}

func TestServiceTime(t *testing.T) {
	s := &service{}
	if _, ok := s.mean(); ok {
		t.Error("something was measured")
	}
	mean := func(after time.Duration, loads ...Load) time.Duration {
		s.add(s.at.Add(after), loads)
		m, _ := s.mean()
		return m.Round(time.Millisecond)
	}
	s.add(start, []Load{{ID: "a", Items: 30, BusyS: 30}, {ID: "b", Items: 10, BusyS: 50}})
	if got := mean(0, Load{ID: "a", Items: 30, BusyS: 30}, Load{ID: "b", Items: 10, BusyS: 50}); got != 2*time.Second { // each item counts once
		t.Errorf("%v", got)
	}
	if got := mean(time.Hour); got != 2*time.Second { // nothing new: what was known stays
		t.Errorf("%v", got)
	}
	s.add(s.at.Add(time.Second), []Load{{ID: "c", Items: 5, BusyS: 5}})
	before, _ := s.mean()
	s.add(s.at.Add(time.Second), []Load{{ID: "c", Items: 2, BusyS: 100}}) // a new process of the same name counts from 0
	if after, _ := s.mean(); after <= before {
		t.Errorf("%v after %v", after, before)
	}
	s = &service{}
	s.seed(3 * time.Second)
	if got, ok := s.mean(); !ok || got != 3*time.Second {
		t.Errorf("%v %v", got, ok)
	}
}

// A backlog ten times as large as a worker can do in the target is cleared, with few workers more than needed; then all are gone.
// Workers need a while to start, and items do not all take the same.
func TestBacklogIsCleared(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, 4, 5} {
		sim := newSim(seed)
		sim.publish(2400) // a worker of 4 slots does 240 in a minute
		var peak int
		for sim.items() > 0 {
			if sim.second(); sim.now > 600 {
				t.Fatalf("seed %d: %d items are left after ten minutes, %d workers", seed, sim.items(), sim.count)
			}
			peak = max(peak, sim.count)
		}
		if peak > 12 {
			t.Errorf("seed %d: %d workers for the work of 10", seed, peak)
		}
		t.Logf("seed %d: cleared in %d s with at most %d workers", seed, sim.now, peak)
		for end := sim.now + 70; sim.now < end; {
			sim.second()
		}
		if sim.count != 0 {
			t.Errorf("seed %d: %d workers without work", seed, sim.count)
		}
	}
}

// sim is a queue with workers, in steps of a second.
type sim struct {
	policy  *policy
	rand    *rand.Rand
	now     int
	ready   int
	count   int
	workers []*simWorker
}

type simWorker struct {
	up   int // when
	ends []float64
	load Load
}

func newSim(seed uint64) *sim {
	return &sim{policy: newPolicy(rules(), start), rand: rand.New(rand.NewPCG(seed, 0))}
}

func (s *sim) publish(n int) { s.ready += n }

func (s *sim) flying() (n int) {
	for _, w := range s.workers {
		n += len(w.ends)
	}
	return n
}

func (s *sim) items() int { return s.ready + s.flying() }

func (s *sim) second() {
	s.now++
	running := 0
	var loads []Load
	for i, w := range s.workers {
		if s.now < w.up {
			continue
		}
		running++
		w.work(s)
		w.load.Index, w.load.Running, w.load.InHand, w.load.RunningS = i, len(w.ends), len(w.ends), 0
		loads = append(loads, w.load)
	}
	d := s.policy.decide(start.Add(time.Duration(s.now)*time.Second), Seen{Ready: int64(s.ready), InFlight: int64(s.flying()), Count: s.count, Placed: len(s.workers), Running: running, Loads: loads})
	s.count = d.Count
	for len(s.workers) < s.count {
		s.workers = append(s.workers, &simWorker{up: s.now + 2 + s.rand.IntN(3), load: Load{ID: time.Duration(s.now*1000 + len(s.workers)).String()}})
	}
	for len(s.workers) > s.count {
		gone := s.workers[len(s.workers)-1]
		s.ready += len(gone.ends) // given back
		s.workers = s.workers[:len(s.workers)-1]
	}
}

// work ends what is due, and takes more.
func (w *simWorker) work(s *sim) {
	now := float64(s.now)
	slots := make([]float64, 0, 4) // when each is free
	for _, end := range w.ends {
		if end > now {
			slots = append(slots, end)
		} else {
			w.load.Items++
		}
	}
	w.ends = slots
	for len(w.ends) < 4 && s.ready > 0 {
		took := s.rand.ExpFloat64() // a second in the mean
		at := now - 1
		for at+took <= now && s.ready > 0 {
			s.ready--
			w.load.Items++
			w.load.BusyS += took
			at += took
			took = s.rand.ExpFloat64()
		}
		if s.ready == 0 {
			return
		}
		s.ready--
		w.load.BusyS += took
		w.ends = append(w.ends, at+took)
	}
}

func FuzzDecodeLoad(f *testing.F) {
	f.Add([]byte(`{"id":"a@b","index":3,"items":7,"busy_s":1.5,"running":2,"running_s":0.1,"in_hand":4}`))
	f.Add([]byte(`{"id":"a","busy_s":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := decodeLoad(data)
		if err != nil {
			return
		}
		d := newPolicy(rules(), start).decide(start, Seen{Ready: 5, InFlight: -1, Loads: []Load{l}})
		if d.Count < 0 || d.Count > rules().Max || !(d.ServiceS >= 0) {
			t.Errorf("%s: %+v", data, d)
		}
	})
}

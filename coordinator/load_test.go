package coordinator

import (
	"testing"
	"time"

	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// What the scaler is told: the time of slots and items, without the wait for a worker that starts, and without what says nothing of items.
func TestLoad(t *testing.T) {
	m := &machine{cfg: Config{ID: "a"}, calls: map[uint64]*call{}, busy: map[string]*held{}}
	start := clock.Instant(time.Hour)
	c := &call{id: 1, started: start, begun: start, deadline: start.Add(time.Hour)}
	it := &held{call: c}
	m.calls[1], m.busy["x"] = c, it
	m.beat(start.Add(5*time.Second), evBeat{id: "x", again: true, claim: true}) // a worker has come
	m.beat(start.Add(6*time.Second), evBeat{id: "x", again: true})              // and asks for more time
	if l := m.load(start.Add(8 * time.Second)); l.ID != "a" || l.Running != 1 || l.RunningS != 3 || l.Items != 0 {
		t.Errorf("while it runs: %+v", l)
	}
	m.tally.add(start.Add(9*time.Second), c, []worker.Verdict{{Kind: worker.Ack}, {Kind: worker.Dead}, {Kind: worker.NotReady}})
	m.tally.add(start.Add(99*time.Second), c, []worker.Verdict{{Kind: worker.NotReady}})
	m.tally.add(start.Add(99*time.Second), c, []worker.Verdict{{Kind: worker.Stopped}})
	delete(m.calls, 1)
	if l := m.load(start.Add(time.Minute)); l.Items != 2 || l.BusyS != 4 || l.Running != 0 {
		t.Errorf("after its end: %+v", l)
	}
}

package coordinator

import (
	"context"
	"time"

	"retinue/coordinator/scale"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// tally is what the scaler wants to know of attempts that have ended.
type tally struct {
	items uint64
	busy  time.Duration // of slots
}

// add takes a call. One whose worker was not ready, or that was ended from here, says nothing about how long items take.
func (t *tally) add(now clock.Instant, c *call, verdicts []worker.Verdict) {
	items := uint64(0)
	for _, v := range verdicts {
		if v.Kind != worker.NotReady && v.Kind != worker.Infra && v.Kind != worker.Stopped {
			items++
		}
	}
	if items > 0 {
		t.items += items
		t.busy += now.Sub(c.begun)
	}
}

// load is what this coordinator tells the scaler.
func (m *machine) load(now clock.Instant) scale.Load {
	l := scale.Load{ID: m.cfg.ID, Items: m.tally.items, BusyS: m.tally.busy.Seconds(), Running: len(m.calls), InHand: len(m.items)}
	for _, c := range m.calls {
		l.RunningS += now.Sub(c.begun).Seconds()
	}
	return l
}

// Load is how the work goes, for a scaler. The index of the allocation is the caller's to fill in.
func (c *Coordinator) Load(ctx context.Context) (l scale.Load, err error) {
	_, err = c.ask(ctx, envelope{look: func(now clock.Instant, m *machine) { l = m.load(now) }})
	return l, err
}

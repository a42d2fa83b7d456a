package coordinator

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"retinue/coordinator/source"
)

// undertaker removes dead letters that are older than DeadKeep. Every coordinator does, each in its own time: a look takes no more than the oldest ones.
func (c *Coordinator) undertaker(ctx context.Context) {
	every := max(min(c.cfg.DeadKeep/24, time.Hour), time.Minute)
	wall := c.steady()
	timer := time.NewTimer(rand.N(every))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		n, err := c.forgetDead(ctx, wall())
		switch {
		case err != nil && ctx.Err() == nil:
			c.parts.Log.Warn("old dead letters were not removed", "error", err)
		case n > 0:
			c.parts.Log.Info("old dead letters were removed", "letters", n, "older_than", c.cfg.DeadKeep.String())
		}
		timer.Reset(every)
	}
}

// errYoung ends a look at the dead letters: what comes now is not old enough. Their order is about that of their deaths.
var errYoung = errors.New("young")

// forgetDead removes dead letters that died longer than DeadKeep before now.
func (c *Coordinator) forgetDead(ctx context.Context, now time.Time) (removed int, err error) {
	young := 0
	err = c.eachDead(ctx, 1<<30, func(d DeadLetter, _ *source.Message) (bool, error) {
		if !d.Died.IsZero() && now.Sub(d.Died) > c.cfg.DeadKeep {
			removed++
			return true, nil
		}
		if young++; young == deadBatch {
			return false, errYoung
		}
		return false, nil
	})
	if errors.Is(err, errYoung) {
		err = nil
	}
	c.metrics.buried.Add(uint64(removed))
	return removed, err
}

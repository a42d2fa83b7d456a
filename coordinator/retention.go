package coordinator

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
)

// sweepEvery is how often records are looked at that may be forgotten. No message that was out when a coordinator died is away for so long.
func sweepEvery(cfg Config) time.Duration {
	return max(min(max(cfg.Keep/24, time.Minute), time.Hour), 3*cfg.Lease)
}

// keeper forgets what is older than Keep, each time the stage has run for a whole interval without a break: by then the leases of what was out before have
// ended, and whoever got it again has found its record.
func (c *Coordinator) keeper(ctx context.Context) {
	const looks = 10
	every := sweepEvery(c.cfg)
	tick := time.NewTicker(every / looks)
	defer tick.Stop()
	wall := c.steady()
	for running := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if st, err := c.Stats(ctx); err != nil || st.Status != "running" {
			running = 0
			continue
		}
		if running++; running < looks {
			continue
		}
		running = 0
		n, err := c.forget(ctx, wall(), every)
		switch {
		case err != nil && ctx.Err() == nil:
			c.parts.Log.Warn("records were not forgotten", "error", err)
		case n > 0:
			c.parts.Log.Info("records were forgotten", "records", n, "older_than", c.cfg.Keep.String())
		}
	}
}

// steady returns a wall clock for which a step forward makes nothing old.
func (c *Coordinator) steady() func() time.Time {
	started, boot := time.Now().Round(0), c.parts.Clock.Now()
	return func() time.Time {
		now := started.Add(c.parts.Clock.Now().Sub(boot))
		if wall := time.Now().Round(0); wall.Before(now) {
			return wall
		}
		return now
	}
}

// forget removes what ended longer ago than Keep and cannot come back. One coordinator does it in each slot of time.
func (c *Coordinator) forget(ctx context.Context, now time.Time, every time.Duration) (int, error) {
	f, ok := c.parts.Point.(commit.Forgetter)
	if !ok {
		return 0, nil
	}
	delayed := false // one that was cancelled before it was taken may still wait for its time
	for _, queue := range []string{c.cfg.Queue, c.cfg.Divert} {
		if queue == "" {
			continue
		}
		d, err := c.quiet(ctx, queue)
		if err != nil {
			return 0, err
		}
		delayed = delayed || (!c.source.Caps().Counts.Delayed || d.Delayed != 0) && (d.Ready != 0 || d.InFlight != 0)
	}
	for _, queue := range []string{c.cfg.To, c.cfg.Gather} { // they may have the outputs before them
		if queue == "" {
			continue
		}
		if _, err := c.quiet(ctx, queue); err != nil {
			return 0, err
		}
	}
	first, err := f.Turn(ctx, c.cfg.stage(), strconv.FormatInt(now.UnixNano()/int64(every), 10))
	if err != nil || !first {
		return 0, err
	}
	n, err := f.Forget(ctx, c.cfg.stage(), now.Add(-c.cfg.Keep), func(rec item.Record) (bool, error) {
		if rec.Group != "" && c.cfg.Gather != "" { // whoever gets the group's item may want the files
			sent, err := c.groups().kv.Get(ctx, c.groups().prefix(rec.Group)+"sent")
			if err != nil || sent == nil {
				return false, err
			}
		}
		return rec.State != item.Cancelled || !delayed, ctx.Err()
	})
	if err == nil && c.cfg.Gather != "" {
		err = c.groups().forget(ctx, now.Add(-c.cfg.Keep))
	}
	c.metrics.forgotten.Add(uint64(n))
	return n, err
}

// quiet says whether nothing that is older than Keep waits in a queue, as far as the broker tells.
func (c *Coordinator) quiet(ctx context.Context, queue string) (source.Depth, error) {
	src, err := c.open(queue)
	if err != nil {
		return source.Depth{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	d, err := src.Depth(ctx)
	switch {
	case err != nil:
		return d, fmt.Errorf("count queue %s: %w", queue, err)
	case d.Ready == 0:
		return d, nil
	case d.Ready < 0:
		return d, fmt.Errorf("queue %s: its broker does not tell whether it is empty, so no record is forgotten", queue)
	case d.Oldest < 0:
		return d, fmt.Errorf("queue %s has %d messages that wait, and its broker does not tell since when, so no record is forgotten", queue, d.Ready)
	case d.Oldest >= c.cfg.Keep:
		return d, fmt.Errorf("queue %s has a message that waits for %s, longer than records are kept", queue, d.Oldest.Round(time.Second))
	}
	return d, nil
}

package coordinator

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
)

// requestTimeout bounds one request to the broker or the commit point. The machine repeats it.
const requestTimeout = 15 * time.Second

// do starts one effect. Goroutines talk to broker, commit point and worker, one request each, and post what came of it. None of
// them touches the machine.
func (c *Coordinator) do(ctx context.Context, fx any) {
	switch fx := fx.(type) {
	case fxReceive:
		rx, cancel := context.WithCancel(ctx)
		c.cancelRx = cancel
		c.orders <- receiveOrder{rx, cancel, fx.max}
	case fxIdle:
		if c.cancelRx != nil {
			c.cancelRx()
		}
		c.orders <- idleOrder{}
	case fxCheck:
		c.request(ctx, func(ctx context.Context) any {
			rec, err := c.parts.Point.Read(ctx, c.cfg.stage(), fx.id)
			return evChecked{fx.handle, rec, err}
		})
	case fxCall:
		c.call(ctx, fx)
	case fxEnd:
		c.calls[fx.call](causeOf(fx.class, fx.reason))
	case fxCommit:
		offer := func(ctx context.Context) any {
			rec, err := c.parts.Point.Commit(ctx, fx.record, fx.out)
			return evCommitted{fx.handle, rec, err}
		}
		if _, ok := c.parts.Point.(commit.Artifacts); ok && fx.out != "" { // as long as it moves
			c.hand(ctx, func() { c.post(offer(c.uploads)) })
		} else {
			c.request(ctx, offer)
		}
	case fxPublish:
		c.request(ctx, func(ctx context.Context) any {
			var errs []error
			for queue, outs := range fx.outs {
				errs = append(errs, c.publish(ctx, queue, outs))
			}
			if fx.part != nil {
				errs = append(errs, c.join(ctx, fx.member, *fx.part))
			}
			return evPublished{fx.handle, errors.Join(errs...)}
		})
	case fxAck:
		msgs := c.messages(fx.handles)
		c.request(ctx, func(ctx context.Context) any {
			return evAcked{fx.handles, errsOf(c.source.Ack(ctx, msgs...), fx.handles, msgs)}
		})
	case fxExtend:
		msgs := c.messages(fx.handles)
		c.request(ctx, func(ctx context.Context) any {
			ctx, cancel := context.WithTimeout(ctx, c.cfg.Lease/3)
			defer cancel()
			return evExtended{fx.handles, errsOf(c.source.Extend(ctx, msgs...), fx.handles, msgs)}
		})
	case fxRelease:
		msgs := c.messages(fx.handles)
		delay := fx.delay
		if longest := c.source.Caps().MaxDelay; longest > 0 {
			delay = min(delay, longest)
		}
		c.request(ctx, func(ctx context.Context) any {
			// One that cannot be given back comes when its lease has run out.
			if err := c.source.Release(ctx, delay, msgs...); err != nil && !lost(err) {
				c.parts.Log.Debug("messages were not released", "error", err)
			}
			return evReleased{fx.handles}
		})
	case fxDiscard:
		c.hand(ctx, func() { c.parts.Worker.Discard(fx.out) })
	case fxEnded:
		c.tellEnd(fx.record)
	case fxFailed:
		c.tellFailure(fx)
	case fxDiverted:
		c.parts.Log.Info("item diverted", "id", fx.id, "to", c.cfg.Divert, "reason", fx.reason)
	case fxState:
		c.parts.Log.Info("state", "stage", fx.state, "reason", c.m.stats().Reason)
		c.feed.publish(Event{Type: "state", Status: fx.state, Time: time.Now().UTC()})
	}
}

func (c *Coordinator) request(ctx context.Context, do func(context.Context) any) {
	c.hand(ctx, func() {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		ev := do(ctx)
		cancel()
		c.post(ev)
	})
}

func (c *Coordinator) messages(handles []uint64) []*source.Message {
	msgs := make([]*source.Message, len(handles))
	for i, h := range handles {
		msgs[i] = c.m.messageOf(h)
	}
	return msgs
}

func errsOf(err error, handles []uint64, msgs []*source.Message) map[uint64]error {
	if err == nil {
		return nil
	}
	errs := map[uint64]error{}
	for i, h := range handles {
		if e := source.ErrorOf(err, msgs[i]); e != nil {
			errs[h] = e
		}
	}
	return errs
}

type (
	receiveOrder struct {
		ctx    context.Context
		cancel context.CancelFunc
		max    int
	}
	idleOrder struct{}
)

// receiver is the one goroutine that calls Receive and Idle.
func (c *Coordinator) receiver(ctx context.Context) {
	for {
		select {
		case order := <-c.orders:
			switch order := order.(type) {
			case receiveOrder:
				msgs, err := c.source.Receive(order.ctx, order.max)
				if order.ctx.Err() != nil {
					err = nil // it was told to end
				}
				order.cancel()
				c.post(evReceived{msgs, err})
			case idleOrder:
				idle, cancel := context.WithTimeout(ctx, requestTimeout)
				if err := c.source.Idle(idle); err != nil && ctx.Err() == nil {
					c.parts.Log.Debug("what was fetched ahead was not given back", "error", err)
				}
				cancel()
			}
		case <-ctx.Done():
			return
		}
	}
}

// call runs one call of the worker.
func (c *Coordinator) call(ctx context.Context, fx fxCall) {
	work := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	c.calls[fx.call] = cancel
	c.hand(work, func() {
		started := time.Now()
		verdicts := c.parts.Worker.Call(ctx, fx.tasks)
		cancel(nil)
		c.called(fx.call, verdicts, started)
	})
}

func (c *Coordinator) called(call uint64, verdicts []worker.Verdict, started time.Time) {
	took := time.Since(started)
	for _, v := range verdicts {
		c.metrics.attempt(took, v.Kind)
		c.worth.note(took, v.Kind)
	}
	c.post(evCalled{call, verdicts})
}

// hand gives a job to a goroutine that has done one before, whose stack has its size, or to a new one.
func (c *Coordinator) hand(ctx context.Context, job func()) {
	select {
	case c.jobs <- job:
		return
	default:
	}
	c.working.Go(func() {
		for job != nil {
			job()
			job = c.another(ctx)
		}
	})
}

// another waits for a job; nil: there will be none.
func (c *Coordinator) another(ctx context.Context) func() {
	select {
	case job := <-c.jobs:
		return job
	case <-ctx.Done():
		return nil
	}
}

func causeOf(class item.Class, reason string) error {
	switch reason {
	case worker.ErrTimeout.Error():
		return worker.ErrTimeout
	case worker.ErrHeartbeat.Error():
		return worker.ErrHeartbeat
	case worker.ErrCancelled.Error():
		return worker.ErrCancelled
	}
	return errors.New(string(class) + ": " + reason)
}

func (c *Coordinator) tellEnd(rec item.Record) {
	level := hclog.Debug
	if rec.State == item.Dead {
		level = hclog.Warn
	}
	if c.parts.Log.GetLevel() <= level { // its arguments are for the heap
		c.parts.Log.Log(level, "item ended", "id", rec.ID, "state", rec.State, "attempt", rec.N, "class", rec.Class, "reason", rec.Reason)
	}
	c.feed.end(rec)
	c.feed.publish(Event{Type: "ended", ID: rec.ID, State: rec.State, Class: rec.Class, Reason: rec.Reason, Attempt: rec.N, Time: rec.Ended})
}

func (c *Coordinator) tellFailure(fx fxFailed) {
	a := fx.attempt
	if fx.counted {
		c.parts.Log.Warn("attempt failed", "id", fx.id, "attempt", a.N, "class", a.Class, "reason", a.Reason, "stderr", item.Tail(a.Stderr, 500))
	} else {
		c.parts.Log.Debug("attempt did not count", "id", fx.id, "class", a.Class, "reason", a.Reason)
	}
	c.feed.publish(Event{Type: "failed", ID: fx.id, Class: a.Class, Reason: a.Reason, Attempt: a.N, Time: a.Ended})
}

package memory

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"retinue/coordinator/source"
)

// Source is one consumer and producer of a queue.
type Source struct {
	broker  *Broker
	opts    source.Options
	classes source.Classes
	once    sync.Once
	closed  chan struct{}
}

var _ source.Source = (*Source)(nil)

// token is the lease that a message was handed out with.
type token struct {
	item  *item
	lease int
}

// Receive implements source.Source.
func (s *Source) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	for {
		if err := s.check(ctx); err != nil {
			return nil, err
		}
		_, err := s.fault(Receive, "")
		if err != nil {
			return nil, fmt.Errorf("receive from %s: %w", s.opts.Queue, err)
		}
		ms, changed, at, err := s.take(max)
		if err != nil || len(ms) > 0 {
			return ms, err
		}
		var due <-chan time.Time
		var timer *time.Timer
		if !at.IsZero() {
			timer = time.NewTimer(time.Until(at))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-s.closed:
		case <-changed:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

func (s *Source) take(max int) (ms []*source.Message, changed <-chan struct{}, at time.Time, err error) {
	b := s.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, nil, time.Time{}, fmt.Errorf("receive from %s: %w", s.opts.Queue, source.ErrUnavailable)
	}
	now := time.Now()
	q := b.queueLocked(s.opts.Queue)
	q.expireLocked(now)
	for len(ms) < max {
		class := s.classes.Next(func(class int) bool { return q.nextLocked(s, class, now) != nil })
		if class < 0 {
			break
		}
		it := q.nextLocked(s, class, now)
		it.holder, it.until = s, now.Add(s.opts.Lease)
		it.lease++
		it.deliveries++
		ms = append(ms, it.message())
	}
	return ms, b.changed, q.wakeAtLocked(now), nil
}

func (it *item) message() *source.Message {
	headers := maps.Clone(it.out.Headers)
	if headers == nil {
		headers = map[string]string{}
	}
	return &source.Message{
		ID: it.out.ID, Body: append([]byte{}, it.out.Body...), Headers: headers, Key: it.out.Key, Class: it.out.Class,
		Published: it.published, Deliveries: it.deliveries, Token: token{it, it.lease},
	}
}

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	return s.each(ctx, Extend, ms, func(_ *queue, it *item, now time.Time) { it.until = now.Add(s.opts.Lease) })
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	return s.each(ctx, Ack, ms, func(q *queue, it *item, _ time.Time) { it.holder = nil; q.removeLocked(it) })
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	return s.each(ctx, Release, ms, func(_ *queue, it *item, now time.Time) { it.holder, it.visible = nil, now.Add(delay) })
}

// each does an operation on each message that is still ours.
func (s *Source) each(ctx context.Context, op Op, ms []*source.Message, do func(*queue, *item, time.Time)) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	for _, m := range ms {
		if err := s.one(op, m, do); err != nil {
			failed[m] = err
		}
	}
	return failed.Err()
}

func (s *Source) one(op Op, m *source.Message, do func(*queue, *item, time.Time)) error {
	before, err := s.fault(op, m.ID)
	if err != nil && before {
		return fmt.Errorf("%s: %w", op, err)
	}
	if done := s.apply(op, m, do); done != nil {
		return done
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func (s *Source) apply(op Op, m *source.Message, do func(*queue, *item, time.Time)) error {
	b := s.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return fmt.Errorf("%s: %w", op, source.ErrUnavailable)
	}
	now := time.Now()
	q := b.queueLocked(s.opts.Queue)
	q.expireLocked(now)
	t, ok := m.Token.(token)
	if !ok || t.item.holder != s || t.item.lease != t.lease {
		return fmt.Errorf("%s: %w", op, source.ErrLost)
	}
	do(q, t.item, now)
	b.wakeLocked()
	return nil
}

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	for _, out := range outs {
		if err := s.opts.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.opts.Queue, err)
		}
	}
	for _, out := range outs {
		if err := s.publish(out); err != nil {
			return fmt.Errorf("publish %s to %s: %w", out.ID, s.opts.Queue, err)
		}
	}
	return nil
}

func (s *Source) publish(out source.Out) error {
	before, err := s.fault(Publish, out.ID)
	if err != nil && before {
		return err
	}
	b := s.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return source.ErrUnavailable
	}
	b.queueLocked(s.opts.Queue).publishLocked(out, time.Now(), b.dedupe)
	b.wakeLocked()
	return err
}

// Depth implements source.Source.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	if err := s.check(ctx); err != nil {
		return source.Depth{}, err
	}
	if _, err := s.fault(Depth, ""); err != nil {
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.opts.Queue, err)
	}
	b := s.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.opts.Queue, source.ErrUnavailable)
	}
	now := time.Now()
	q := b.queueLocked(s.opts.Queue)
	q.expireLocked(now)
	var d source.Depth
	for _, it := range q.items {
		switch {
		case it.holder != nil:
			d.InFlight++
		case now.Before(it.visible):
			d.Delayed++
		default:
			d.Ready++
			d.Oldest = max(d.Oldest, now.Sub(it.published))
		}
	}
	return d, nil
}

// Idle implements source.Source: nothing is fetched ahead.
func (s *Source) Idle(context.Context) error { return nil }

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	return source.Caps{
		Broker: "memory", Dedupe: s.broker.dedupe, KeyOrder: true, Order: true, Deliveries: true, Redelivery: s.opts.Lease,
		DelayGrain: 100 * time.Millisecond, Counts: source.Counts{InFlight: true, Delayed: true, Oldest: true},
	}
}

// Close implements source.Source.
func (s *Source) Close(context.Context) error {
	s.once.Do(func() {
		close(s.closed)
		s.giveBack()
	})
	return nil
}

// Cut ends the source as the death of its process would: nothing is given back, the leases run out.
func (s *Source) Cut() {
	s.once.Do(func() { close(s.closed) })
}

// Expire ends all leases of this source now, as a pause longer than the lease would.
func (s *Source) Expire() { s.giveBack() }

func (s *Source) giveBack() {
	b := s.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, it := range b.queueLocked(s.opts.Queue).items {
		if it.holder == s {
			it.holder = nil
		}
	}
	b.wakeLocked()
}

func (s *Source) check(ctx context.Context) error {
	select {
	case <-s.closed:
		return source.ErrClosed
	default:
		return ctx.Err()
	}
}

func (s *Source) fault(op Op, id string) (before bool, err error) {
	b := s.broker
	b.mu.Lock()
	f := b.fault
	b.mu.Unlock()
	if f == nil {
		return false, nil
	}
	return f(op, s.opts.Queue, id)
}

package rabbitmq

import (
	"context"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"retinue/coordinator/source"
)

// hold is a delivery, and how to copy it.
type hold struct {
	mu    sync.Mutex // one verdict or move at a time
	se    *session
	d     amqp.Delivery
	since time.Time
	moved bool // it is in this consumer's own queue
	over  bool // it is being acknowledged
	gone  bool // it was given back to be taken anew, and did not come
}

// back returns the message to its class. From the own queue it goes there by being refused.
func (h *hold) back() error {
	err := h.d.Nack(false, !h.moved)
	h.sent(err)
	return err
}

// ack ends a delivery at once.
func (h *hold) ack() error {
	err := h.d.Ack(false)
	h.sent(err)
	return err
}

// sent notes that a verdict is on its way to the broker. An error is the end of the session.
func (h *hold) sent(err error) {
	if err == nil && !h.moved {
		h.se.settled.note(h.d.DeliveryTag)
	}
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	type part struct {
		ms   []*source.Message
		hs   []*hold
		tags []uint64
	}
	parts := map[*session]*part{}
	for _, m := range ms {
		h, ok := s.held.Take(m)
		if !ok {
			failed[m] = fmt.Errorf("ack: %w", source.ErrLost)
			continue
		}
		p := parts[h.se]
		if p == nil {
			p = &part{}
			parts[h.se] = p
		}
		h.mu.Lock()
		if h.gone {
			h.mu.Unlock()
			failed[m] = fmt.Errorf("ack: %w", source.ErrLost)
			continue
		}
		h.over = true
		var err error
		if h.moved {
			err = h.ack()
		} else {
			p.tags = append(p.tags, h.d.DeliveryTag)
			p.hs = append(p.hs, h)
		}
		h.mu.Unlock()
		if err != nil {
			failed[m] = fmt.Errorf("ack: %w", explain(err))
			continue
		}
		p.ms = append(p.ms, m)
	}
	for se, p := range parts {
		taken, err := se.settle(ctx, p.tags...)
		if err == nil {
			continue
		}
		for _, m := range p.ms {
			failed[m] = fmt.Errorf("ack: %w", explain(err))
		}
		for _, h := range p.hs {
			if !taken { // it comes again: by us, as long as the connection lives
				h.back()
			}
		}
	}
	return failed.Err()
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	if delay > maxDelay {
		return fmt.Errorf("release: %w: delay %v, %v is possible", source.ErrInvalid, delay, maxDelay)
	}
	if delay <= 0 {
		return s.verdict(ctx, "release", ms, func(_ *source.Message, h *hold) error { return h.back() })
	}
	due := time.Now().Add(delay + time.Millisecond)
	return s.verdict(ctx, "release", ms, func(m *source.Message, h *hold) error { return s.delay(ctx, m, h, due, m.Deliveries) })
}

// verdict gives each message's verdict and waits until the broker has worked it off.
func (s *Source) verdict(ctx context.Context, verb string, ms []*source.Message, do func(*source.Message, *hold) error) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	sent := map[*session][]*source.Message{}
	for _, m := range ms {
		h, ok := s.held.Take(m)
		if !ok {
			failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost)
			continue
		}
		h.mu.Lock()
		if h.gone {
			h.mu.Unlock()
			failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost)
			continue
		}
		err := do(m, h)
		h.mu.Unlock()
		if err != nil {
			// It may be done or not. If not, the message comes again: by us, as long as the connection lives.
			h.back()
			failed[m] = fmt.Errorf("%s: %w", verb, explain(err))
			continue
		}
		sent[h.se] = append(sent[h.se], m)
	}
	for se, ms := range sent {
		if err := se.barrier(ctx); err != nil {
			for _, m := range ms {
				failed[m] = fmt.Errorf("%s: %w", verb, explain(err))
			}
		}
	}
	return failed.Err()
}

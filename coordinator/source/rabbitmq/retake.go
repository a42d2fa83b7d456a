package rabbitmq

import (
	"context"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"retinue/coordinator/source"
)

// retake gives a message of an ordered queue a new limit: it goes back to the front of the queue and is taken from there at once. A
// copy in a queue of our own, as elsewhere, would come back at the end. The queue has no other consumer; should another one come and
// have it, it is lost, as by the end of a lease.
func (s *Source) retake(ctx context.Context, m *source.Message, h *hold) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	se, name := h.se, nameOf(h.d)
	arrival := make(chan amqp.Delivery, 1)
	se.retakes.set(name, arrival)
	defer func() {
		se.retakes.drop(name)
		select {
		case d := <-arrival: // too late: it was given up
			d.Nack(false, true)
			se.settled.note(d.DeliveryTag)
		default:
		}
	}()
	since := time.Now()
	h.gone = true
	if err := h.back(); err != nil {
		return source.ErrLost
	}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		if err := s.turn(se); err != nil {
			return source.ErrLost
		}
		select {
		case d := <-arrival:
			h.d, h.since, h.gone = d, since, false
			return nil // what came along goes back as always when nobody asks for it
		case <-ctx.Done():
			return source.ErrLost
		case <-se.dead:
			return source.ErrLost
		case <-time.After(wait):
			// What else was given back may be before it and take all places: behind it with that.
			if err := s.giveBack(ctx, se); err != nil {
				return source.ErrLost
			}
		}
	}
}

// nameOf is the identity of a delivery's message.
func nameOf(d amqp.Delivery) string {
	if d.MessageId == "" {
		return bodyID(d.Body)
	}
	return d.MessageId
}

// retakes are the messages that somebody waits for.
type retakes struct {
	mu  sync.Mutex
	all map[string]chan amqp.Delivery
}

func (r *retakes) set(name string, arrival chan amqp.Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[string]chan amqp.Delivery{}
	}
	r.all[name] = arrival
}

func (r *retakes) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, name)
}

// has says that somebody waited for a delivery, and has it now.
func (r *retakes) has(d amqp.Delivery) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.all[nameOf(d)] <- d:
		return true
	default:
		return false // nobody, or he has one of that name
	}
}

// turn begins to take messages, where that is not so.
func (s *Source) turn(se *session) error {
	s.turning.Lock()
	defer s.turning.Unlock()
	return se.consume()
}

package rabbitmq

import (
	"context"
	"fmt"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
)

const (
	// shortest is the smallest delay that is worth a queue. What is less is waited for by who receives: a queue costs a copy.
	shortest = time.Second
	maxDelay = 20 * 24 * time.Hour // below the broker's 2^32-1 ms
	// grown is the age at which a queue survives a kill -9 of the broker. 3.10.8 answers a declaration before it has stored which
	// of its logs is the queue's (ra_directory, a table that is written seconds later). After a kill before that, it starts the
	// queue anew, empty and without a leader, or does not know it: what it had confirmed there is gone. Ten seconds were enough
	// wherever it was tried.
	grown = 30 * time.Second
)

// step is the longest delay queue that is not too long: one digit and zeros.
func step(d time.Duration) time.Duration {
	unit := shortest
	for d/unit >= 10 {
		unit *= 10
	}
	return d / unit * unit
}

// waiting are the arguments of a queue that passes its messages on to a class after a time. A queue of a delay has no x-expires: the
// time that the broker is down would count as unused, and what expires goes with its messages. A class has 9 for each power of ten
// of the delays that were used.
func (c *Config) waiting(class int, ttl time.Duration) amqp.Table {
	return amqp.Table{
		"x-queue-type":              "quorum",
		"x-message-ttl":             ttl.Milliseconds(),
		"x-overflow":                "reject-publish",
		"x-dead-letter-strategy":    "at-least-once",
		"x-dead-letter-exchange":    "",
		"x-dead-letter-routing-key": c.queue(class),
	}
}

// delayQueue declares the queue of the longest step of a delay. It says how long it takes until the queue is old enough for
// messages. Age counts over one session only: nobody knows when the broker of the one before was killed.
func (se *session) delayQueue(class int, left time.Duration) (string, time.Duration, error) {
	ttl := step(left)
	name := fmt.Sprintf("%s.wait.%d", se.s.cfg.queue(class), ttl.Milliseconds())
	se.mu.Lock()
	since, ok := se.delays[name]
	se.mu.Unlock()
	if !ok {
		ch, err := se.conn.Channel()
		if err != nil {
			return "", 0, err
		}
		defer ch.Close()
		if _, err := ch.QueueDeclare(name, true, false, false, false, se.s.cfg.waiting(class, ttl)); err != nil {
			return "", 0, err
		}
		since = time.Now()
		se.mu.Lock()
		if first, ok := se.delays[name]; ok {
			since = first
		}
		se.delays[name] = since
		se.mu.Unlock()
	}
	return name, max(0, se.s.cfg.grown-time.Since(since)), nil
}

// forget makes a queue be declared again.
func (se *session) forget(name string) {
	se.mu.Lock()
	defer se.mu.Unlock()
	delete(se.delays, name)
}

// parking says where a message waits until it is due, and writes into it when that is. It stands in a queue of a delay not longer
// than that queue's time, and is looked at again when it comes out. What has no such queue yet, or is due soon, waits in the
// queue of its class, at who receives it.
func (se *session) parking(class int, msg amqp.Publishing, due time.Time) (string, error) {
	msg.Headers[ledger.HeaderDue] = strconv.FormatInt(due.UnixMilli(), 10)
	if left := time.Until(due); left >= shortest {
		name, young, err := se.delayQueue(class, left)
		if err != nil || young == 0 {
			return name, err
		}
	}
	return se.s.cfg.queue(class), nil
}

// delay puts a copy of a message where it waits until it is due, then ends the original.
func (s *Source) delay(ctx context.Context, m *source.Message, h *hold, due time.Time, deliveries int) error {
	msg := copyOf(h.d, deliveries)
	queue, err := h.se.parking(m.Class, msg, due)
	if err != nil {
		return err
	}
	if err := h.se.publish(ctx, publication{queue, msg}); err != nil {
		return err
	}
	return h.ack()
}

// arrived gets each delivery of a class.
func (s *Source) arrived(se *session, class int, d amqp.Delivery) {
	if se.s.cfg.Order && se.retakes.has(d) {
		return
	}
	a, due := s.message(se, class, d)
	if due.IsZero() || time.Until(due) <= 0 {
		s.offer(a)
		return
	}
	go s.early(a, due)
}

// early keeps a message that is not due yet: until it is, or until there is a queue for what is left of its delay. Meanwhile it
// is not acknowledged, so it is the broker's as before.
func (s *Source) early(a arrival, due time.Time) {
	left, se := time.Until(due), a.h.se
	if left <= 0 || !se.alive() || se.resting.Load() {
		s.offer(a)
		return
	}
	pause := left
	if left >= shortest {
		_, young, err := se.delayQueue(a.m.Class, left)
		if err == nil && young == 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err = s.delay(ctx, a.m, a.h, due, a.m.Deliveries-1); err == nil {
				return
			}
		}
		// What is left gets less: it may be another queue's then. A queue that the broker cannot make is tried again.
		pause = min(left, max(young, time.Second))
	}
	time.AfterFunc(pause, func() { s.early(a, due) })
}

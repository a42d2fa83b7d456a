// Package ledger is an adapter's own record of the messages it has leased. It
// measures each lease on the boot clock from before the request that took or
// extended it, so it ends a lease no later than the broker does: what the
// ledger still holds is ours. Brokers without leases get theirs from here.
package ledger

import (
	"fmt"
	"sync"
	"time"

	"retinue/coordinator/source"
	"retinue/internal/clock"
)

// ErrTorn is what an ordered source answers that has lost its connection: see source.Caps.Order.
var ErrTorn = fmt.Errorf("%w: the connection was lost, and with it perhaps messages that come again out of order", source.ErrUnavailable)

// Ledger holds leased messages with what the adapter needs to answer for each. All methods may be called at the same time.
type Ledger[T any] struct {
	lease time.Duration
	clock clock.Clock

	mu   sync.Mutex
	held map[*source.Message]*entry[T]
}

type entry[T any] struct {
	token T
	until clock.Instant
}

// New returns an empty ledger.
func New[T any](lease time.Duration) *Ledger[T] {
	return &Ledger[T]{lease: lease, clock: clock.Recent(), held: map[*source.Message]*entry[T]{}}
}

// Now is the time to measure a request's lease from: call it before the request is sent.
func (l *Ledger[T]) Now() clock.Instant { return l.clock.Now() }

// Add records a message that was leased by a request sent at an instant. False: that lease is over already.
func (l *Ledger[T]) Add(m *source.Message, token T, sent clock.Instant) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	until := sent.Add(l.lease)
	if l.clock.Now() >= until {
		return false
	}
	l.held[m] = &entry[T]{token, until}
	return true
}

// Get returns the token of a message that is ours.
func (l *Ledger[T]) Get(m *source.Message) (T, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.held[m]
	if e == nil || l.clock.Now() >= e.until {
		var none T
		return none, false
	}
	return e.token, true
}

// Extend records that a request sent at an instant extended the lease. False: the message was gone meanwhile.
func (l *Ledger[T]) Extend(m *source.Message, sent clock.Instant) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.held[m]
	if e == nil {
		return false
	}
	e.until = sent.Add(l.lease)
	return true
}

// Drop forgets a message.
func (l *Ledger[T]) Drop(m *source.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, m)
}

// Take returns the token of a message that is ours and forgets it: only one of several callers gets it.
func (l *Ledger[T]) Take(m *source.Message) (T, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.held[m]
	delete(l.held, m)
	if e == nil || l.clock.Now() >= e.until {
		var none T
		return none, false
	}
	return e.token, true
}

// Remove returns the token of a message and forgets it, also where its lease is over.
func (l *Ledger[T]) Remove(m *source.Message) (token T, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.held[m]
	delete(l.held, m)
	if e == nil {
		return token, false
	}
	return e.token, true
}

// Expired takes out everything whose lease is over.
func (l *Ledger[T]) Expired() map[*source.Message]T {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	out := map[*source.Message]T{}
	for m, e := range l.held {
		if now >= e.until {
			out[m] = e.token
			delete(l.held, m)
		}
	}
	return out
}

// Drain takes out everything.
func (l *Ledger[T]) Drain() map[*source.Message]T {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[*source.Message]T{}
	for m, e := range l.held {
		out[m] = e.token
	}
	clear(l.held)
	return out
}

// Each calls a function for every message; it must not call the ledger.
func (l *Ledger[T]) Each(do func(*source.Message, T)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for m, e := range l.held {
		do(m, e.token)
	}
}

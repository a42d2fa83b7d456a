// Package memory is a source without a broker: a queue in the memory of one
// process, for tests. It keeps the whole contract of package source, and does
// on request what brokers do at bad times: it cuts a consumer's connection,
// stops and starts, loses answers, and fails single operations.
package memory

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"retinue/coordinator/source"
)

// Op is an operation that a fault can hit.
type Op string

// The operations.
const (
	Receive Op = "receive"
	Extend  Op = "extend"
	Ack     Op = "ack"
	Release Op = "release"
	Publish Op = "publish"
	Depth   Op = "depth"
)

// A Fault decides over one operation on one item (id is "" for Receive and Depth). A nil error lets it pass. With before, the
// operation is not done; otherwise it is done and only its answer is lost. It runs outside the broker's lock and may block.
type Fault func(op Op, queue, id string) (before bool, err error)

// Broker holds queues. Its sources see the same messages.
type Broker struct {
	dedupe time.Duration

	mu      sync.Mutex
	queues  map[string]*queue
	fault   Fault
	down    bool
	changed chan struct{} // closed and replaced when a waiting Receive should look again
}

type queue struct {
	items []*item // in order of publication
	seen  map[string]time.Time
	last  time.Time // of publication
}

type item struct {
	out        source.Out
	published  time.Time
	visible    time.Time // not before
	deliveries int
	holder     *Source // who leases it; nil: nobody
	until      time.Time
	lease      int // number of the lease; a message of another lease is lost
}

// New returns a broker with a dedupe window of two minutes.
func New() *Broker {
	return &Broker{dedupe: 2 * time.Minute, queues: map[string]*queue{}, changed: make(chan struct{})}
}

// Fault sets what happens to operations from now on; nil: nothing.
func (b *Broker) Fault(f Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = f
}

// Stop makes the broker unreachable. It keeps all messages; the leases run on.
func (b *Broker) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = true
	b.wakeLocked()
}

// Start ends a Stop.
func (b *Broker) Start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = false
	b.wakeLocked()
}

// Items lists the ids of a queue in order of publication, whatever their state.
func (b *Broker) Items(name string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []string
	for _, it := range b.queueLocked(name).items {
		ids = append(ids, it.out.ID)
	}
	return ids
}

// Open returns a source.
func (b *Broker) Open(o source.Options) (*Source, error) {
	if err := o.Complete(); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queueLocked(o.Queue)
	return &Source{broker: b, opts: o, classes: source.Classes{N: o.Classes}, closed: make(chan struct{})}, nil
}

func (b *Broker) queueLocked(name string) *queue {
	q := b.queues[name]
	if q == nil {
		q = &queue{seen: map[string]time.Time{}}
		b.queues[name] = q
	}
	return q
}

func (b *Broker) wakeLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// expireLocked ends the leases that ran out.
func (q *queue) expireLocked(now time.Time) {
	for _, it := range q.items {
		if it.holder != nil && !now.Before(it.until) {
			it.holder = nil
		}
	}
}

// nextLocked returns the next item of a class that a consumer may have. A key whose messages another consumer has in flight
// waits, and so does all of a key behind its first message that waits.
func (q *queue) nextLocked(s *Source, class int, now time.Time) *item {
	blocked := map[string]bool{}
	for _, it := range q.items {
		if it.out.Key != "" && it.holder != nil && it.holder != s {
			blocked[it.out.Key] = true
		}
	}
	for _, it := range q.items {
		if it.out.Class != class || it.holder != nil || now.Before(it.visible) || blocked[it.out.Key] {
			continue
		}
		return it
	}
	return nil
}

// wakeAtLocked is when the next change comes by itself; zero: never.
func (q *queue) wakeAtLocked(now time.Time) time.Time {
	var at time.Time
	for _, it := range q.items {
		t := it.visible
		if it.holder != nil {
			t = it.until
		}
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

func (q *queue) removeLocked(it *item) {
	q.items = slices.DeleteFunc(q.items, func(other *item) bool { return other == it })
}

func (q *queue) publishLocked(out source.Out, now time.Time, dedupe time.Duration) {
	maps.DeleteFunc(q.seen, func(_ string, at time.Time) bool { return now.Sub(at) > dedupe })
	if _, ok := q.seen[out.ID]; ok {
		return
	}
	q.seen[out.ID] = now
	out.Body = append([]byte{}, out.Body...)
	out.Headers = maps.Clone(out.Headers)
	if !now.After(q.last) {
		now = q.last.Add(1)
	}
	q.last = now
	q.items = append(q.items, &item{out: out, published: now, visible: now.Add(out.Delay)})
}

package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"retinue/coordinator/source"
)

// ledger is the history as the campaign's own process sees it, which nobody kills: what a producer was promised, what came out at the
// end of the queues, and what was broken when.
type ledger struct {
	mu     sync.Mutex
	items  map[string]*history
	ready  int // confirmed, and not seen at an end
	faults []event
	late   []event // times in which this machine woke nobody up
	counts map[Class]int
}

// history is one item's.
type history struct {
	task      task
	key       string
	offered   time.Time
	again     bool // it was published more than once, because an answer was missing
	confirmed bool
	outs      map[string]int // messages to the next stage, by their content
	dead      int            // dead letters
	latest    time.Time      // that it was seen at an end
}

func (h *history) ended() bool { return len(h.outs) > 0 || h.dead > 0 }

// event is something that lasted: a fault, or a time without processors.
type event struct {
	class    Class
	member   string // "" for the broker and for all
	from, to time.Time
}

func newLedger() *ledger {
	return &ledger{items: map[string]*history{}, counts: map[Class]int{}}
}

func encode(t task) []byte {
	data, _ := json.Marshal(t) // numbers and strings always encode
	return data
}

func (l *ledger) offered(outs []source.Out, tasks []task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, out := range outs {
		l.items[out.ID] = &history{task: tasks[i], key: out.Key, offered: time.Now(), outs: map[string]int{}}
	}
}

// retried notes that items were published again.
func (l *ledger) retried(outs []source.Out) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, out := range outs {
		l.items[out.ID].again = true
	}
}

func (l *ledger) confirmed(outs []source.Out) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, out := range outs {
		h := l.items[out.ID]
		h.confirmed = true
		if !h.ended() {
			l.ready++
		}
	}
}

// arrived notes a message to the next stage. Its id is the item's, the stage and a number.
func (l *ledger) arrived(m *source.Message) {
	id, _, _ := strings.Cut(m.ID, "/")
	l.seen(id, func(h *history) { h.outs[strings.Trim(string(m.Body), `"`)]++ })
}

// buried notes a dead letter.
func (l *ledger) buried(m *source.Message) {
	id, _, _ := strings.Cut(m.ID, "~")
	l.seen(id, func(h *history) { h.dead++ })
}

func (l *ledger) seen(id string, note func(*history)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.items[id]
	if h == nil { // nobody published it
		h = &history{outs: map[string]int{}}
		l.items[id] = h
	}
	before := h.ended()
	note(h)
	h.latest = time.Now()
	if !before && h.confirmed {
		l.ready--
	}
}

// fault notes the begin of a fault, and with the returned function its end.
func (l *ledger) fault(class Class, member string) (end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.faults)
	l.counts[class]++
	l.faults = append(l.faults, event{class: class, member: member, from: time.Now()})
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.faults[n].to = time.Now()
	}
}

// sleep notes when this machine woke a sleeper much too late: what happens then is nobody's fault.
func (l *ledger) sleep(ctx context.Context) {
	const nap, much = 20 * time.Millisecond, 150 * time.Millisecond
	for last := time.Now(); wait(ctx, nap) == nil; {
		now := time.Now()
		if now.Sub(last) > nap+much {
			l.mu.Lock()
			l.late = append(l.late, event{from: last, to: now})
			l.mu.Unlock()
		}
		last = now
	}
}

// open is how many confirmed items have not been seen at an end.
func (l *ledger) open() int { l.mu.Lock(); defer l.mu.Unlock(); return l.ready }

func (l *ledger) published() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.items) }

// broken is how many faults there were.
func (l *ledger) broken() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.faults) }

func (l *ledger) kills() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for class, times := range l.counts {
		if class.kill() {
			n += times
		}
	}
	return n
}

package activemq

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"retinue/coordinator/source"
)

// session is the connection that messages come over. What was delivered over it dies with it. The source's lock guards it;
// frames are posted under that lock, so that they leave in the order of what is known here.
type session struct {
	s         *Source
	cn        *conn
	consuming bool
	last      int // slot that was opened
	arrived   int
	slots     map[string]*slot
}

// slot is a subscription that has one message at most.
type slot struct {
	id    string
	class int
	h     *hold // the message in it that has no verdict
}

// hold is a delivery.
type hold struct {
	se   *session
	slot *slot
	f    *frame
	m    *source.Message
	out  bool // it was handed out

	number int // of the session's deliveries
}

// order is when a slot's message arrived; 0: it has none.
func (sl *slot) order() int {
	if sl.h == nil {
		return 0
	}
	return sl.h.number
}

func (s *Source) newSession(ctx context.Context) (*session, error) {
	se := &session{s: s, slots: map[string]*slot{}}
	cn, err := dial(ctx, &s.cfg, se.delivered)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	se.cn = cn
	s.mu.Unlock()
	go func() {
		<-cn.dead
		s.lost(se)
	}()
	return se, nil
}

// consume opens the slots that are missing.
func (se *session) consume() {
	se.s.mu.Lock()
	defer se.s.mu.Unlock()
	if se.consuming {
		return
	}
	se.consuming = true
	var have [source.MaxClasses]int
	for _, sl := range se.slots {
		have[sl.class]++
	}
	for class := range se.s.cfg.Classes {
		for range se.s.cfg.Prefetch - have[class] {
			se.open(class)
		}
	}
}

// open makes a slot. A refusal ends the connection: it is the same for all.
func (se *session) open(class int) {
	se.last++
	sl := &slot{id: strconv.Itoa(se.last), class: class}
	se.slots[sl.id] = sl
	se.cn.post(newFrame("SUBSCRIBE", "id", sl.id, "destination", se.s.cfg.destination(class), "ack", "client-individual", "activemq.prefetchSize", "1"))
}

// shut ends a slot: the broker takes back what is in it, before it answers.
func (se *session) shut(sl *slot) chan error {
	delete(se.slots, sl.id)
	sl.h = nil
	return se.cn.ask(newFrame("UNSUBSCRIBE", "id", sl.id))
}

// delivered gets each message from the connection.
func (se *session) delivered(f *frame) {
	se.s.mu.Lock()
	sl := se.slots[f.headers["subscription"]]
	if sl == nil {
		se.s.mu.Unlock()
		return // it was on its way when its slot was shut, and is the broker's again
	}
	m, due := read(f, sl.class)
	h := &hold{se: se, slot: sl, f: f, m: m}
	se.arrived++
	h.number = se.arrived
	sl.h = h
	se.s.mu.Unlock()
	if left := time.Until(due); !due.IsZero() && left > 0 {
		time.AfterFunc(left, func() { se.s.offer(h) })
		return
	}
	se.s.offer(h)
}

// ack ends a message for good. The slot is free for the next from here on.
func (h *hold) ack() chan error {
	se := h.se
	se.s.mu.Lock()
	defer se.s.mu.Unlock()
	h.slot.h = nil
	answer := se.cn.ask(newFrame("ACK", "id", h.f.headers["ack"]))
	if !se.consuming {
		se.shut(h.slot)
	}
	return answer
}

// back returns a message to its queue.
func (h *hold) back() chan error {
	se := h.se
	se.s.mu.Lock()
	defer se.s.mu.Unlock()
	if h.slot.h != h {
		done := make(chan error, 1)
		done <- nil
		return done
	}
	answer := se.shut(h.slot)
	if se.consuming {
		se.open(h.slot.class)
	}
	return answer
}

// rest stops fetching and returns what was not handed out.
func (se *session) rest(ctx context.Context) error {
	return se.restIf(ctx, func() bool { return true })
}

// restIf does so if it is still right, by what the source's lock guards: a Receive that has begun meanwhile would wait for ever.
func (se *session) restIf(ctx context.Context, right func() bool) error {
	se.s.mu.Lock()
	if !right() {
		se.s.mu.Unlock()
		return nil
	}
	se.consuming = false
	se.s.ahead = [source.MaxClasses][]*hold{}
	var answers []chan error
	// Empty ones first, so that nothing that goes back comes into them, then in the order of arrival.
	slots := slices.SortedFunc(maps.Values(se.slots), func(a, b *slot) int { return cmp.Compare(a.order(), b.order()) })
	for _, sl := range slots {
		if sl.h == nil || !sl.h.out {
			answers = append(answers, se.shut(sl))
		}
	}
	se.s.mu.Unlock()
	return se.cn.waitAll(ctx, answers)
}

// waitAll returns the first error of several answers.
func (cn *conn) waitAll(ctx context.Context, answers []chan error) error {
	var all error
	for _, a := range answers {
		if err := cn.wait(ctx, a); err != nil && all == nil {
			all = err
		}
	}
	return all
}

// refused says that the broker has answered, and not as we wished.
func refused(err error) bool {
	var broker *brokerError
	return errors.As(err, &broker)
}

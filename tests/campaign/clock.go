package main

import (
	"sync"
	"time"

	"retinue/tests/harness"
)

// bootNow is the boot clock in nanoseconds: the one clock that all processes of the machine share.
func bootNow() int64 { return int64(harness.BootTime()) }

// sleepers are applications that say how late they were woken up. There are dozens, and each elector is such a process as well.
type sleepers struct {
	mu    sync.Mutex
	woken []wakeUp
}

type wakeUp struct {
	who *incarnation
	lateness
}

func (s *sleepers) note(who *incarnation, at int64, late time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.woken = append(s.woken, wakeUp{who, lateness{at - int64(late), late}})
}

// worst is how late any application was woken up between two moments, but for those that were stopped on purpose.
func (s *sleepers) worst(from, to int64) (worst time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.woken {
		if end := w.at + int64(w.late); end >= from && w.at < to && w.late > worst && !blind(w.who.slot, w.at, end) {
			worst = w.late
		}
	}
	return worst
}

func (s *sleepers) samples() (out []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.woken {
		if !blind(w.who.slot, w.at, w.at+int64(w.late)) {
			out = append(out, w.late)
		}
	}
	return out
}

// starvation measures how late this machine wakes up those who sleep. What a starved machine delays is no fault of the elector.
type starvation struct {
	mu     sync.Mutex
	late   []lateness
	all    []time.Duration
	stop   chan struct{}
	ticked int
}

type lateness struct {
	at   int64 // when it should have woken up
	late time.Duration
}

const (
	starveTick  = 10 * time.Millisecond
	starveNoted = 20 * time.Millisecond
)

func watchStarvation() *starvation {
	s := &starvation{stop: make(chan struct{})}
	go s.run()
	return s
}

func (s *starvation) run() {
	for {
		due := bootNow() + int64(starveTick)
		select {
		case <-s.stop:
			return
		case <-time.After(starveTick):
		}
		late := time.Duration(bootNow() - due)
		s.mu.Lock()
		s.ticked++
		if s.ticked%10 == 0 {
			s.all = append(s.all, max(0, late))
		}
		if late > starveNoted {
			s.late = append(s.late, lateness{due, late})
		}
		s.mu.Unlock()
	}
}

func (s *starvation) close() { close(s.stop) }

// between is all the time that was lost between two moments.
func (s *starvation) between(from, to int64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum time.Duration
	for i := len(s.late) - 1; i >= 0; i-- {
		l := s.late[i]
		if l.at+int64(l.late) < from {
			break
		}
		if l.at < to {
			sum += l.late
		}
	}
	return sum
}

func (s *starvation) samples() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]time.Duration(nil), s.all...)
}

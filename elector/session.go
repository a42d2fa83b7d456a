package elector

import (
	"fmt"
	"time"

	"retinue/internal/clock"
)

// driveSession opens or renews the session when it is time.
func (m *machine) driveSession(now clock.Instant) {
	s := &m.session
	if s.busy() || m.closing || now < s.next {
		return
	}
	if s.ID == "" {
		if m.stopping {
			return
		}
		s.opening = true
		m.emit(fxOpen{m.spec()})
		return
	}
	s.inFlight++
	s.next = now.Add(m.cfg.renewAgain())
	m.emit(fxRenew{s.ID})
}

// busy says whether nothing more may be asked before something is answered.
func (s *sessionState) busy() bool { return s.opening || s.inFlight >= maxRenewals }

func (m *machine) spec() SessionSpec {
	return SessionSpec{
		// The catalog check follows sessions by name: a name of its own for each session keeps the end of an old one from marking its successor.
		Name:      fmt.Sprintf("%s elector %s %d", m.cfg.App, m.cfg.ID, m.wall().UnixMilli()),
		TTL:       m.cfg.Lease,
		LockDelay: m.cfg.lockDelay(),
	}
}

func (m *machine) opened(now clock.Instant, ev evOpened) {
	s := &m.session
	s.opening = false
	m.denied = denied(ev.err)
	if ev.err != nil {
		s.next = now.Add(min(5*time.Second, m.cfg.Lease/2))
		return
	}
	s.Session = ev.session
	s.confirmed = ev.sent
	s.until = ev.sent.Add(m.cfg.Lease - m.cfg.guard())
	s.pending, s.failing = 0, false
	s.next = ev.sent.Add(m.cfg.Lease / 3)
	m.candDirty, m.candBytes = true, nil
	if m.synced {
		m.emit(fxWatch{}) // whatever ended the last session may have cut the watch
	}
	for _, e := range m.list {
		e.viewed = false
		m.arm(now, e)
	}
}

// renewed judges the answer to a renewal. An answer that arrives while the lease is still good prolongs it: the session cannot have
// been expiring. One that arrives later proves nothing by itself, because Consul answers 200 for a session whose end is already
// decided: what is held must be confirmed through Raft (safe), and under fast revocation a session that may have been expired
// is given up.
//
// Several may be under way, and be answered in any order. Each counts from when it was sent itself, and only the latest counts.
func (m *machine) renewed(now clock.Instant, ev evRenewed) {
	s := &m.session
	if ev.session != s.ID {
		return
	}
	s.inFlight--
	m.denied = denied(ev.err)
	switch {
	case gone(ev.err):
		m.sessionLost(now, "session_expired", false)
		return
	case ev.err != nil:
		s.failing = true
		if s.inFlight == 0 {
			s.next = now.Add(min(100*time.Millisecond, m.cfg.Lease/20))
		}
		return
	}
	if s.failing {
		s.failing = false
		m.emit(fxWatch{})
	}
	s.next = max(s.next, ev.sent.Add(m.cfg.Lease/3)) // another may have been sent since
	switch {
	case m.sessionGood(now):
		m.prove(now, ev.sent)
	case m.cfg.Revocation == Fast && ev.received >= s.confirmed.Add(2*s.TTL-m.cfg.guard()):
		m.sessionLost(now, "session_expired", true)
	case !m.holdsAny():
		m.prove(now, ev.sent)
	default:
		s.pending = max(s.pending, ev.sent) // driveCommit sends the confirmation
	}
}

// prove moves the session's lease to what a request sent at sent has shown.
func (m *machine) prove(now clock.Instant, sent clock.Instant) {
	s := &m.session
	if sent > s.confirmed {
		s.confirmed = sent
		s.until = sent.Add(m.cfg.Lease - m.cfg.guard())
	}
	s.pending = 0
	for _, e := range m.list {
		if e.holder != nil {
			e.viewed = false // its deadline has moved
		}
		m.settle(now, e)
	}
}

func (m *machine) holdsAny() bool {
	for _, e := range m.list {
		// An attempt that was never answered is not held: it has to be repeated, and that goes through Raft like a confirmation.
		if e.lock == lockHeld {
			return true
		}
	}
	return false
}

// sessionLost ends everything that stood on the session. destroy: it may still exist, and its locks with it.
func (m *machine) sessionLost(now clock.Instant, reason string, destroy bool) {
	old := m.session.ID
	m.session = sessionState{next: now}
	for _, e := range m.list {
		if e.holder != nil {
			m.endLeadership(now, e, reason, nil)
		}
		if e.release != nil {
			m.finish(e, Outcome{Released: true, Reason: reason})
		}
		e.lock, e.proven, e.viewed, e.behind = lockNone, false, false, false
		e.tryAt = clock.Never
		e.floor = 0 // a restored cluster may count from below
	}
	m.candBytes, m.leads, m.leadsAt = nil, nil, 0
	if destroy {
		m.emit(fxDestroy{old})
	}
}

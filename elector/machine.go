package elector

import (
	"errors"
	"net/http"
	"time"

	"retinue/internal/clock"
)

// machine is the logic of one elector: a pure state machine. step is its only way in; effects collects what it wants done.
//
// The two leases it keeps: the session's (until), confirmed by renewals, is what this elector may rely on; the application's, one
// for each leadership, is what the application has been heard within. A leader leads until the earlier of both.
type machine struct {
	cfg       Config
	wall      func() time.Time // for people's eyes only
	elections map[string]*election
	names     []string    // in configuration order
	list      []*election // in the same order

	session        sessionState
	candidates     map[string]CandidateRecord // electors whose session lives, by id
	candidatesSeen map[string]Entry           // what candidates were read from
	candDirty      bool                       // our own record has to be written
	candBytes      []byte                     // what was written last
	leads          []string                   // what the catalog says we lead
	remains        map[string]corpse          // of dead electors, by key
	sweeping       bool
	leadsDirty     bool          // it may have to say something else
	leadsAt        clock.Instant // when it is to be written; 0: not
	committing     *Batch        // at most one batch is under way
	retryAt        clock.Instant // not before: the store did not answer
	synced         bool
	denied         bool // Consul does not take the token, as far as the session goes
	stopping       bool
	stopBy         clock.Instant // give up on Consul then
	keepAt         clock.Instant // asked to end with everybody in office: end then, if they still are; 0: not asked
	inherited      clock.Instant // what an earlier process of this elector granted has run out by then; 0: there was none
	inheritedUntil uint64        // index of the first observation after that: locks up to it may be that process's
	closing        bool
	done           bool

	index   uint64 // of the last event
	effects []any
}

// sessionState is the session with Consul.
type sessionState struct {
	Session
	confirmed clock.Instant // start of the last request that proved it
	until     clock.Instant // confirmed + lease - guard: what may be relied on
	pending   clock.Instant // start of a renewal that came too late to prove anything by itself; 0 none
	opening   bool
	inFlight  int           // renewals that have not been answered
	failing   bool          // the last renewal was not answered
	next      clock.Instant // when to open or renew
}

func newMachine(cfg Config, wall func() time.Time) *machine {
	m := &machine{cfg: cfg, wall: wall, elections: map[string]*election{}, names: cfg.Elections, candidates: map[string]CandidateRecord{}}
	for _, name := range cfg.Elections {
		e := &election{name: name, tryAt: clock.Never}
		m.elections[name] = e
		m.list = append(m.list, e)
	}
	return m
}

// step feeds one event to the machine.
func (m *machine) step(now clock.Instant, ev any) reply {
	if m.done {
		return reply{refusal: refuse(http.StatusServiceUnavailable, "stopping", "")}
	}
	m.expire(now)
	r := m.handle(now, ev)
	m.drive(now)
	return r
}

func (m *machine) handle(now clock.Instant, ev any) reply {
	m.leadsDirty = m.leadsDirty || ofStore(ev)
	switch ev := ev.(type) {
	case evTick:
	case evOpened:
		m.opened(now, ev)
	case evRenewed:
		m.renewed(now, ev)
	case evCommitted:
		m.committed(now, ev)
	case evObserved:
		m.observed(now, ev.snapshot)
	case evSwept:
		m.sweeping = false
	case evClosed:
		m.done = true
		m.emit(fxDone{})
	case evStop:
		m.stop(now, ev.keep)
	default:
		return m.request(now, ev)
	}
	return reply{}
}

// drive starts whatever can be started now.
func (m *machine) drive(now clock.Instant) {
	m.driveKeep(now)
	m.driveSession(now)
	m.driveCommit(now)
	m.driveSweep(now)
	m.driveStop(now)
}

func (m *machine) emit(fx any) { m.effects = append(m.effects, fx) }

// take returns the effects collected so far.
func (m *machine) take() []any {
	fx := m.effects
	m.effects = nil
	return fx
}

// notice is how early a suspension is announced, so that the news precedes the deadline.
func (m *machine) notice() time.Duration { return min(10*time.Millisecond, m.cfg.Lease/100) }

// sessionGood says whether the session may be relied on.
func (m *machine) sessionGood(now clock.Instant) bool {
	return m.session.ID != "" && now < m.session.until.Add(-m.notice())
}

// expire ends by the clock what the clock ends.
func (m *machine) expire(now clock.Instant) {
	good := m.sessionGood(now)
	for _, e := range m.list {
		if !good && e.proven {
			e.proven = false
			e.viewed = false
		}
		if e.holder == nil {
			continue
		}
		if now >= e.holder.until {
			reason := "app_lease_expired"
			if e.holder.frozen {
				reason = "stepdown_deadline"
			}
			m.endLeadership(now, e, reason, &release{to: e.holder.stepTo})
			continue
		}
		if !e.proven && !e.suspended {
			e.suspended = true
			reason := "no_answer_from_consul"
			if m.denied {
				reason = "token_refused"
			}
			m.event(e, EventSuspended, reason)
		}
	}
}

// next is when step must be called again if nothing else happens. What was due at now has been dealt with, or waits for an event.
func (m *machine) next(now clock.Instant) clock.Instant {
	if m.done {
		return clock.Never
	}
	at := clock.Never
	consider := func(t clock.Instant) {
		if t > now && t < at {
			at = t
		}
	}
	if !m.session.busy() && !m.closing {
		consider(m.session.next)
	}
	if m.anyProven() {
		consider(m.session.until.Add(-m.notice()))
	}
	if m.stopping {
		consider(m.stopBy)
	} else if m.keepAt != 0 {
		consider(m.keepAt)
	}
	if m.committing == nil {
		consider(m.retryAt)
		consider(m.leadsAt)
	}
	for _, r := range m.remains {
		consider(r.since.Add(sweepAfter))
	}
	for _, e := range m.list {
		consider(e.tryAt)
		if e.holder != nil {
			consider(e.holder.until)
		}
	}
	return at
}

func (m *machine) anyProven() bool {
	for _, e := range m.list {
		if e.proven {
			return true
		}
	}
	return false
}

// elect makes the first waiting candidate the leader. The lock is ours and the session good.
func (m *machine) elect(now clock.Instant, e *election) {
	c := e.candidates[0]
	e.drop(c)
	e.holder, e.proven, e.suspended = c, true, false
	e.vacant, e.failed, e.blocked, e.tryAt, e.yield = 0, 0, ReasonNone, clock.Never, false
	c.until = now.Add(c.lease)
	e.leading = m.session.ID
	e.dirty = true // the token goes into the record
	m.event(e, EventElected, "")
}

// endLeadership ends the leadership of this side. rel says how it ends in Consul; nil when it has ended there already.
func (m *machine) endLeadership(now clock.Instant, e *election, reason string, rel *release) {
	c := e.holder
	e.holder, e.suspended = nil, false
	e.remember(e.token, reason)
	if rel != nil {
		rel.holder, rel.token = c.id, e.token
		e.release = rel
		e.yield = true
	} else {
		e.lock, e.proven = lockNone, false
	}
	if c.waiters > 0 && !c.claimed && !m.stopping {
		// It ended before anybody was told of it: whoever waits goes on waiting.
		e.candidates = append([]*candidate{{id: c.id, waiters: c.waiters, priority: c.priority, value: c.value, lease: c.lease, explicit: c.explicit, until: clock.Never}}, e.candidates...)
	}
	m.candDirty = true
	m.event(e, EventLost, reason)
}

// event reports a change to applications.
func (m *machine) event(e *election, t EventType, reason string) {
	m.index++
	e.index = m.index
	e.viewed = false
	ev := Event{Index: m.index, Type: t, Election: e.name, Role: m.role(e), Reason: reason, Token: e.token, Leader: m.leaderInfo(e), Time: m.wall().UTC()}
	if e.holder != nil {
		ev.Deadline = int64(m.deadline(e))
	}
	switch t {
	case EventLeaderChanged:
		ev.Token = ev.Leader.Token
	case EventVacant:
		ev.Token = 0
	}
	m.emit(fxEvent{ev})
}

func (m *machine) role(e *election) Role {
	switch {
	case e.holder == nil:
		return Follower
	case e.proven:
		return Leader
	}
	return Suspended
}

// deadline is until when the holder leads.
func (m *machine) deadline(e *election) clock.Instant {
	return clock.Min(e.holder.until, m.session.until)
}

// leaderInfo is who leads, for applications.
func (m *machine) leaderInfo(e *election) *LeaderInfo {
	if e.holder != nil {
		r := e.record
		return &LeaderInfo{ID: e.holder.id, Elector: m.cfg.ID, Alloc: m.cfg.Alloc, Host: m.cfg.Host, Address: m.cfg.Address, Token: e.token,
			Term: r.Term, Since: r.Since, Lease: r.Lease, Value: r.Value, Self: true}
	}
	if !e.current() || e.seen.Session == "" || e.seen.Session == m.session.ID {
		return nil
	}
	return infoOf(e.seen)
}

// infoOf reads who leads from a key.
func infoOf(entry Entry) *LeaderInfo {
	r := decodeRecord(entry.Value)
	return &LeaderInfo{ID: r.Leader, Elector: r.Elector, Alloc: r.Alloc, Host: r.Host, Address: r.Address, Token: tokenOf(entry, r),
		Term: r.Term, Since: r.Since, Lease: r.Lease, Value: r.Value}
}

// tokenOf is the fencing token of a held key. Until the holder has written it into the record, the key has not been touched since
// the lock was taken, and its index is the token. A record of another session is an edit, and tells nothing.
func tokenOf(entry Entry, r Record) uint64 {
	if r.Token != 0 && r.Session == entry.Session {
		return r.Token
	}
	return entry.Modify
}

// view is e as everybody may see it.
func (m *machine) view(e *election) *View {
	v := &View{Election: e.name, Index: e.index, Leader: m.leaderInfo(e), Blocked: e.blocked, Synced: m.synced, Connected: m.session.ID != "" && m.session.pending == 0,
		Lease: m.cfg.Lease}
	for _, c := range ranking(e.name, m.candidates) {
		v.Candidates = append(v.Candidates, c.Elector)
	}
	for _, c := range e.candidates {
		v.Local = append(v.Local, c.id)
	}
	if n := len(e.past); n > 0 {
		v.LostReason, v.LostToken = e.past[n-1].reason, e.past[n-1].token
	}
	if c := e.holder; c != nil {
		v.Holder, v.Token, v.Term, v.Lease, v.Proven, v.Stepdown = c.id, e.token, e.record.Term, c.lease, e.proven, c.frozen
		v.Deadline = m.deadline(e)
	}
	v.Floor = m.floor(e, v.Leader)
	return v
}

// floor is the lowest token that may still be good: that of the leader, or when there is none, that of the last one.
func (m *machine) floor(e *election, leader *LeaderInfo) uint64 {
	if leader != nil {
		return leader.Token
	}
	rec := decodeRecord(e.seen.Value)
	return max(rec.Token, rec.PreviousToken)
}

// stop asks every leader to step down, and ends when all of them have. With keep, and when all leaders are connected, this elector
// alone is being restarted (whoever stops the whole group stops the application first): it leaves everything to its next process.
func (m *machine) stop(now clock.Instant, keep bool) {
	if m.stopping {
		return
	}
	if keep && m.allTethered() {
		m.keepAt = now.Add(m.cfg.linger())
		return
	}
	m.stopping = true
	m.stopBy = now.Add(2*m.cfg.Lease + time.Second)
	for _, e := range m.list {
		e.candidates, e.tryAt, e.viewed = nil, clock.Never, false
		if e.holder != nil {
			m.stepdown(now, e, "")
		}
	}
	m.candDirty = true
}

// driveKeep leaves what is led here to the next process, unless an application ends meanwhile: Nomad's restart of a whole allocation
// signals all of its tasks at once, and then the lock must not wait for them.
func (m *machine) driveKeep(now clock.Instant) {
	switch {
	case m.keepAt == 0 || m.stopping:
	case !m.allTethered():
		m.stop(now, false)
	case now >= m.keepAt:
		m.done = true
		m.emit(fxDone{keep: true})
	}
}

// allTethered says whether somebody leads here, and everybody who does is connected.
func (m *machine) allTethered() bool {
	leads := false
	for _, e := range m.list {
		switch {
		case e.holder != nil && (e.holder.tethers == 0 || e.holder.frozen):
			return false
		case e.holder != nil:
			leads = true
		case e.lock != lockNone:
			return false
		}
	}
	return leads
}

// driveStop closes the session once nobody leads by it.
func (m *machine) driveStop(now clock.Instant) {
	if !m.stopping || m.closing || (m.committing != nil || m.session.opening) && now < m.stopBy {
		return
	}
	for _, e := range m.list {
		if e.holder != nil || e.lock != lockNone && now < m.stopBy {
			return
		}
	}
	m.closing = true
	if m.session.ID == "" || now >= m.stopBy {
		m.done = true
		m.emit(fxDone{})
		return
	}
	m.emit(fxClose{m.session.ID})
}

// anyone as the target of a transfer: whoever is first in rank.
const anyone = "any"

func refuse(status int, code, message string) *Refusal {
	return &Refusal{Status: status, Error: code, Message: message}
}

func gone(err error) bool { return errors.Is(err, errSessionGone) }

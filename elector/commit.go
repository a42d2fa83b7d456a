package elector

import (
	"bytes"
	"slices"
	"time"

	"retinue/internal/clock"
)

// unknownLeads is in the catalog after a write that was not answered: it differs from everything.
var unknownLeads = []string{"?"}

const (
	// A Consul transaction takes 128 operations; one is kept for the candidate record.
	maxBatchOps = 126
	// ... and 512 KiB, in base64.
	maxBatchBytes = 256 << 10
	// catalogDelay is how long the catalog waits behind a lock: as long as a successor may take for its own.
	catalogDelay = 20 * time.Millisecond
)

// driveCommit sends the next batch when none is under way: what frees a lock before what proves one, before what takes one, before
// what only informs. A batch holds operations of one kind, so that one that cannot be applied does not hold up another kind.
func (m *machine) driveCommit(now clock.Instant) {
	if m.committing != nil || m.session.ID == "" || m.closing || now < m.retryAt {
		return
	}
	m.retryAt = 0
	b := &Batch{Session: m.session.ID}
	for _, plan := range []func(clock.Instant, *Batch){m.planReleases, m.planConfirms, m.planLocks, m.planUpdates} {
		if plan(now, b); len(b.Ops) > 0 {
			break
		}
	}
	// Checks alone would be answered from memory: with a write they go through Raft, behind an invalidation that is under way.
	confirming := len(b.Ops) > 0 && b.Ops[0].Verb == VerbConfirm
	if confirming || m.candDirty {
		if record := m.candidateRecord(); confirming || !bytes.Equal(record, m.candBytes) {
			b.Candidate = record
		} else {
			m.candDirty = false
		}
	}
	if len(b.Ops) == 0 {
		m.planCatalog(now, b)
	}
	if len(b.Ops) == 0 && b.Candidate == nil && b.Leads == nil {
		return
	}
	for _, op := range b.Ops {
		m.elections[op.Election].busy = true
	}
	m.committing = b
	m.emit(fxCommit{*b})
}

// add puts an operation into the batch, if it fits.
func (m *machine) add(b *Batch, op Op) bool {
	if len(b.Ops) > 0 && !fits(b, op) {
		return false
	}
	b.Ops = append(b.Ops, op)
	return true
}

func fits(b *Batch, op Op) bool {
	ops, size := op.Verb.operations(), len(op.Value)
	for _, have := range b.Ops {
		ops += have.Verb.operations()
		size += len(have.Value)
	}
	return ops <= maxBatchOps && size <= maxBatchBytes
}

func (m *machine) planReleases(now clock.Instant, b *Batch) {
	for _, e := range m.list {
		if e.release == nil {
			continue
		}
		index, known := m.heldAt(e)
		if !known { // an unanswered attempt at the lock: should it succeed yet, the watch will show it
			m.released(e, KeyIndex{}, Outcome{Released: true, Reason: string(ReasonNotHeld)})
			continue
		}
		op := Op{Verb: VerbUnlock, Election: e.name, KeyIndex: index}
		rec := Record{Term: e.term, Since: m.wall().UTC(), PreviousToken: e.token, HowTo: howToVacant, History: m.historyOfOurs(e)}
		if next := m.successor(e, e.release.to); next != nil {
			op.Verb, op.Successor = VerbTransfer, next.Record.Session
			history := rec.History
			rec = m.recordFor(e, next.Bid.Candidate, next.Record.ID, next.Record.Session, next.Bid.Value)
			rec.Address, rec.Alloc, rec.Host, rec.Lease, rec.History = next.Record.Address, next.Record.Alloc, next.Record.Host, next.Record.Lease, history
		}
		op.Value = rec.encode()
		if !m.add(b, op) {
			return
		}
	}
}

// heldAt is the index at which a key of ours was last seen or written.
func (m *machine) heldAt(e *election) (index uint64, known bool) {
	ours := e.current() && e.seen.Session == m.session.ID
	switch {
	case e.lock == lockHeld && ours:
		return max(e.key.Modify, e.seen.Modify), true
	case e.lock == lockHeld:
		return e.key.Modify, true
	}
	return e.seen.Modify, ours
}

// successor is the elector that a release names, if it is in the race.
func (m *machine) successor(e *election, to string) *contender {
	if to == "" {
		return nil
	}
	for _, c := range ranking(e.name, m.candidates) {
		if c.Elector != m.cfg.ID && (to == anyone || matches(c.Record, to)) {
			return &c
		}
	}
	return nil
}

// matches says whether a person who wrote name meant this elector.
func matches(r CandidateRecord, name string) bool {
	return name == r.ID || name == r.Alloc || name == r.Address && name != "" || len(name) >= 8 && len(r.Alloc) > len(name) && r.Alloc[:len(name)] == name
}

// recordFor is the record of a new leadership of e.
func (m *machine) recordFor(e *election, candidate, elector, session string, value any) Record {
	prev := decodeRecord(e.seen.Value)
	prevToken := prev.Token
	if prevToken == 0 {
		prevToken = prev.PreviousToken
	}
	return Record{Leader: candidate, Elector: elector, Session: session, Term: max(prev.Term, e.term) + 1, PreviousToken: max(prevToken, e.token),
		Since: m.wall().UTC(), Lease: m.cfg.Lease.String(), Value: value, HowTo: howToHeld}
}

func (m *machine) planConfirms(now clock.Instant, b *Batch) {
	fresh := m.session.pending != 0 && now < m.session.pending.Add(m.cfg.Lease-m.cfg.guard())
	if !fresh && !m.sessionGood(now) {
		return
	}
	for _, e := range m.list {
		if e.lock == lockHeld && !e.proven && e.release == nil && !m.add(b, Op{Verb: VerbConfirm, Election: e.name, KeyIndex: e.key.Modify}) {
			return
		}
	}
}

func (m *machine) planLocks(now clock.Instant, b *Batch) {
	if !m.sessionGood(now) || m.stopping {
		return
	}
	anew := false
	for _, e := range m.list {
		if e.tryAt > now || len(e.candidates) == 0 || e.lock == lockHeld {
			continue
		}
		if e.behind {
			anew = true
			e.awaitNews(now)
			e.floor = 0 // after a restore of the store, nothing that it shows is as new as what we did
			continue
		}
		if e.lock != lockUnknown {
			c := e.candidates[0]
			e.record = m.recordFor(e, c.id, m.cfg.ID, m.session.ID, c.value)
			e.record.Address, e.record.Alloc, e.record.Host = m.cfg.Address, m.cfg.Alloc, m.cfg.Host
			e.record.History = m.historyOfOthers(e)
			e.written = e.record.encode()
		}
		if !m.add(b, Op{Verb: VerbLock, Election: e.name, Value: e.written, KeyIndex: e.seen.Modify}) {
			break
		}
		e.tried = e.seen.Modify
	}
	if anew {
		m.emit(fxWatch{})
	}
}

func (m *machine) planUpdates(now clock.Instant, b *Batch) {
	for _, e := range m.list {
		if !e.dirty || e.holder == nil || !e.proven {
			continue
		}
		e.written = m.heldRecord(e).encode()
		if !m.add(b, Op{Verb: VerbUpdate, Election: e.name, Value: e.written, KeyIndex: e.key.Modify}) {
			return
		}
	}
}

// heldRecord is the record of a leadership of ours as it should be.
func (m *machine) heldRecord(e *election) Record {
	r := e.record
	r.Token, r.Leader, r.Session, r.Elector, r.HowTo = e.token, e.holder.id, m.session.ID, m.cfg.ID, howToHeld
	return r
}

// candidateRecord is our own record as it should be.
func (m *machine) candidateRecord() []byte {
	rec := CandidateRecord{ID: m.cfg.ID, Session: m.session.ID, Alloc: m.cfg.Alloc, Host: m.cfg.Host, Address: m.cfg.Address,
		Lease: m.cfg.Lease.String(), Elections: map[string]Bid{}}
	for _, e := range m.list {
		switch {
		case m.stopping:
		case e.holder != nil && !e.holder.frozen:
			rec.Elections[e.name] = Bid{Candidate: e.holder.id, Priority: e.holder.priority}
		case len(e.candidates) > 0:
			c := e.candidates[0]
			rec.Elections[e.name] = Bid{Candidate: c.id, Priority: c.priority, Value: c.value}
		}
	}
	return encode(rec)
}

// planCatalog has the catalog say what we lead. It follows the locks: in their transaction it would cost every change of leader a third
// more time, and right behind it, it would be in the way of the successor's lock. Where many locks take many batches, it is said once.
func (m *machine) planCatalog(now clock.Instant, b *Batch) {
	if !m.session.Catalog || now < m.leadsAt || m.leadsAt == 0 && !m.leadsDirty {
		return
	}
	leads := m.leading()
	switch {
	case slices.Equal(leads, m.leads):
		m.leadsAt = 0
	case m.leadsAt == 0:
		m.leadsAt = now.Add(catalogDelay)
	default:
		b.Leads, m.leadsAt = leads, 0
	}
	m.leadsDirty = false
}

// leading is what we lead, sorted.
func (m *machine) leading() []string {
	names := []string{}
	for _, e := range m.list {
		if e.lock == lockHeld {
			names = append(names, e.name)
		}
	}
	slices.Sort(names)
	return names
}

// committed takes in the outcome of the batch under way.
func (m *machine) committed(now clock.Instant, ev evCommitted) {
	b := m.committing
	m.committing = nil
	if b == nil {
		return
	}
	for _, op := range b.Ops {
		m.elections[op.Election].busy = false
	}
	if b.Session != m.session.ID {
		return
	}
	switch {
	case ev.err != nil:
		m.unanswered(now, b)
	case !ev.result.Applied:
		m.refused(now, b, ev.result)
	default:
		m.applied(now, b, ev.result)
	}
	for _, op := range b.Ops {
		e := m.elections[op.Election]
		if e.current() { // the watch may have been faster than the answer, and may have shown what came behind the write or before it
			if e.lock == lockHeld {
				m.compare(now, e)
			}
			m.report(e, e.seen)
		}
		m.settle(now, e)
	}
}

// unanswered: every operation may have been applied, or may be applied later.
func (m *machine) unanswered(now clock.Instant, b *Batch) {
	m.retryAt = now.Add(min(100*time.Millisecond, m.cfg.Lease/20))
	if b.Leads != nil {
		m.leads = unknownLeads
	}
	if b.Candidate != nil {
		m.candBytes = nil
	}
	for _, op := range b.Ops {
		e := m.elections[op.Election]
		if op.Verb == VerbLock {
			e.lock, e.blocked = lockUnknown, ReasonStoreError
			e.tryAt = m.retryAt
			if e.current() {
				m.compare(now, e)
			}
		}
	}
}

// refused: nothing was applied. Each failed operation tells something; the others are planned again.
func (m *machine) refused(now clock.Instant, b *Batch, r Result) {
	if r.Failed[-1] == ReasonNoSession {
		m.sessionLost(now, "session_expired", false)
		return
	}
	progress := false
	for i, op := range b.Ops {
		reason, failed := r.Failed[i]
		if !failed {
			continue
		}
		e := m.elections[op.Election]
		e.viewed = false
		if reason == ReasonNoSession {
			m.sessionLost(now, "session_expired", false)
			return
		}
		if reason == ReasonStoreError {
			e.blocked = reason
			continue
		}
		if reason == ReasonLockDelay && op.Verb != VerbLock {
			continue // a new leader of Consul's servers thinks that the delay before our lock still runs
		}
		if reason == ReasonChanged && op.Verb != VerbConfirm && op.Verb != VerbLock {
			// Still ours, but edited, or written by a request of ours that came late. The watch tells the index.
			if before := e.key.Modify; e.current() {
				m.compare(now, e)
				progress = progress || e.key.Modify != before
			}
			continue
		}
		progress = true
		switch op.Verb {
		case VerbLock:
			m.lockRefused(now, e, reason)
		case VerbUnlock:
			m.released(e, KeyIndex{}, Outcome{Released: true, Reason: string(reason)})
		case VerbTransfer:
			if reason == ReasonSuccessor {
				e.release.to = "" // the successor died: let it go to anyone
			} else {
				m.released(e, KeyIndex{}, Outcome{Released: true, Reason: string(reason)})
			}
		case VerbConfirm, VerbUpdate:
			m.taken(now, e, "superseded")
			if reason == ReasonChanged {
				e.lock, e.heldFor = lockUnknown, m.inherited // still ours, but no longer what we locked: a new term
			}
		}
	}
	if !progress {
		m.retryAt = now.Add(min(100*time.Millisecond, m.cfg.Lease/20))
	}
}

// lockRefused schedules the next attempt. Held or changed: somebody was faster, and no attempt can succeed before the watch shows
// that. Lock-delay: Consul does not say how long; it began no later than the vacancy was seen.
func (m *machine) lockRefused(now clock.Instant, e *election, reason Reason) {
	e.blocked = reason
	if reason != ReasonChanged {
		e.lock = lockNone // with "changed", it may be an unanswered attempt of ours that changed it
	}
	e.failed++
	e.tryAt = clock.Never // settle arms it
	switch {
	case reason == ReasonLockDelay:
		// An attempt within the delay never reaches Raft, so it may be repeated often when the end is near.
		end := e.vacant.Add(m.cfg.lockDelay())
		e.tryAt = max(now.Add(10*time.Millisecond), end.Add(-10*time.Millisecond))
		if now > end.Add(time.Second) {
			e.tryAt = now.Add(min(time.Duration(e.failed)*10*time.Millisecond, 200*time.Millisecond))
		}
	case e.seen.Modify == e.tried:
		e.behind = true
		e.awaitNews(now)
	case e.current():
		m.compare(now, e)
	}
}

// awaitNews gives the watch time to show what has changed, which takes it milliseconds. Then it is started anew.
func (e *election) awaitNews(now clock.Instant) {
	e.tryAt = now.Add(min(time.Duration(e.failed)*250*time.Millisecond, 5*time.Second))
	e.failed++
}

func (m *machine) applied(now clock.Instant, b *Batch, r Result) {
	if b.Candidate != nil {
		m.candBytes = b.Candidate
	}
	if b.Leads != nil {
		m.leads = b.Leads
	}
	for i, op := range b.Ops {
		e := m.elections[op.Election]
		key := r.Keys[i]
		e.viewed = false
		switch op.Verb {
		case VerbLock:
			e.lock, e.token, e.key, e.term, e.blocked = lockHeld, key.Modify, key, e.record.Term, ReasonNone
			e.proven, e.tryAt = m.sessionGood(now), clock.Never
			e.floor = max(e.floor, key.Modify)
		case VerbUnlock:
			m.released(e, key, Outcome{Released: true, Index: key.Modify})
		case VerbTransfer:
			m.released(e, key, Outcome{Released: true, Index: key.Modify, Successor: m.electorOf(op.Successor)})
		case VerbConfirm:
			m.confirmed(now, e)
		case VerbUpdate:
			e.key = key
			e.floor = max(e.floor, key.Modify)
			e.dirty = e.holder != nil && !bytes.Equal(op.Value, m.heldRecord(e).encode())
		}
	}
}

func (m *machine) electorOf(session string) string {
	for id, c := range m.candidates {
		if c.Session == session {
			return id
		}
	}
	return ""
}

// confirmed: Consul has just proved that the lock is still ours, and nobody touched the key.
func (m *machine) confirmed(now clock.Instant, e *election) {
	if m.session.pending != 0 {
		m.prove(now, m.session.pending)
	}
	if !m.sessionGood(now) {
		return
	}
	e.lock, e.proven = lockHeld, true
	if e.holder != nil && e.suspended {
		e.suspended = false
		m.event(e, EventResumed, "")
	}
}

// taken: Consul says that the lock is not ours any more.
func (m *machine) taken(now clock.Instant, e *election, reason string) {
	if e.holder != nil {
		m.endLeadership(now, e, reason, nil)
	}
	e.lock, e.proven, e.viewed = lockNone, false, false
	m.arm(now, e)
}

// released: Consul has taken the lock back, or had done so before.
func (m *machine) released(e *election, key KeyIndex, out Outcome) {
	e.floor = max(e.floor, key.Modify)
	e.lock, e.proven, e.dirty = lockNone, false, false
	m.finish(e, out)
}

// finish answers those who wait for a release.
func (m *machine) finish(e *election, out Outcome) {
	rel := e.release
	e.release = nil
	if rel == nil {
		return
	}
	if past := e.ended(rel.token); past != nil {
		past.out = out
	}
	for _, req := range rel.reqs {
		m.emit(fxAnswer{req, out})
	}
}

// settle decides what follows from holding or not holding a lock.
func (m *machine) settle(now clock.Instant, e *election) {
	if e.busy || e.lock != lockNone && now < e.heldFor {
		return
	}
	if e.lock == lockNone || e.holder != nil || e.release != nil {
		m.arm(now, e)
		return
	}
	switch {
	case len(e.candidates) == 0 || m.stopping:
		e.release = &release{}
	case e.lock == lockUnknown:
		m.arm(now, e)
	case e.proven && m.sessionGood(now):
		m.elect(now, e)
	}
}

// arm plans an attempt at a vacant lock.
func (m *machine) arm(now clock.Instant, e *election) {
	if len(e.candidates) == 0 || m.session.ID == "" || e.lock == lockHeld || e.release != nil || m.stopping {
		e.tryAt = clock.Never
		return
	}
	if e.lock != lockUnknown && (!e.current() || e.seen.Session != "") {
		e.tryAt = clock.Never // every attempt at a held lock would be a Raft entry for nothing; the watch tells when it is free
		return
	}
	if e.tryAt != clock.Never {
		return
	}
	if e.lock == lockUnknown {
		e.tryAt = now
		return
	}
	order := ranking(e.name, m.candidates)
	rank := rankOf(m.cfg.ID, order)
	if e.yield && len(order) > 1 {
		rank = len(order) + 8
	}
	e.tryAt = now.Add(time.Duration(rank) * rankStep)
	if e.barred > e.tryAt {
		// Consul keeps the lock-delay as well, except where a new leader of its servers judges an attempt before it knows of the
		// session's end. An attempt a little early is harmless: a lease ends by its guard before the lock-delay.
		e.tryAt = e.barred.Add(-10 * time.Millisecond)
		e.blocked, e.viewed = ReasonLockDelay, false
	}
}

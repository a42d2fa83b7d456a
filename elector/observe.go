package elector

import (
	"maps"
	"reflect"

	"retinue/internal/clock"
)

// observed takes in what the watch saw.
func (m *machine) observed(now clock.Instant, s Snapshot) {
	if !m.synced {
		m.synced = true
		for _, e := range m.list {
			e.viewed = false
		}
	}
	if m.inherited != 0 && m.inheritedUntil == 0 {
		m.inheritedUntil = s.Index
	}
	m.observeCandidates(s)
	m.findRemains(now, s)
	for _, e := range m.list {
		m.observe(now, e, s)
		m.observeRequest(now, e, s)
	}
}

// observeCandidates notes who is in the race: electors that hold their own record. After a restart the record of the session before
// may still be held; the later one counts.
func (m *machine) observeCandidates(s Snapshot) {
	if maps.EqualFunc(s.Candidates, m.candidatesSeen, func(a, b Entry) bool { return a.KeyIndex == b.KeyIndex && a.Session == b.Session }) {
		return
	}
	m.candidatesSeen = s.Candidates
	alive, created := map[string]CandidateRecord{}, map[string]uint64{}
	for _, entry := range s.Candidates {
		rec, ok := decodeCandidate(entry.Value)
		if ok && entry.Session != "" && entry.Session == rec.Session && entry.Create > created[rec.ID] {
			alive[rec.ID], created[rec.ID] = rec, entry.Create
		}
	}
	if reflect.DeepEqual(alive, m.candidates) {
		return
	}
	m.candidates = alive
	for _, e := range m.list {
		e.viewed = false
	}
}

func (m *machine) observe(now clock.Instant, e *election, s Snapshot) {
	entry, exists := s.Elections[e.name]
	if s.Index < e.floor {
		return // older than what we did ourselves
	}
	if entry.Modify != e.seen.Modify || entry.Session != e.seen.Session || e.seenAt == 0 {
		e.viewed = false
	}
	before := e.seen
	changed := entry.Modify != before.Modify
	e.seen, e.exists, e.seenAt = entry, exists, s.Index
	if changed || s.First {
		if !e.busy && (e.behind || e.lock == lockNone) {
			e.tryAt = clock.Never // another vacancy, or none: settle arms it
		}
		e.behind = false
	}
	if changed && !s.First && invalidated(before, entry) {
		e.barred = now.Add(m.cfg.lockDelay())
	}
	if !e.busy {
		m.compare(now, e)
	}
	m.report(e, before)
	if entry.Session == "" && (e.vacant == 0 || changed) {
		e.vacant, e.failed = now, 0
	} else if entry.Session != "" {
		e.vacant, e.failed, e.yield = 0, 0, e.yield && entry.Session == m.session.ID
	}
	if !e.busy {
		m.settle(now, e)
	}
}

// compare holds what Consul says against what we believe.
func (m *machine) compare(now clock.Instant, e *election) {
	ours := e.seen.Session == m.session.ID && m.session.ID != ""
	switch {
	case e.release != nil && !ours:
		m.released(e, KeyIndex{}, Outcome{Released: true, Reason: m.lossReason(e)})
	case e.lock == lockHeld && !ours:
		m.taken(now, e, m.lossReason(e))
	case e.lock == lockHeld && e.seen.Create != e.key.Create:
		// Deleted, and made again by an old request of ours: others may have led between.
		m.taken(now, e, "key_deleted")
		e.lock = lockUnknown
	case e.lock == lockHeld && e.seen.Modify != e.key.Modify && !e.proven && !m.sameTenure(e):
		// Not known to have been ours all the time: the same session may have lost the key and locked it again since, as happens to
		// an elector that restarts with a state file that it could not write any more. That would be another token.
		m.taken(now, e, "superseded")
		e.lock, e.heldFor = lockUnknown, m.inherited
	case e.lock == lockHeld && e.seen.Modify != e.key.Modify:
		// Somebody edited the value; the lock is untouched. Put the record back.
		e.key = e.seen.KeyIndex
		e.dirty = e.holder != nil
	case e.lock != lockHeld && ours:
		m.given(now, e)
	case e.lock == lockUnknown && !ours && (e.seen.Session != "" || e.seen.Modify != e.tried):
		// Whatever was not answered came to nothing, and finds another key from now on.
		e.lock, e.tryAt = lockNone, clock.Never
	}
}

// invalidated says whether a key that is vacant now has become so in another way than by a release, which writes a record of its own:
// a leader's session ended, and its lease may still run.
func invalidated(before, now Entry) bool {
	if now.Session != "" || now.Modify == 0 {
		return false
	}
	rec := decodeRecord(now.Value)
	return rec.Leader != "" || before.Session != "" && len(rec.HowTo) == 0
}

// sameTenure says whether the key's record was written by us under the token we hold.
func (m *machine) sameTenure(e *election) bool {
	rec := decodeRecord(e.seen.Value)
	return rec.Session == m.session.ID && rec.Token == e.token
}

// given: the key names us, and we did not know. A transfer is believed at once: the key is newer than anything we did, and its
// record is fresh. Anything else (an unanswered attempt that succeeded, an old observation) has to be locked again to be sure. So has
// what an earlier process of this elector may have locked, and granted under that token, before it could write any of it down.
func (m *machine) given(now clock.Instant, e *election) {
	rec := decodeRecord(e.seen.Value)
	earlier := m.inherited != 0 && (now < m.inherited || e.seen.Modify <= m.inheritedUntil)
	if earlier || e.lock != lockNone || e.seen.Modify <= max(e.floor, e.key.Modify) || rec.Session != m.session.ID || rec.Token != 0 {
		e.lock, e.heldFor = lockUnknown, m.inherited
		return
	}
	e.lock, e.token, e.key = lockHeld, e.seen.Modify, e.seen.KeyIndex
	e.proven = m.sessionGood(now)
	e.record, e.term = rec, rec.Term
}

func (m *machine) lossReason(e *election) string {
	switch {
	case !e.exists:
		return "key_deleted"
	case e.seen.Session == "":
		return "revoked"
	}
	return "superseded"
}

// report tells applications who leads, when that changed and it is not they.
func (m *machine) report(e *election, before Entry) {
	if e.holder != nil || e.seen.Session == m.session.ID && m.session.ID != "" {
		return
	}
	switch {
	case e.seen.Session == e.leading:
		if e.leading != "" && before.Modify != e.seen.Modify && !reflect.DeepEqual(decodeRecord(before.Value).Value, decodeRecord(e.seen.Value).Value) {
			m.event(e, EventLeaderChanged, "value")
		}
	case e.seen.Session == "":
		e.leading = ""
		m.event(e, EventVacant, "")
	default:
		e.leading = e.seen.Session
		m.event(e, EventLeaderChanged, "")
	}
}

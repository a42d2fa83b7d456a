package partition

import (
	"slices"

	"retinue/internal/clock"
)

// drive asks for all that is due at now.
func (m *machine) drive(now clock.Instant) {
	if m.done {
		return
	}
	m.driveDoomed(now)
	m.driveSession(now)
	m.plan(now)
	m.driveGives(now)
	if m.stopping {
		m.driveStop()
		return
	}
	m.driveMember(now)
	m.driveTakes(now)
	m.driveSweep()
}

func (m *machine) driveDoomed(now clock.Instant) {
	for id, d := range m.doomed {
		switch {
		case now >= d.over && !d.busy:
			delete(m.doomed, id)
		case !d.busy && m.wake(now, d.next):
			d.busy = true
			m.emit(effect{kind: doDestroy, session: id})
		}
	}
}

func (m *machine) driveSession(now clock.Instant) {
	s := &m.session
	if s.id == "" {
		if !m.stopping && !s.opening && m.wake(now, s.next) {
			s.opening = true
			m.emit(effect{kind: doOpen, first: !m.opened})
		}
		return
	}
	m.wake(now, s.until)
	if s.inFlight < maxRenewals && m.wake(now, s.next) {
		s.inFlight++
		s.next = now.Add(m.ttl / 6) // unless this one is answered before
		m.wake(now, s.next)
		m.emit(effect{kind: doRenew, session: s.id})
	}
}

// members are those who stand for partitions, as far as it is known, sorted. Of ourselves we know best. Who counts another number of
// partitions is no member: its plan and ours do not go together, and what it holds it holds.
func (m *machine) members() []string {
	var out []string
	for id, e := range m.snap.members {
		if id != m.id && e.session != "" && e.record.Partitions == m.n {
			out = append(out, id)
		}
	}
	if m.member.locked {
		out = append(out, m.id)
	}
	slices.Sort(out)
	return out
}

// rival says whether our member key is locked, and not by us.
func (m *machine) rival() bool {
	e := m.snap.members[m.id]
	return m.synced && e.session != "" && e.session != m.session.id
}

// owners are who holds which partition, by session; of ours we know best. One who has withdrawn is there under the name that it wrote.
func (m *machine) owners() map[int]string {
	bySession := map[string]string{}
	for id, e := range m.snap.members {
		if id != m.id && e.session != "" {
			bySession[e.session] = id
		}
	}
	out := map[int]string{}
	for p := range m.parts {
		part := &m.parts[p]
		e := m.snap.owners[p]
		switch {
		case part.hold != holdNone:
			out[p] = m.id
		case m.snap.index < part.after || e.session == "":
		case bySession[e.session] != "":
			out[p] = bySession[e.session]
		case e.record.Owner == m.id || e.record.Owner == "": // an earlier process of ours: no member holds it
			out[p] = "(" + e.session + ")"
		default:
			out[p] = e.record.Owner
		}
	}
	return out
}

// plan looks who shall hold what, and which of ours another shall have.
func (m *machine) plan(clock.Instant) {
	if !m.synced {
		return
	}
	m.goal = plan(m.members(), m.owners(), m.n)
	for p := range m.parts {
		part := &m.parts[p]
		switch {
		case part.hold != holdHeld:
		case !m.stand:
			part.claim.Leave = true
		case m.member.locked: // otherwise we are about to be a member again
			part.claim.Leave = m.goal[p] != m.id
		}
	}
}

// driveMember stands for partitions or withdraws.
func (m *machine) driveMember(now clock.Instant) {
	if m.session.id == "" || m.member.busy || m.member.locked == m.stand {
		return
	}
	if m.stand && (!m.synced || m.rival()) { // it changes in a listing
		return
	}
	if !m.wake(now, m.member.next) {
		return
	}
	m.member.busy = true
	do := doJoin
	if !m.stand {
		do = doWithdraw
	}
	m.emit(effect{kind: do, session: m.session.id})
}

func (m *machine) driveTakes(now clock.Instant) {
	if !m.synced || !m.stand || !m.member.locked || m.session.id == "" {
		return
	}
	takes := 0
	for p := range m.parts {
		if m.parts[p].hold == holdTaking {
			takes++
		}
	}
	for p := range m.parts {
		part := &m.parts[p]
		e, exists := m.snap.owners[p]
		if m.goal[p] != m.id || part.hold != holdNone || e.session != "" || m.snap.index < part.after || takes >= maxTakes {
			continue
		}
		clean := e.record.Clean
		if !exists {
			clean = !part.known // somebody has deleted the key; nothing is known of the hold before
		}
		from := m.member.since.Add(m.settle())
		if !clean {
			from = max(from, part.vacant.Add(m.settle()))
			if e.record.Owner == m.id {
				from = 0 // our own, from before the restart or from the session before
			}
		}
		if !m.wake(now, max(from, part.next)) {
			continue
		}
		takes++
		part.hold, part.attempted, part.clean = holdTaking, true, clean
		m.emit(effect{kind: doTake, session: m.session.id, p: p, index: e.index})
	}
}

func (m *machine) driveGives(now clock.Instant) {
	if m.session.id == "" {
		return
	}
	for p := range m.parts {
		if part := &m.parts[p]; part.hold == holdGiving && !part.busy && m.wake(now, part.next) {
			part.busy = true
			m.emit(effect{kind: doGive, session: m.session.id, p: p, index: part.lock})
		}
	}
}

// driveSweep removes the keys of members that are gone. One member does it, the first by name.
func (m *machine) driveSweep() {
	if members := m.members(); !m.synced || len(members) == 0 || members[0] != m.id {
		return
	}
	for id, e := range m.snap.members {
		if e.session == "" && id != m.id && m.swept[id] != e.index {
			m.swept[id] = e.index
			m.emit(effect{kind: doSweep, id: id, index: e.index})
		}
	}
	for id := range m.swept {
		if _, there := m.snap.members[id]; !there {
			delete(m.swept, id)
		}
	}
}

// driveStop leaves once all that was given is given.
func (m *machine) driveStop() {
	if m.closing || m.session.opening {
		return
	}
	for p := range m.parts {
		if m.session.id != "" && m.parts[p].hold == holdGiving {
			return
		}
	}
	if m.session.id == "" && len(m.doomed) == 0 {
		m.done = true
		return
	}
	if m.session.id == "" { // what is doomed is being ended
		return
	}
	m.closing = true
	m.emit(effect{kind: doClose, session: m.session.id})
}

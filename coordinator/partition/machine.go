package partition

import (
	"maps"
	"slices"
	"time"

	"retinue/internal/clock"
)

// lease is how long a session is relied on after it was proven: some time less than Consul keeps it at least.
func lease(ttl time.Duration) time.Duration { return ttl * 4 / 5 }

const (
	maxRenewals = 3 // under way at once: one that hangs must not be the end of the session
	maxTakes    = 8 // under way at once
)

// hold is how far this coordinator is with a partition.
type hold int

const (
	holdNone   hold = iota
	holdTaking      // asked for; a request is under way
	holdHeld        // ours, and the user's
	holdGiving      // the user has ended with it, and Consul still has our lock
)

// partition is what the machine knows of one.
type partition struct {
	hold  hold
	claim Claim  // holdHeld; Until is the session's
	lock  uint64 // index of our lock's key as last seen: somebody may have edited the value
	after uint64 // what listings before this index say of it is history

	attempted bool // in this session: clean is what the last request to take it was sent with
	clean     bool

	busy  bool          // a request to give it is under way
	next  clock.Instant // no further request before
	known bool          // there was a key

	free     bool          // seen vacant
	vacant   clock.Instant // since when, at the index vacantAt
	vacantAt uint64
}

// machine decides what this coordinator holds and what it asks Consul. It knows neither a clock nor a network.
type machine struct {
	id  string
	n   int
	ttl time.Duration

	stand    bool
	stopping bool
	closing  bool
	done     bool

	session struct {
		id       string
		until    clock.Instant
		opening  bool
		inFlight int
		next     clock.Instant // to open or renew it
	}
	opened bool             // there was a session before
	doomed map[string]*doom // sessions of ours that must not be relied on any more

	member struct {
		locked bool
		busy   bool
		after  uint64
		since  clock.Instant // locked since
		next   clock.Instant
	}

	synced bool
	snap   snapshot
	parts  []partition
	goal   map[int]string // the plan
	swept  map[string]uint64
	why    map[string]string // by kind of request

	out []effect
	due clock.Instant
}

// doom is what is left of a session: it is ended if possible, and ends by itself otherwise.
type doom struct {
	next, over clock.Instant
	busy       bool
}

func newMachine(id string, n int, ttl time.Duration) *machine {
	return &machine{id: id, n: n, ttl: ttl, stand: true, parts: make([]partition, n), doomed: map[string]*doom{},
		swept: map[string]uint64{}, why: map[string]string{}, due: clock.Never}
}

// settle is how long a vacancy that nobody gave back is left alone by others than its last holder, and how long a new member looks who else
// is there. A coordinator that has restarted is back by then; one whose session was ended by hand has heard of it.
func (m *machine) settle() time.Duration { return max(m.ttl/20, 250*time.Millisecond) }

// again is when a request that failed is repeated.
func (m *machine) again() time.Duration {
	return min(max(m.ttl/20, 50*time.Millisecond), time.Second)
}

// effect is a request to be made.
type effect struct {
	kind    kind
	session string
	p       int
	index   uint64
	id      string
	first   bool
}

type kind int

const (
	doOpen kind = iota
	doRenew
	doDestroy
	doJoin
	doWithdraw
	doTake
	doGive
	doSweep
	doClose
	doWatch // anew: whatever ended the session may have cut the watch
)

// event is something that has happened.
type event struct {
	kind   happening
	of     effect // that was answered
	answer answer
	err    error
	sent   clock.Instant // of a renewal or a new session
	opened string
	snap   snapshot
}

type happening int

const (
	evPoke happening = iota // time has passed, or the user wants something else
	evStop
	evAnswer
	evSnap
	evBlind // the watch has failed
)

// wants is what the user has said.
type wants struct {
	stand bool
	given func(p int, epoch uint64) bool
}

// step feeds an event, and leaves in out what is to be asked and in due when to come back.
func (m *machine) step(now clock.Instant, w wants, ev event) {
	m.out, m.due = nil, clock.Never
	// First of all: what came while nothing was proven comes too late.
	if m.session.id != "" && now >= m.session.until {
		m.lose(now)
	}
	m.stand = w.stand
	for p := range m.parts {
		if part := &m.parts[p]; part.hold == holdHeld && w.given(p, part.claim.Epoch) {
			part.hold, part.next = holdGiving, now
		}
	}
	switch ev.kind {
	case evStop:
		m.stopping = true
	case evSnap:
		m.fail("watch", nil)
		m.look(now, ev.snap)
	case evBlind:
		m.fail("watch", ev.err)
	case evAnswer:
		m.answered(now, ev)
	}
	m.drive(now)
}

// fail notes how the last request of a kind went.
func (m *machine) fail(kind string, err error) {
	if err == nil {
		delete(m.why, kind)
		return
	}
	m.why[kind] = err.Error()
}

// wake comes back at the instant at, and says whether it has come already.
func (m *machine) wake(now, at clock.Instant) bool {
	if now >= at {
		return true
	}
	m.due = clock.Min(m.due, at)
	return false
}

func (m *machine) emit(e effect) { m.out = append(m.out, e) }

// lose ends everything that stood on the session.
func (m *machine) lose(now clock.Instant) {
	if m.session.id != "" {
		m.doomed[m.session.id] = &doom{next: now, over: now.Add(2 * m.ttl)}
	}
	m.session.id, m.session.inFlight, m.session.next = "", 0, now
	m.member.locked, m.member.busy, m.member.after, m.member.next = false, false, 0, now
	for p := range m.parts {
		part := &m.parts[p]
		// A restored Consul may count from below.
		*part = partition{known: part.known, free: part.free, vacant: part.vacant, vacantAt: part.vacantAt}
	}
}

// look takes what Consul shows.
func (m *machine) look(now clock.Instant, snap snapshot) {
	m.snap, m.synced = snap, true
	for p := range m.parts {
		part := &m.parts[p]
		e, exists := snap.owners[p]
		part.known = part.known || exists
		if e.session == "" && (!part.free || part.vacantAt != e.index) {
			part.vacant, part.vacantAt = now, e.index
		}
		part.free = e.session == ""
	}
	for p := range m.parts {
		part, e := &m.parts[p], snap.owners[p]
		if snap.index < part.after {
			continue
		}
		ours := m.session.id != "" && e.session == m.session.id
		switch {
		case ours && (part.hold == holdNone || part.hold == holdTaking):
			// The answer got lost or comes later. All requests that can have done it had seen the same.
			m.got(p, e.index, part.attempted && part.clean)
		case ours:
			part.lock = e.index
		case part.hold == holdHeld:
			m.lose(now) // an operator's doing; the session is over, or not worth anything
			return
		case part.hold == holdGiving:
			*part = partition{known: true, after: part.after, free: part.free, vacant: part.vacant, vacantAt: part.vacantAt}
		}
	}
	if e := snap.members[m.id]; m.member.locked && snap.index >= m.member.after && e.session != m.session.id {
		m.member.locked, m.member.next = false, now
	}
}

// got makes a partition ours.
func (m *machine) got(p int, index uint64, clean bool) {
	part := &m.parts[p]
	*part = partition{hold: holdHeld, claim: Claim{Epoch: index, Clean: clean}, lock: index, after: index, known: true}
}

func (m *machine) answered(now clock.Instant, ev event) {
	of := ev.of
	switch of.kind {
	case doOpen:
		m.session.opening = false
		m.fail("session", ev.err)
		if ev.err != nil {
			m.session.next = now.Add(m.again())
			return
		}
		m.opened = true
		m.session.id, m.session.until, m.session.inFlight = ev.opened, ev.sent.Add(lease(m.ttl)), 0
		m.session.next = ev.sent.Add(m.ttl / 3)
		m.emit(effect{kind: doWatch})
		if now >= m.session.until { // made so slowly that it is worth nothing
			m.lose(now)
		}
		return
	case doDestroy:
		if d := m.doomed[of.session]; d != nil {
			if d.busy, d.next = false, now.Add(m.again()); ev.err == nil {
				delete(m.doomed, of.session)
			}
		}
		return
	case doSweep:
		if ev.err != nil {
			delete(m.swept, of.id) // a further listing finds it again
		}
		return
	case doClose:
		m.done = true
		return
	}
	if of.session != m.session.id {
		return
	}
	if ev.answer.gone() || ev.err == errGone {
		m.lose(now)
		return
	}
	switch of.kind {
	case doRenew:
		m.renewed(now, ev)
	case doJoin, doWithdraw:
		m.moved(now, ev)
	case doTake:
		m.fail("take", ev.err)
		part := &m.parts[of.p]
		if part.hold != holdTaking {
			return // a listing has shown it
		}
		if ev.err == nil && ev.answer.done {
			m.got(of.p, ev.answer.index, part.clean)
			return
		}
		part.hold, part.next = holdNone, now.Add(m.again())
	case doGive:
		m.fail("give", ev.err)
		part := &m.parts[of.p]
		part.busy = false
		if part.hold != holdGiving || part.lock != of.index {
			return // a listing has shown it, or something else
		}
		if ev.err == nil && ev.answer.done {
			*part = partition{known: true, after: ev.answer.index}
			return
		}
		part.next = now.Add(m.again())
	}
}

// renewed judges the answer to a renewal. It is in time: otherwise the session is not ours any more. Each counts from when it was sent,
// and the latest of them counts.
func (m *machine) renewed(now clock.Instant, ev event) {
	m.session.inFlight--
	if ev.err != nil {
		m.fail("session", ev.err)
		m.session.next = min(m.session.next, now.Add(m.again()))
		return
	}
	if m.why["session"] != "" {
		m.emit(effect{kind: doWatch})
	}
	m.fail("session", nil)
	m.session.until = max(m.session.until, ev.sent.Add(lease(m.ttl)))
	m.session.next = ev.sent.Add(m.ttl / 3)
}

// moved is the answer to joining or withdrawing.
func (m *machine) moved(now clock.Instant, ev event) {
	m.member.busy = false
	m.fail("member", ev.err)
	switch {
	case ev.err != nil:
		m.member.next = now.Add(m.again())
	case ev.of.kind == doWithdraw: // refused: it was not ours any more
		m.member.locked, m.member.after = false, max(m.member.after, ev.answer.index)
	case ev.answer.done:
		m.member.locked, m.member.after, m.member.since = true, ev.answer.index, now
	default:
		m.member.next = now.Add(m.again())
	}
}

// claims are what is held, by partition.
func (m *machine) claims() map[int]Claim {
	out := map[int]Claim{}
	if m.stopping {
		return out
	}
	for p, part := range m.parts {
		if part.hold == holdHeld {
			c := part.claim
			c.Until = m.session.until
			out[p] = c
		}
	}
	return out
}

// view is how things are, for people.
func (m *machine) view(now clock.Instant) View {
	v := View{Partitions: make([]PartitionView, m.n), Members: m.members(), Connected: m.session.id != "" && m.synced && m.why["watch"] == ""}
	owners := m.owners()
	for p := range m.parts {
		pv := PartitionView{Partition: p, Owner: owners[p]}
		if part := m.parts[p]; part.hold == holdHeld && !m.stopping {
			pv.Ours, pv.Leave = true, part.claim.Leave
		}
		v.Partitions[p] = pv
	}
	for _, kind := range []string{"session", "watch", "member", "take", "give"} {
		if v.Why = m.why[kind]; v.Why != "" {
			return v
		}
	}
	switch {
	case m.stopping:
		v.Why = "stopping"
	case !m.stand:
		v.Why = "does not stand for partitions"
	case m.session.id == "":
		v.Why = "no session yet"
	case !m.synced:
		v.Why = "Consul has not told yet who holds what"
	case !m.member.locked && m.rival():
		v.Why = "another coordinator with the name " + m.id + ", or an earlier process of this one, stands for partitions"
	case !m.member.locked:
		v.Why = "not yet among those who stand for partitions"
	default:
		ids := slices.Sorted(maps.Keys(m.snap.members))
		for _, id := range ids {
			if e := m.snap.members[id]; e.session != "" && e.record.Partitions != m.n {
				v.Why = id + " counts another number of partitions: all coordinators of a queue need the same"
			}
		}
	}
	return v
}

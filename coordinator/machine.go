package coordinator

import (
	"encoding/json"
	"fmt"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// machine is the logic of one coordinator: a pure state machine. step is its only way in; effects collects what it wants done.
type machine struct {
	cfg    Config
	wall   func() time.Time
	jitter func(time.Duration) time.Duration // in [0, d]

	seq   uint64
	items map[uint64]*held // in hand, whatever their state
	queue []*held          // those that wait, in order of arrival
	busy  map[string]*held // by id: running or finishing
	calls map[uint64]*call
	lanes map[string]*lane
	// leaving are messages of partitions that go to others, which may not have arrived.
	leaving map[*source.Message]bool
	// No call has to be ended before. A beat moves the end of its call, not this.
	callsDue clock.Instant
	past     past
	redo     map[*held]clock.Instant // commit point or broker did not answer
	tests    []*bisection

	receiving  int           // the size of the receive that is under way
	receiveAt  clock.Instant // not before
	troubles   int           // failed receives in a row
	extendAt   clock.Instant
	extending  bool
	acks       []uint64
	acking     int // batches on their way
	finishing  int
	flow       flow
	pace       time.Duration // how long calls take, lately; at first taken for long
	rate       bucket
	rates      map[string]*bucket
	share      float64 // of the rates, that is this coordinator's
	paused     bool
	why        string // it is paused
	idle       bool   // the source was told
	draining   bool
	stopping   bool
	stopBy     clock.Instant
	done       bool
	lastStatus string
	trouble    string // the last of the commit point or the broker

	totals  Totals
	tally   tally
	effects []any
}

// held is an item in hand.
type held struct {
	handle uint64
	msg    *source.Message
	env    item.Envelope
	id     string // of the item; of its replay, where it came back from the dead letters
	key    string
	state  item.State

	since     clock.Instant // received
	aged      clock.Instant // since it was published, as far as known: what aging goes by
	lost      bool
	notBefore clock.Instant
	checking  bool
	fence     uint64
	progress  json.RawMessage // what the running attempt has told of how far it is
	dirty     bool            // its history is longer than what the broker has
	cancelled bool
	call      *call
	test      *bisection
	plan      plan
	member    *membership // of a group that this stage gathers
	failures  int         // of infrastructure, in a row
}

// named is the key as workers and people see it: the one that orders items here, or else the message's own.
func (it *held) named() string {
	if it.key != "" {
		return it.key
	}
	return it.msg.Key
}

// call is one call of the worker.
type call struct {
	id       uint64
	items    []*held
	started  clock.Instant
	begun    clock.Instant // by the worker, as far as known
	wall     time.Time
	deadline clock.Instant
	beat     clock.Instant
	ending   bool
	test     *bisection
}

func newMachine(cfg Config, wall func() time.Time, jitter func(time.Duration) time.Duration) *machine {
	return &machine{cfg: cfg, wall: wall, jitter: jitter, items: map[uint64]*held{}, busy: map[string]*held{}, calls: map[uint64]*call{}, lanes: map[string]*lane{},
		callsDue: clock.Never, redo: map[*held]clock.Instant{}, flow: flow{limit: cfg.Slots}, pace: brief, share: 1, rates: map[string]*bucket{},
		totals: Totals{Failed: map[item.Class]uint64{}, Ended: map[item.State]uint64{}}}
}

// step feeds one event to the machine. The reply is of requests by people: whether there was something to do.
func (m *machine) step(now clock.Instant, ev any) bool {
	if m.done {
		return false
	}
	found := m.handle(now, ev)
	m.drive(now)
	return found
}

func (m *machine) handle(now clock.Instant, ev any) bool {
	switch ev := ev.(type) {
	case evTick:
	case evReceived:
		m.received(now, ev)
	case evExtended:
		m.extended(now, ev)
	case evChecked:
		m.checked(now, ev)
	case evCalled:
		m.called(now, ev)
	case evBeat:
		return m.beat(now, ev)
	case evCommitted:
		m.committed(now, ev)
	case evPublished:
		m.published(now, ev)
	case evAcked:
		m.acked(now, ev)
	case evReleased:
		for _, handle := range ev.handles {
			if it := m.items[handle]; it != nil && it.state == item.Releasing {
				m.forget(it)
			}
		}
	case evHandBack:
		m.handBack(ev)
	case evShare:
		m.setShare(now, ev.share)
	case evPause:
		m.paused, m.why = true, ev.reason
	case evResume:
		return m.resume(ev.key)
	case evDrain:
		m.draining = true
	case evCancel:
		return m.cancel(now, ev.id)
	case evStop:
		if !m.stopping {
			m.stopping, m.stopBy = true, now.Add(m.cfg.Drain)
		}
	default:
		panic(fmt.Sprintf("coordinator: unknown event %T", ev))
	}
	return true
}

// drive starts whatever can be started now.
func (m *machine) drive(now clock.Instant) {
	m.driveCalls(now)
	m.driveRedo(now)
	m.driveHandBack(now)
	m.driveStart(now)
	m.driveReceive(now)
	m.driveAck()
	m.driveExtend(now)
	m.driveStop(now)
	if s := m.status(); s != m.lastStatus {
		m.lastStatus = s
		m.emit(fxState{s})
	}
}

func (m *machine) emit(fx any) { m.effects = append(m.effects, fx) }

// take returns the effects collected so far.
func (m *machine) take() []any {
	fx := m.effects
	m.effects = nil
	return fx
}

// closed says whether nothing new may begin.
func (m *machine) closed() bool { return m.paused || m.draining || m.stopping }

// status names the state of the stage for people.
func (m *machine) status() string {
	switch {
	case m.stopping:
		return "stopping"
	case m.draining && len(m.items) == 0:
		return "drained"
	case m.draining:
		return "draining"
	case m.paused:
		return "paused"
	case m.flow.failures > 0:
		return "not ready"
	case len(m.redo) > 0:
		return "waiting for storage"
	case m.troubles > 0:
		return "waiting for the broker"
	}
	return "running"
}

// received takes messages in hand.
func (m *machine) received(now clock.Instant, ev evReceived) {
	m.receiving = 0
	if ev.err != nil {
		m.troubles++
		m.trouble = ev.err.Error()
		m.receiveAt = now.Add(m.jitter(m.cfg.Infra.ceiling(m.troubles)))
		return
	}
	m.troubles = 0
	for _, msg := range ev.msgs {
		m.admit(now, msg)
	}
	m.handBackArrived()
}

func (m *machine) admit(now clock.Instant, msg *source.Message) {
	env, err := item.Open(msg.ID, msg.Headers)
	m.seq++
	it := &held{handle: m.seq, msg: msg, env: env, id: replayID(env.ID, env.Replay), state: item.Held, since: now, aged: now, fence: env.Fence}
	if !msg.Published.IsZero() {
		it.aged = now.Add(-max(0, m.wall().Sub(msg.Published)))
	}
	if len(m.items) == 0 {
		m.extendAt = now.Add(m.cfg.Lease / 3)
	}
	m.items[it.handle] = it
	m.totals.Received++
	m.queue = append(m.queue, it)
	if m.cfg.Keys {
		it.key = msg.Key
		if m.cfg.Key != "" {
			it.key = header(msg.Headers, m.cfg.Key)
		}
		m.join(it)
	}
	if m.cfg.Gather != "" && err == nil {
		it.member, err = memberOf(env.Headers)
	}
	switch {
	case err != nil:
		m.bury(now, it, item.Invalid, err.Error())
	case m.large(it):
		m.divert(now, it, "its payload is larger than divert takes here")
	case m.cfg.Record && (m.cfg.Check || msg.Deliveries != 1 || len(env.History) > 0 || env.Replay > 0):
		it.checking = true
		m.emit(fxCheck{it.handle, it.id})
	}
}

// checked learns whether an item has ended before.
func (m *machine) checked(now clock.Instant, ev evChecked) {
	it := m.items[ev.handle]
	if it == nil || !it.checking {
		return
	}
	if ev.err != nil {
		m.failedInfra(now, it, ev.err)
		return
	}
	it.checking, it.failures = false, 0
	if ev.record != nil && it.state == item.Held {
		m.unqueue(it)
		m.settle(now, it, *ev.record)
	}
}

// extended notes which leases go on.
func (m *machine) extended(now clock.Instant, ev evExtended) {
	m.extending = false
	for _, handle := range ev.handles {
		it := m.items[handle]
		if it == nil {
			continue
		}
		switch err := ev.errs[handle]; {
		case err == nil:
			// Ours for another lease.
		case lost(err):
			m.lose(it)
		default:
			// Not known. The attempt goes on: a broker that restarts must not end every long item. The commit point decides.
			m.extendAt = clock.Min(m.extendAt, now.Add(m.cfg.Lease/10))
		}
	}
}

// lose gives up an item that somebody else has or will have.
func (m *machine) lose(it *held) {
	if it.lost {
		return
	}
	it.lost = true
	m.totals.Lost++
	m.loseBehind(it)
	switch it.state {
	case item.Held:
		m.forget(it)
	case item.Running:
		for _, other := range it.call.items {
			if !other.lost {
				return
			}
		}
		m.end(it.call, item.Infra, "the lease was lost")
	}
}

// end asks for the end of a call.
func (m *machine) end(c *call, class item.Class, reason string) {
	if !c.ending {
		c.ending = true
		m.emit(fxEnd{c.id, class, reason})
	}
}

// beat notes progress. An attempt that has only begun now has all of its time.
func (m *machine) beat(now clock.Instant, ev evBeat) bool {
	it := m.busy[ev.id]
	if it == nil || it.call == nil {
		return false
	}
	it.call.beat = now
	if ev.progress != nil {
		it.progress = ev.progress
	}
	if ev.claim {
		it.call.begun = now
	}
	if ev.again {
		it.call.deadline = now.Add(m.cfg.MaxRuntime)
	}
	return true
}

// driveCalls ends calls that take too long.
func (m *machine) driveCalls(now clock.Instant) {
	if now < m.callsDue {
		return
	}
	m.callsDue = clock.Never
	for _, c := range m.calls {
		switch due := m.due(c); {
		case c.ending:
		case now < due:
			m.callsDue = clock.Min(m.callsDue, due)
		case now >= c.deadline:
			m.end(c, item.Timeout, worker.ErrTimeout.Error())
		default:
			m.end(c, item.Timeout, worker.ErrHeartbeat.Error())
		}
	}
}

// due is when a call has to be ended if nothing more is heard of it.
func (m *machine) due(c *call) clock.Instant {
	if m.cfg.Heartbeat > 0 {
		return clock.Min(c.deadline, c.beat.Add(m.cfg.Heartbeat))
	}
	return c.deadline
}

// driveExtend keeps the leases of everything in hand.
func (m *machine) driveExtend(now clock.Instant) {
	if m.extending || now < m.extendAt || len(m.items) == 0 {
		return
	}
	m.extendAt = now.Add(m.cfg.Lease / 3)
	var handles []uint64
	for handle, it := range m.items {
		if !it.lost && it.state != item.Releasing {
			handles = append(handles, handle)
		}
	}
	if len(handles) > 0 {
		m.extending = true
		m.emit(fxExtend{handles})
	}
}

// cancel ends an item in hand.
func (m *machine) cancel(now clock.Instant, id string) bool {
	found := false
	for _, it := range m.items {
		if it.id != id && it.env.ID != id {
			continue
		}
		found = true
		switch it.state {
		case item.Held:
			m.unqueue(it)
			m.finish(now, it, plan{state: item.Cancelled})
		case item.Running:
			it.cancelled = true
			if len(it.call.items) == 1 {
				m.end(it.call, item.Infra, "cancelled")
			}
		}
	}
	return found
}

// resume opens a lane, or the stage.
func (m *machine) resume(key string) bool {
	if key == "" {
		was := m.paused || m.draining
		m.paused, m.draining, m.why = false, false, ""
		return was
	}
	l := m.lanes[key]
	if l == nil || l.parked == "" {
		return false
	}
	l.parked = ""
	m.sweepLane(key, l)
	return true
}

// forget drops an item: it has been acknowledged, given back or lost.
func (m *machine) forget(it *held) {
	delete(m.items, it.handle)
	delete(m.redo, it)
	if m.busy[it.id] == it {
		delete(m.busy, it.id)
	}
	m.unqueue(it)
	m.leave(it)
	m.acquit(it)
}

func (m *machine) unqueue(it *held) {
	for i, other := range m.queue {
		if other == it {
			m.queue = append(m.queue[:i], m.queue[i+1:]...)
			return
		}
	}
}

// next is when step must be called again if nothing else happens.
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
	if len(m.items) > 0 && !m.extending {
		consider(m.extendAt)
	}
	if len(m.calls) > 0 {
		consider(m.callsDue)
	}
	for _, it := range m.queue {
		consider(it.notBefore)
	}
	for _, t := range m.redo {
		consider(t)
	}
	if m.receiving == 0 {
		consider(m.receiveAt)
	}
	if m.flow.failures > 0 {
		consider(m.flow.until)
	}
	if m.stopping {
		consider(m.stopBy)
	}
	m.considerRates(now, consider)
	return at
}

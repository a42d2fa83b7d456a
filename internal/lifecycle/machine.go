package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"retinue/internal/clock"
)

// Times that no job sets.
const (
	// cancelGrace is how long a hook that was cancelled may take to end, before the machine goes on without it. A stop has
	// four hooks, so their graces together are the two seconds by which a stop may exceed its declared budgets.
	cancelGrace   = 500 * time.Millisecond
	watchdogGrace = 5 * time.Second        // between SIGABRT and SIGKILL
	retryStart    = 100 * time.Millisecond // at most, while the application does not listen yet
	// maxAborts is how often in a row a hook may abort a stop: Nomad gives up on a task after its fifth failed attempt,
	// and would wait for its end for ever.
	maxAborts = 4
	maxQueue  = 16
)

// Errors that callers of an Engine may branch on.
var (
	ErrNotRunning = errors.New("the task does not run")
	ErrBusy       = errors.New("too many operations wait for this task")
	ErrStopping   = errors.New("the task is being stopped")
	ErrExited     = errors.New("the task has ended")
	ErrNoHook     = errors.New("the job has no such hook")
	ErrPhase      = errors.New("not possible in this phase")
)

// saved is what outlives a crash of the driver.
type saved struct {
	Format    int           `json:"format"`
	Phase     Phase         `json:"phase"`
	Invoked   string        `json:"invocation"` // ID of this run of the task; deliveries begin with it
	Stops     int           `json:"stops"`      // counts stops; one that is tried again after a crash keeps its number
	Seq       uint64        `json:"seq"`        // counts the other operations
	StopSince clock.Instant `json:"stop_since"` // 0: no stop has begun
	Aborts    int           `json:"aborts"`
	Ended     bool          `json:"hooks_ended"` // the hooks of the stop are over; only the signal is left
	Notified  bool          `json:"notified"`    // the application has used NOTIFY_SOCKET
	Exit      *ExitStatus   `json:"exit,omitempty"`
	ExitTold  bool          `json:"exit_told,omitempty"` // on_exit has ended
	Changed   clock.Instant `json:"changed"`             // when the phase began
}

const savedFormat = 1

// operation is what is going on.
type operation struct {
	verb    verb
	waiters []uint64
	steps   []step
	err     error // the operation goes on to an end, and fails with this
	detail  string
	id      string // part of the deliveries
}

// run is the hook that is under way.
type run struct {
	number    uint64
	hook      Hook
	delivery  string
	attempt   int
	started   clock.Instant
	deadline  clock.Instant
	limit     clock.Instant // as far as the application may extend the deadline
	sent      bool          // an attempt is under way; else it waits for wait or a notice
	wait      clock.Instant
	cancelled clock.Instant // 0: not
	last      string
}

// machine is the lifecycle of one task. It is pure: nothing but step and take touches it.
type machine struct {
	cfg   Config
	limit time.Duration // the driver's cap on a stop
	s     saved
	now   clock.Instant
	fx    []any
	dirty bool

	op      *operation
	run     *run
	acting  bool // an action is under way; evActed ends it
	queue   []evCall
	runs    uint64
	details map[string]string // of the hooks since the last edge
	failed  bool              // one of them failed

	stop      StopRequest
	hooksEnd  clock.Instant // no hook of the stop goes on after this
	stopEnd   clock.Instant // as far as the kill timeout can be extended
	signalled bool          // the stop signal was sent
	killAt    clock.Instant // Never: the inner driver kills by itself
	ready     bool          // READY=1 came
	saidStop  bool          // STOPPING=1 came
	status    string
	beat      clock.Instant // last WATCHDOG=1
	nextSave  clock.Instant
	saveBad   bool // the last periodic save failed
	exitHook  bool // on_exit is to run, or has run
	destroy   bool
	lastHook  map[HookName]HookReport
}

// HookReport is how a hook ended the last time.
type HookReport struct {
	Result   string        `json:"result"` // "ok" or why not
	Took     time.Duration `json:"took_ns"`
	Attempts int           `json:"attempts"`
	Delivery string        `json:"delivery"`
}

func newMachine(cfg Config, limit time.Duration, id string) *machine {
	m := &machine{cfg: cfg, limit: limit, killAt: clock.Never, nextSave: clock.Never, lastHook: map[HookName]HookReport{}, details: map[string]string{}}
	m.s = saved{Format: savedFormat, Phase: Created, Invoked: id}
	return m
}

// recoverMachine continues from what encode has saved. The operation that was under way is not: who asked for it asks again.
func recoverMachine(cfg Config, limit time.Duration, now clock.Instant, data []byte) (*machine, error) {
	m := newMachine(cfg, limit, "")
	if err := json.Unmarshal(data, &m.s); err != nil {
		return nil, fmt.Errorf("read the saved lifecycle: %w", err)
	}
	if m.s.Format != savedFormat {
		return nil, fmt.Errorf("the saved lifecycle has format %d, this driver reads %d", m.s.Format, savedFormat)
	}
	switch m.s.Phase {
	case Created, Restoring, Starting, Warming:
		// Its start was interrupted between the process and the answer: it runs, and whether it is ready is for checks to say.
		m.s.Phase = Running
	case Running, Paused, Draining, Saving, Stopping, Stopped, Killed, Exited, Destroyed:
	default:
		return nil, fmt.Errorf("the saved lifecycle has the unknown phase %q", m.s.Phase)
	}
	// Instants of another boot of the machine mean nothing.
	m.s.StopSince, m.s.Changed = min(m.s.StopSince, now), min(m.s.Changed, now)
	m.now, m.beat = now, now
	m.exitHook = m.s.ExitTold
	m.schedule()
	m.runExitHook()
	return m, nil
}

func (m *machine) encode() []byte {
	data, err := json.Marshal(m.s)
	if err != nil {
		panic("lifecycle: a struct of plain fields: " + err.Error())
	}
	return data
}

// take returns what is to be done, and whether the state has to be kept first.
func (m *machine) take() (fx []any, dirty bool) {
	fx, dirty, m.fx, m.dirty = m.fx, m.dirty, nil, false
	return fx, dirty
}

func (m *machine) emit(fx any) { m.fx = append(m.fx, fx) }

// step takes one event in.
func (m *machine) step(now clock.Instant, ev any) {
	m.now = max(m.now, now)
	switch ev := ev.(type) {
	case evCall:
		m.call(ev)
	case evActed:
		m.acted(ev)
	case evHooked:
		m.hooked(ev)
	case evExited:
		m.exited(ev.status)
	case evNotify:
		m.notice(ev.n)
	case evTick:
	}
	m.tick()
}

// next is when the machine wants an evTick at the latest.
func (m *machine) next() clock.Instant {
	at := m.killAt
	if r := m.run; r != nil {
		switch {
		case r.cancelled != 0:
			at = clock.Min(at, r.cancelled.Add(cancelGrace))
		case r.sent:
			at = clock.Min(at, r.deadline)
		default:
			at = clock.Min(at, clock.Min(r.wait, r.deadline))
		}
	}
	if m.watched() {
		at = clock.Min(at, m.beat.Add(m.cfg.Watchdog))
	}
	if m.s.Phase == Running && m.op == nil {
		at = clock.Min(at, m.nextSave)
	}
	return at
}

// idle says that nothing will ever happen again.
func (m *machine) idle() bool {
	return m.s.Phase == Destroyed && m.op == nil && m.run == nil && !m.acting
}

func (m *machine) watched() bool {
	return m.cfg.Watchdog > 0 && m.s.Phase == Running && m.killAt == clock.Never
}

// tick does what the time asks for.
func (m *machine) tick() {
	for m.due() {
	}
}

// due does one thing that is due, and says whether it did.
func (m *machine) due() bool {
	if r := m.run; r != nil {
		switch {
		case r.cancelled != 0:
			if m.now >= r.cancelled.Add(cancelGrace) {
				err := errors.New("cancelled")
				if r.cancelled >= r.deadline {
					err = m.timedOut(r)
				}
				m.endRun(outcome{err: fmt.Errorf("%w, and did not end when cancelled", err)})
				return true
			}
		case m.now >= r.deadline:
			if r.sent {
				m.cancel()
				return true
			}
			m.endRun(outcome{err: m.timedOut(r)})
			return true
		case !r.sent && m.now >= r.wait:
			m.attempt()
			return true
		}
	}
	if m.now >= m.killAt {
		m.killAt = clock.Never
		m.emit(fxKill{})
		return true
	}
	if m.watched() && m.now >= m.beat.Add(m.cfg.Watchdog) {
		m.abort(fmt.Sprintf("no WATCHDOG=1 for %s", m.cfg.Watchdog))
		return true
	}
	if m.s.Phase == Running && m.op == nil && m.now >= m.nextSave {
		m.nextSave = clock.Never
		m.begin(&operation{verb: verbEvery})
		return true
	}
	return false
}

func (m *machine) timedOut(r *run) error {
	if r.last != "" {
		return fmt.Errorf("not done within %s: %s", r.deadline.Sub(r.started), r.last)
	}
	return fmt.Errorf("not done within %s", r.deadline.Sub(r.started))
}

// abort ends a process that has stopped to answer; the restart policy decides what follows.
func (m *machine) abort(why string) {
	m.emit(fxEvent{Event{From: m.s.Phase, To: m.s.Phase, Failed: true, Message: "Watchdog: " + why + "; SIGABRT, and SIGKILL " + watchdogGrace.String() + " later"}})
	m.emit(fxSignal{"SIGABRT"})
	m.killAt = m.now.Add(watchdogGrace)
	m.beat = m.now // should even SIGKILL not end it, this is tried again
}

// schedule sets when the next periodic save is due.
func (m *machine) schedule() {
	m.nextSave = clock.Never
	if m.cfg.State.Every > 0 && m.cfg.Has(SaveState) {
		m.nextSave = m.now.Add(m.cfg.State.Every)
	}
}

// notice takes in what the application says of itself.
func (m *machine) notice(n Notice) {
	if !m.s.Phase.Alive() && m.s.Phase != Starting {
		return
	}
	if !m.s.Notified {
		m.s.Notified, m.dirty = true, true
	}
	if n.HasStatus {
		m.status = n.Status
	}
	m.saidStop = m.saidStop || n.Stopping
	if n.Watchdog {
		m.beat = m.now
	}
	if n.Trigger && m.watched() {
		m.abort("the application asked for it (WATCHDOG=trigger)")
	}
	if n.Extend > 0 {
		m.extend(n.Extend)
	}
	if n.Ready {
		m.ready = true
		if r := m.run; r != nil && r.hook.Kind == KindNotify && r.cancelled == 0 {
			m.endRun(outcome{detail: "READY=1"})
		}
	}
}

// extend moves the deadline of what is under way, never past the cap and never back.
func (m *machine) extend(d time.Duration) {
	to := m.now.Add(d)
	if r := m.run; r != nil && r.cancelled == 0 {
		r.deadline = max(r.deadline, clock.Min(to, r.limit))
	}
	if m.signalled && m.killAt != clock.Never {
		m.killAt = max(m.killAt, clock.Min(to, m.stopEnd))
	}
}

package lifecycle

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"retinue/internal/clock"
)

// call takes in a request.
func (m *machine) call(c evCall) {
	switch {
	case c.verb == verbDestroy:
		m.destroyed(c)
	case m.s.Phase.Over():
		switch {
		case c.verb != verbStop:
			m.emit(fxReply{id: c.id, err: ErrExited})
		case m.op != nil && m.op.verb == verbStop: // the process has ended, the inner driver's stop has not
			m.op.waiters = append(m.op.waiters, c.id)
		default: // it has ended: that is what was wanted
			m.emit(fxReply{id: c.id})
		}
	case c.verb == verbStop:
		m.callStop(c)
	case m.op != nil && (m.op.verb == verbStop || m.stopWaits()):
		m.emit(fxReply{id: c.id, err: ErrStopping})
	case m.op != nil && m.op.verb == c.verb && c.verb != verbStart:
		m.op.waiters = append(m.op.waiters, c.id)
	case m.op != nil && len(m.queue) >= maxQueue:
		m.emit(fxReply{id: c.id, err: ErrBusy})
	case m.op != nil:
		m.queue = append(m.queue, c)
	default:
		m.admit(c)
	}
}

// stopWaits says that a stop comes next.
func (m *machine) stopWaits() bool {
	return slices.ContainsFunc(m.queue, func(c evCall) bool { return c.verb == verbStop })
}

// callStop makes a stop the next operation: what is under way is cancelled, what waits is refused.
func (m *machine) callStop(c evCall) {
	if m.op == nil {
		m.admit(c)
		return
	}
	if m.op.verb == verbStop {
		m.op.waiters = append(m.op.waiters, c.id)
		return
	}
	if m.op.err != nil { // it ends already: a start that failed, or one that another stop has cancelled
		m.queue = append(m.queue, c)
		return
	}
	for _, waiting := range m.queue {
		if waiting.verb != verbStop {
			m.emit(fxReply{id: waiting.id, err: ErrStopping})
		}
	}
	m.queue = slices.DeleteFunc(m.queue, func(w evCall) bool { return w.verb != verbStop })
	m.queue = append(m.queue, c)
	m.op.steps = nil
	m.op.err = ErrStopping
	m.cancel()
}

// admit begins an operation, when the phase allows it.
func (m *machine) admit(c evCall) {
	refuse := func(err error, format string, args ...any) {
		m.emit(fxReply{id: c.id, err: fmt.Errorf("%w: "+format, append([]any{err}, args...)...)})
	}
	p := m.s.Phase
	switch c.verb {
	case verbStart:
		if p != Created {
			refuse(ErrPhase, "a task in phase %s cannot start", p)
			return
		}
	case verbPause:
		if p == Paused {
			m.emit(fxReply{id: c.id, detail: "paused already"})
			return
		}
		if p != Running {
			refuse(ErrPhase, "a task in phase %s cannot pause", p)
			return
		}
	case verbResume:
		if p == Running {
			m.emit(fxReply{id: c.id, detail: "runs already"})
			return
		}
		if p != Paused && p != Draining {
			refuse(ErrPhase, "a task in phase %s cannot resume", p)
			return
		}
	case verbConfig:
		if p != Running {
			refuse(ErrPhase, "a task in phase %s takes no new configuration", p)
			return
		}
	case verbDrain:
		if p == Draining {
			m.emit(fxReply{id: c.id, detail: "drained already"})
			return
		}
		if p != Running {
			refuse(ErrPhase, "a task in phase %s cannot drain", p)
			return
		}
	case verbSave:
		if !m.cfg.Has(SaveState) {
			refuse(ErrNoHook, "it has no save_state")
			return
		}
		if p != Running && p != Draining {
			refuse(ErrPhase, "a task in phase %s cannot save", p)
			return
		}
	case verbStop:
		m.budget(c.stop)
	}
	m.begin(&operation{verb: c.verb, waiters: []uint64{c.id}})
}

// budget lays down until when the hooks of a stop may go on. A stop that is tried again has what its first attempt left.
func (m *machine) budget(r StopRequest) {
	m.stop = r
	if m.s.StopSince == 0 {
		m.s.StopSince = m.now
		m.s.Stops++
	}
	m.dirty = true
	m.stopEnd = m.s.StopSince.Add(max(m.cfg.stopLimit(m.limit), r.Timeout))
	m.hooksEnd = clock.Min(m.s.StopSince.Add(m.cfg.stopLimit(m.limit)-r.Timeout), m.stopEnd)
	if m.cfg.Budget == Shared {
		m.stopEnd = m.s.StopSince.Add(r.Timeout + sharedReserve)
		m.hooksEnd = m.s.StopSince.Add(r.Timeout)
	}
}

func (m *machine) begin(op *operation) {
	op.steps = m.plan(op.verb)
	if op.verb == verbStop {
		op.id = fmt.Sprintf("stop-%d", m.s.Stops)
	} else {
		m.s.Seq++
		m.dirty = true
		op.id = fmt.Sprintf("%s-%d", strings.ReplaceAll(string(op.verb), " ", "-"), m.s.Seq)
	}
	m.op = op
	m.advance()
}

// advance takes the steps of the operation until one has to be waited for.
func (m *machine) advance() {
	for m.op != nil && !m.hooking() && !m.acting {
		if len(m.op.steps) == 0 {
			m.finish()
			continue
		}
		s := m.op.steps[0]
		m.op.steps = m.op.steps[1:]
		switch s.kind {
		case stepEnter:
			m.enter(s.phase)
		case stepHook:
			m.startHook(m.cfg.Hooks[s.hook])
		case stepPlace:
			m.act(fxPlace{})
		case stepStart:
			m.act(fxStart{})
		case stepFreeze:
			m.act(fxFreeze{})
		case stepThaw:
			m.act(fxThaw{})
		case stepStop:
			m.sendStop()
		}
	}
}

// hooking says that the operation waits for a hook; nothing waits for on_exit.
func (m *machine) hooking() bool { return m.run != nil && m.run.hook.Name != OnExit }

func (m *machine) act(fx any) {
	m.acting = true
	m.emit(fx)
}

// finish ends the operation and begins the next one that waits.
func (m *machine) finish() {
	op := m.op
	m.op = nil
	m.report(op)
	for _, id := range op.waiters {
		m.emit(fxReply{id: id, err: op.err, detail: op.detail})
	}
	if m.cfg.State.Every > 0 && (op.verb == verbEvery || op.verb == verbSave) {
		m.schedule()
	}
	for m.op == nil && len(m.queue) > 0 {
		next := m.queue[0]
		m.queue = m.queue[1:]
		m.call(next)
	}
	if m.op == nil && m.destroy {
		m.enter(Destroyed)
	}
}

// report tells of an operation that made no edge. Of periodic saves only a change is news.
func (m *machine) report(op *operation) {
	if len(m.details) == 0 {
		return
	}
	if op.verb == verbEvery {
		news := m.failed != m.saveBad
		m.saveBad = m.failed
		if !news {
			m.clearDetails()
			return
		}
	}
	m.tell(m.s.Phase, m.s.Phase, strings.ToUpper(string(op.verb[:1]))+string(op.verb[1:]))
}

func (m *machine) clearDetails() { m.details, m.failed = map[string]string{}, false }

// enter makes an edge.
func (m *machine) enter(to Phase) {
	from := m.s.Phase
	if from == to {
		return
	}
	m.s.Phase, m.s.Changed, m.dirty = to, m.now, true
	switch to {
	case Running:
		m.beat = m.now
		m.schedule()
		m.s.StopSince, m.s.Ended = 0, false
	case Stopped:
		m.signalled = false
	}
	told := len(m.details) > 0 || to == Paused || from == Paused && to == Running
	if told {
		m.tell(from, to, headline(from, to))
	}
}

// headline says what an edge means.
func headline(from, to Phase) string {
	switch {
	case to == Running && from == Warming:
		return "Ready"
	case to == Running && from == Paused:
		return "Resumed"
	case to == Running:
		return "Running again"
	case to == Paused:
		return "Paused"
	case to == Saving || to == Stopping && from == Draining:
		return "Drain"
	case to == Stopping && from == Saving:
		return "Save"
	case to == Stopping:
		return "Start failed"
	case to == Starting:
		return "Restore"
	}
	return strings.ToUpper(string(to[:1])) + string(to[1:])
}

// tell makes the event of an edge from what its hooks did.
func (m *machine) tell(from, to Phase, head string) {
	words := make([]string, 0, len(m.details))
	for _, spec := range Hooks() {
		if d, ok := m.details[string(spec.Name)]; ok {
			words = append(words, string(spec.Name)+" "+d)
		}
	}
	for _, name := range []string{"freeze", "thaw", "process"} {
		if d, ok := m.details[name]; ok {
			words = append(words, name+" "+d)
		}
	}
	if len(words) > 0 {
		head += ": " + strings.Join(words, "; ")
	}
	m.emit(fxEvent{Event{From: from, To: to, Message: head, Details: m.details, Failed: m.failed}})
	m.clearDetails()
}

// acted takes in the end of an action.
func (m *machine) acted(ev evActed) {
	if !m.acting {
		return
	}
	m.acting = false
	if m.op == nil { // the process ended meanwhile
		return
	}
	switch m.s.Phase {
	case Restoring:
		m.placed(ev)
	case Starting:
		m.started(ev)
	case Running:
		if ev.err != nil { // the freeze
			m.op.fail(fmt.Errorf("freeze: %w", ev.err))
			break
		}
		m.enter(Paused) // here, not as a step: a stop that comes meanwhile takes the steps away, and has to thaw
	case Paused:
		m.thawed(ev)
	case Stopping, Stopped, Killed:
		m.stopped(ev)
	}
	m.advance()
}

// fail ends an operation with an error.
func (op *operation) fail(err error) {
	op.steps = nil
	if op.err == nil {
		op.err = err
	}
}

func (m *machine) placed(ev evActed) {
	h := m.cfg.Hooks[RestoreState]
	result := HookReport{Result: "ok", Attempts: 1, Took: m.now.Sub(m.s.Changed)}
	switch {
	case ev.err == nil && ev.detail != "":
		m.details[string(RestoreState)] = ev.detail
	case ev.err != nil:
		result.Result = ev.err.Error()
		m.details[string(RestoreState)] = "failed: " + ev.err.Error()
		m.failed = true
		if h.OnFailure == Fail && m.op.err == nil {
			m.op.err = fmt.Errorf("restore_state: %w", ev.err)
		}
	}
	m.lastHook[RestoreState] = result
	if m.op.err != nil {
		m.op.steps = []step{enter(Stopped)}
	}
}

func (m *machine) started(ev evActed) {
	if ev.err != nil {
		m.op.err = ev.err
		m.op.steps = []step{enter(Stopped)}
		return
	}
	if m.s.Exit != nil {
		m.enter(Warming)
		m.over()
		return
	}
	if m.op.err != nil { // a stop came meanwhile
		m.enter(Warming)
	}
}

func (m *machine) thawed(ev evActed) {
	if ev.err == nil {
		return
	}
	m.details["thaw"], m.failed = "failed: "+ev.err.Error(), true
	if m.op.verb != verbStop {
		m.op.fail(fmt.Errorf("thaw: %w", ev.err))
		return
	}
	// Hooks would only wait for a frozen application.
	m.op.steps = []step{enter(Draining), enter(Stopping), {kind: stepStop}, enter(Stopped)}
}

// sendStop sends the stop signal, with what is left of the time.
func (m *machine) sendStop() {
	timeout := m.stop.Timeout
	if m.op.verb == verbStart {
		timeout = defaultKillTimeout
	} else if m.cfg.Budget == Shared {
		timeout = max(m.s.StopSince.Add(m.stop.Timeout).Sub(m.now), sharedReserve)
		timeout = min(timeout, m.stop.Timeout+sharedReserve)
	}
	m.s.Ended, m.signalled, m.dirty = true, true, true
	if m.s.Notified && m.op.verb == verbStop {
		// The application may ask for more time, so the machine itself kills.
		m.killAt = m.now.Add(timeout)
		m.stopEnd = max(m.stopEnd, m.killAt)
		timeout = m.stopEnd.Sub(m.now)
	}
	m.act(fxStop{m.stop.Signal, timeout})
}

// defaultKillTimeout ends a task whose start has failed: Nomad has not told its kill_timeout by then.
const defaultKillTimeout = 5 * time.Second

func (m *machine) stopped(ev evActed) {
	m.killAt = clock.Never
	if ev.err != nil && m.s.Exit == nil {
		m.op.fail(fmt.Errorf("stop: %w", ev.err))
		return
	}
	if m.s.Phase != Stopping { // evExited was first
		m.op.steps = nil
	}
}

// exited takes in the end of the process.
func (m *machine) exited(status ExitStatus) {
	if m.s.Exit != nil {
		return
	}
	m.s.Exit, m.dirty = &status, true
	m.killAt = clock.Never
	if m.s.Phase == Created || m.s.Phase == Restoring || m.s.Phase == Starting {
		return // the start's own answer comes
	}
	m.over()
}

// over makes the edge to the end, lets go of everybody who waits, and runs on_exit.
func (m *machine) over() {
	how := Exited
	switch {
	case m.s.Phase.Over(): // Stopped: the inner driver was faster than the news of the exit
		how = m.s.Phase
	case m.s.Exit.killed():
		how = Killed
		if !m.signalled {
			how = Exited // somebody else's SIGKILL, or no memory
		}
	case m.signalled:
		how = Stopped
	}
	if m.op != nil {
		m.op.steps = nil
	}
	if !m.s.Phase.Over() {
		if how == Exited && len(m.cfg.Hooks) > 0 { // without hooks, Nomad's own event says enough
			m.details["process"] = "ended by itself: " + m.s.Exit.String()
		}
		if how == Killed {
			m.details["process"] = "did not end in time: SIGKILL"
		}
		m.enter(how)
	}
	m.cancel()
	if op := m.op; op != nil {
		if op.verb != verbStart && op.verb != verbStop && op.err == nil {
			op.err = ErrExited
		}
		if op.verb == verbStart && op.err == ErrStopping {
			op.err = nil
		}
	}
	m.advance()
	m.runExitHook()
}

// runExitHook runs on_exit as soon as no other hook is under way.
func (m *machine) runExitHook() {
	if m.exitHook || m.s.Exit == nil || m.run != nil || !m.s.Phase.Over() {
		return
	}
	m.exitHook = true
	if m.cfg.Has(OnExit) {
		m.startHook(m.cfg.Hooks[OnExit])
	}
}

func (m *machine) destroyed(c evCall) {
	switch {
	case m.s.Phase == Destroyed:
	case !m.s.Phase.Over() && m.s.Phase != Created:
		m.emit(fxReply{id: c.id, err: fmt.Errorf("%w: a task in phase %s cannot be destroyed; stop it first", ErrPhase, m.s.Phase)})
		return
	case m.op != nil:
		m.destroy = true // after the stop's own answer
	default:
		m.enter(Destroyed)
	}
	m.emit(fxReply{id: c.id})
}

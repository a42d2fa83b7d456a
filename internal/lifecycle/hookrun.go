package lifecycle

import (
	"errors"
	"fmt"
	"time"

	"retinue/internal/clock"
)

// startHook begins a hook, or skips it where the time for hooks is spent.
func (m *machine) startHook(h Hook) {
	deadline, limit := m.now.Add(h.Timeout), m.now.Add(max(m.cfg.stopLimit(m.limit), h.Timeout))
	if m.inStop(h.Name) {
		limit = m.hooksEnd
		if deadline = clock.Min(deadline, limit); deadline <= m.now {
			m.details[string(h.Name)] = "skipped: the time for hooks is spent"
			m.failed = true
			m.lastHook[h.Name] = HookReport{Result: "skipped: the time for hooks is spent"}
			return
		}
	}
	m.runs++
	id := "exit"
	if m.op != nil && h.Name != OnExit {
		id = m.op.id
	}
	m.run = &run{number: m.runs, hook: h, delivery: m.s.Invoked + "/" + id + "/" + string(h.Name), started: m.now, deadline: deadline, limit: limit, wait: m.now}
	if h.Kind == KindNotify {
		if m.ready {
			m.endRun(outcome{detail: "READY=1"})
			return
		}
		m.run.wait = clock.Never
	}
	m.due() // the first attempt
}

// inStop says that a hook is under the budget of a stop.
func (m *machine) inStop(name HookName) bool {
	return m.op != nil && m.op.verb == verbStop && name != OnExit
}

// attempt asks once.
func (m *machine) attempt() {
	r := m.run
	r.attempt++
	r.sent = true
	m.runs++
	r.number = m.runs
	fx := fxHook{run: r.number, hook: r.hook, delivery: r.delivery, attempt: r.attempt, deadline: int64(r.deadline), reason: m.reason()}
	if r.hook.Name == OnExit {
		fx.exit = m.s.Exit
	}
	m.emit(fx)
}

// reason is what the application is told as Retinue-Reason.
func (m *machine) reason() string {
	if m.s.Phase.Over() {
		return string(m.s.Phase)
	}
	if m.op == nil {
		return ""
	}
	if m.op.verb == verbEvery {
		return "periodic"
	}
	return string(m.op.verb)
}

// cancel tells the hook that is under way to end. It is over when evHooked comes, or after cancelGrace.
func (m *machine) cancel() {
	r := m.run
	if r == nil || r.cancelled != 0 || r.hook.Name == OnExit && m.now < r.deadline {
		return
	}
	if !r.sent {
		m.endRun(outcome{err: errors.New("cancelled")})
		return
	}
	r.cancelled = m.now
	m.emit(fxCancel{r.number})
}

// hooked takes in the end of an attempt.
func (m *machine) hooked(ev evHooked) {
	r := m.run
	if r == nil || ev.run != r.number || !r.sent {
		return // one that was given up
	}
	r.sent = false
	o := ev.outcome
	if r.cancelled != 0 {
		if m.now >= r.deadline {
			o = outcome{err: m.timedOut(r)}
		} else if o.err == nil && o.again {
			o = outcome{err: errors.New("cancelled")}
		}
		m.endRun(o)
		return
	}
	retry := o.again
	after := o.after
	switch {
	case retry && after <= 0:
		after = max(r.hook.Interval, 10*time.Millisecond)
	case retry:
		after = min(after, MaxTimeout)
	case o.err != nil && r.hook.Name == Ready:
		retry, after = true, r.hook.Interval
		if o.unreachable {
			after = min(after, beginsToListen(r.attempt))
		}
	case o.err != nil && o.unreachable && m.s.Phase == Warming:
		retry, after = true, beginsToListen(r.attempt)
	}
	if retry {
		if r.last = o.detail; o.err != nil {
			r.last = o.err.Error()
		}
		r.wait = m.now.Add(after)
		return
	}
	m.endRun(o)
}

// beginsToListen is how long to wait for an application that does not listen yet: most do within some tens of milliseconds.
func beginsToListen(attempt int) time.Duration {
	return min(10*time.Millisecond<<min(attempt-1, 4), retryStart)
}

// endRun ends the hook that is under way, and goes on as its failure policy says.
func (m *machine) endRun(o outcome) {
	r := m.run
	m.run = nil
	took := m.now.Sub(r.started)
	report := HookReport{Result: "ok", Took: took, Attempts: r.attempt, Delivery: r.delivery}
	word := formatTook(took)
	if o.detail != "" {
		word = o.detail + " " + word
	}
	if o.err != nil {
		report.Result = o.err.Error()
		word = "failed after " + formatTook(took) + ": " + o.err.Error()
		m.failed = true
	}
	m.lastHook[r.hook.Name] = report
	m.details[string(r.hook.Name)] = word
	if r.hook.Name == OnExit {
		m.exitDone(o)
		return
	}
	if m.s.Phase.Over() {
		m.clearDetails()
		m.advance()
		m.runExitHook()
		return
	}
	if m.op != nil {
		m.op.detail = word
		if o.err != nil && m.op.err == nil {
			m.hookFailed(r.hook, o.err)
		}
	}
	m.advance()
}

// exitDone ends on_exit; only its failure is news.
func (m *machine) exitDone(o outcome) {
	m.s.ExitTold, m.dirty = true, true
	if o.err != nil {
		m.tell(m.s.Phase, m.s.Phase, "After the end")
	}
	m.clearDetails()
}

func formatTook(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond).String()
	}
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// hookFailed does what the failure policy says.
func (m *machine) hookFailed(h Hook, err error) {
	err = fmt.Errorf("%s: %w", h.Name, err)
	switch {
	case h.OnFailure == Fail && m.op.verb == verbStart:
		// The answer is the error, and comes when the process is gone.
		m.op.err = err
		m.op.steps = []step{enter(Stopping), {kind: stepStop}, enter(Stopped)}
	case h.OnFailure == Fail && m.op.verb == verbResume:
		m.op.err = err // it is thawed, so it runs
	case h.OnFailure == Fail:
		m.op.fail(err)
	case h.OnFailure == AbortStop && m.op.verb == verbStop && m.s.Aborts < maxAborts && m.now < m.hooksEnd:
		m.s.Aborts++
		since := m.s.StopSince
		m.op.fail(err)
		m.enter(Running)
		m.s.StopSince = since // the next attempt has what is left
	}
}

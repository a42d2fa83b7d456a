package lifecycle

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"retinue/internal/clock"
)

// world is a task, a driver and an operator who do what comes into their minds, and checks the promises of the package.
type world struct {
	t     *rapid.T
	cfg   Config
	limit time.Duration
	m     *machine
	now   clock.Instant

	hooks     map[uint64]fxHook // attempts under way
	cancelled map[uint64]clock.Instant
	acting    any // action under way
	process   bool
	frozen    bool
	signalled bool
	exited    bool
	started   bool // StartTask was called
	onExits   int

	calls    map[uint64]evCall
	asked    map[uint64]clock.Instant
	answered map[uint64]error
	nextCall uint64
	phase    Phase
	crashes  int
	extended bool
	stopped  time.Duration // kill_timeout of every stop
}

func drawConfig(t *rapid.T) Config {
	cfg := Config{Budget: rapid.SampledFrom([]Budget{Separate, Shared}).Draw(t, "budget"), Hooks: map[HookName]Hook{}}
	cfg.StopBudget = time.Duration(rapid.IntRange(0, 30).Draw(t, "stop_budget")) * time.Second
	cfg.Watchdog = time.Duration(rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "watchdog")) * time.Second
	cfg.State.Every = time.Duration(rapid.SampledFrom([]int{0, 0, 7}).Draw(t, "every")) * time.Second
	for _, spec := range Hooks() {
		if !rapid.Bool().Draw(t, string(spec.Name)) {
			continue
		}
		kind := rapid.SampledFrom(spec.Kinds).Draw(t, "kind")
		cfg.Hooks[spec.Name] = Hook{Name: spec.Name, Kind: kind, Interval: 200 * time.Millisecond,
			Timeout:   time.Duration(rapid.IntRange(1, 12).Draw(t, "timeout")) * time.Second,
			OnFailure: rapid.SampledFrom(spec.Policies).Draw(t, "policy")}
	}
	return cfg
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, cfg: drawConfig(t), limit: time.Duration(rapid.IntRange(1, 60).Draw(t, "limit")) * time.Second, now: clock.Instant(time.Hour),
			hooks: map[uint64]fxHook{}, cancelled: map[uint64]clock.Instant{}, calls: map[uint64]evCall{}, asked: map[uint64]clock.Instant{}, answered: map[uint64]error{}, phase: Created,
			stopped: time.Duration(rapid.IntRange(1, 8).Draw(t, "kill_timeout")) * time.Second}
		w.m = newMachine(w.cfg, w.limit, "id")
		t.Repeat(map[string]func(*rapid.T){
			"call":   w.call,
			"hooked": w.hooked,
			"acted":  w.acted,
			"exit":   w.exit,
			"notify": w.notify,
			"time":   w.time,
			"crash":  w.crash,
		})
		w.finish()
	})
}

// step feeds an event and judges what comes of it.
func (w *world) step(ev any) {
	w.m.step(w.now, ev)
	w.look()
}

func (w *world) look() {
	fx, dirty := w.m.take()
	edge := w.m.s.Phase != w.phase
	if edge && !dirty {
		w.t.Fatalf("%s -> %s is not kept", w.phase, w.m.s.Phase)
	}
	path := []Phase{w.phase}
	for _, one := range fx {
		if ev, ok := one.(fxEvent); ok && ev.event.From != ev.event.To {
			if !slices.Contains(Edges(), Edge{ev.event.From, ev.event.To}) {
				w.t.Fatalf("an edge that there is not: %s -> %s", ev.event.From, ev.event.To)
			}
			for _, p := range path[1:] {
				if p == ev.event.To {
					w.t.Fatalf("two events of one edge to %s", p)
				}
			}
			path = append(path, ev.event.To)
		}
	}
	if edge && !reachable(w.phase, w.m.s.Phase) {
		w.t.Fatalf("no way from %s to %s", w.phase, w.m.s.Phase)
	}
	w.phase = w.m.s.Phase
	for _, one := range fx {
		w.carry(one)
	}
	if next := w.m.next(); next <= w.now && next != clock.Never {
		w.t.Fatalf("something was due at %s and was not done", next.Sub(w.now))
	}
}

// reachable says whether edges lead from one phase to another within one step.
func reachable(from, to Phase) bool {
	seen := map[Phase]bool{from: true}
	for range 4 {
		for _, e := range Edges() {
			if seen[e.From] {
				seen[e.To] = true
			}
		}
	}
	return seen[to]
}

// carry takes one effect, as the engine does.
func (w *world) carry(one any) {
	switch fx := one.(type) {
	case fxHook:
		for run, other := range w.hooks {
			since, gone := w.cancelled[run]
			if !gone || w.now < since.Add(cancelGrace) {
				w.t.Fatalf("%s begins while %s runs", fx.hook.Name, other.hook.Name)
			}
		}
		if w.exited && fx.hook.Name != OnExit {
			w.t.Fatalf("%s after the exit", fx.hook.Name)
		}
		if w.frozen && fx.hook.Name != OnExit {
			w.t.Fatalf("%s of a frozen task", fx.hook.Name)
		}
		if fx.hook.Name == OnExit {
			if !w.exited {
				w.t.Fatal("on_exit of a process that lives")
			}
			if w.onExits++; w.onExits > 1+w.crashes && fx.attempt == 1 {
				w.t.Fatal("on_exit twice")
			}
		}
		w.hooks[fx.run] = fx
	case fxCancel:
		if _, ok := w.hooks[fx.run]; !ok {
			w.t.Fatalf("run %d is cancelled, which is not under way", fx.run)
		}
		w.cancelled[fx.run] = w.now
	case fxPlace, fxStart, fxFreeze, fxThaw, fxStop:
		if w.acting != nil {
			w.t.Fatalf("%T while %T is under way", one, w.acting)
		}
		if _, ok := fx.(fxStop); ok {
			for run, hook := range w.hooks {
				if _, gone := w.cancelled[run]; !gone && hook.hook.Name != OnExit {
					w.t.Fatalf("the signal before %s has ended", hook.hook.Name)
				}
			}
			w.signalled = true
		}
		w.acting = one
	case fxReply:
		call, ok := w.calls[fx.id]
		if !ok {
			w.t.Fatalf("an answer that nobody waits for: %d", fx.id)
		}
		delete(w.calls, fx.id)
		if call.verb == verbStop {
			w.judgeStop(fx, w.asked[fx.id])
		}
	}
}

// judgeStop checks the promises about stops.
func (w *world) judgeStop(fx fxReply, asked clock.Instant) {
	if fx.err == nil {
		if !w.m.s.Phase.Over() {
			w.t.Fatalf("a stop ended well in phase %s", w.m.s.Phase)
		}
		return
	}
	var inner innerError
	if errors.As(fx.err, &inner) {
		return // the driver's own failure: Nomad has to know
	}
	if w.m.s.Aborts > maxAborts {
		w.t.Fatalf("a stop was aborted %d times", w.m.s.Aborts)
	}
	if !slices.ContainsFunc([]HookName{PreDrain, Drain, SaveState, PreStop}, func(n HookName) bool { return w.cfg.Hooks[n].OnFailure == AbortStop }) {
		w.t.Fatalf("a stop failed: %v", fx.err)
	}
}

type innerError struct{ what string }

func (e innerError) Error() string { return e.what }

func (w *world) call(t *rapid.T) {
	v := rapid.SampledFrom([]verb{verbStop, verbPause, verbResume, verbConfig, verbDrain, verbSave, verbDestroy}).Draw(t, "verb")
	if !w.started {
		v, w.started = verbStart, true
	}
	if len(w.calls) > 6 || v == verbDestroy && w.process {
		t.Skip()
	}
	w.nextCall++
	c := evCall{id: w.nextCall, verb: v, stop: StopRequest{Signal: "SIGTERM", Timeout: w.stopped}}
	w.calls[c.id], w.asked[c.id] = c, w.now
	w.step(c)
}

func (w *world) hooked(t *rapid.T) {
	if len(w.hooks) == 0 {
		t.Skip()
	}
	runs := []uint64{}
	for run := range w.hooks {
		runs = append(runs, run)
	}
	slices.Sort(runs)
	run := rapid.SampledFrom(runs).Draw(t, "run")
	hook := w.hooks[run].hook
	delete(w.hooks, run)
	delete(w.cancelled, run)
	o := outcome{}
	switch rapid.IntRange(0, 4).Draw(t, "outcome") {
	case 0:
		o.err = errors.New("broken")
	case 1:
		o.err, o.unreachable = errors.New("refused"), hook.Kind == KindHTTP
	case 2:
		o.again, o.after = true, time.Duration(rapid.IntRange(0, 3000).Draw(t, "after"))*time.Millisecond
	}
	w.step(evHooked{run, o})
}

func (w *world) acted(t *rapid.T) {
	if w.acting == nil {
		t.Skip()
	}
	fails := rapid.IntRange(0, 9).Draw(t, "fails") == 0
	w.actedNow(fails)
}

func (w *world) actedNow(fails bool) {
	var err error
	if fails {
		err = innerError{fmt.Sprintf("%T failed", w.acting)}
	}
	kind := w.acting
	w.acting = nil
	switch kind.(type) {
	case fxStart:
		fails = fails && !w.exited
		err = map[bool]error{true: err}[fails]
		w.process = !fails && !w.exited
	case fxFreeze:
		w.frozen = !fails && w.process
	case fxThaw:
		w.frozen = w.frozen && fails
	case fxStop:
		if !fails && w.process {
			w.process, w.frozen, w.exited = false, false, true
			w.step(evExited{ExitStatus{Code: 0}})
		}
	}
	w.step(evActed{err: err})
}

func (w *world) exit(t *rapid.T) {
	_, starting := w.acting.(fxStart)
	if !w.process && (!starting || w.exited) || rapid.IntRange(0, 5).Draw(t, "really") > 0 {
		t.Skip()
	}
	w.process, w.frozen, w.exited = false, false, true
	w.step(evExited{rapid.SampledFrom([]ExitStatus{{Code: 0}, {Code: 1}, {Signal: 9}, {OOM: true}}).Draw(t, "status")})
}

func (w *world) notify(t *rapid.T) {
	n := Notice{Ready: rapid.Bool().Draw(t, "ready"), Watchdog: rapid.Bool().Draw(t, "watchdog"), Trigger: rapid.IntRange(0, 9).Draw(t, "trigger") == 0,
		Extend: time.Duration(rapid.SampledFrom([]int{0, 0, 2, 3600}).Draw(t, "extend")) * time.Second}
	w.extended = w.extended || n.Extend > 0
	w.step(evNotify{n})
}

func (w *world) time(t *rapid.T) {
	w.pass(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
}

// pass lets time go by; hooks that were cancelled end soon, half of them too late.
func (w *world) pass(d time.Duration) {
	end := w.now.Add(d)
	for w.m.next() <= end {
		w.now = max(w.now, w.m.next())
		w.step(evTick{})
	}
	w.now = end
}

// crash is the driver's: it forgets everything but what it kept, and those who wait get no answer.
func (w *world) crash(t *rapid.T) {
	if !w.process || w.phase == Created || w.phase == Restoring || w.phase == Starting || rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		t.Skip()
	}
	m, err := recoverMachine(w.cfg, w.limit, w.now, w.m.encode())
	if err != nil {
		t.Fatal(err)
	}
	w.crashes++
	w.m, w.phase, w.acting = m, m.s.Phase, nil
	w.frozen = w.frozen && m.s.Phase == Paused
	clear(w.hooks)
	clear(w.cancelled)
	clear(w.calls)
	w.look()
}

// finish: whatever happened, a stop ends within the budget when nobody else interferes and every hook hangs.
func (w *world) finish() {
	if !w.started || w.phase == Destroyed {
		return
	}
	for w.m.op != nil || w.acting != nil { // what is under way comes to an end first
		if w.acting != nil {
			w.actedNow(false)
			continue
		}
		if w.m.next() == clock.Never {
			w.t.Fatalf("%s hangs in phase %s", w.m.op.verb, w.phase)
		}
		w.pass(w.m.next().Sub(w.now))
	}
	if w.phase.Over() {
		return
	}
	for attempt := 1; !w.phase.Over(); attempt++ {
		if attempt > maxAborts+1 {
			w.t.Fatalf("not stopped after %d attempts, phase %s", attempt-1, w.phase)
		}
		begun := w.now
		w.nextCall++
		id := w.nextCall
		w.calls[id], w.asked[id] = evCall{id: id, verb: verbStop}, w.now
		w.step(evCall{id: id, verb: verbStop, stop: StopRequest{Signal: "SIGTERM", Timeout: w.stopped}})
		for w.calls[id].id != 0 {
			if stop, ok := w.acting.(fxStop); ok {
				w.now = w.now.Add(stop.timeout) // the process does not end before it is killed
				w.actedNow(false)
				continue
			}
			if w.acting != nil {
				w.actedNow(false)
				continue
			}
			next := w.m.next()
			if next == clock.Never {
				w.t.Fatalf("a stop hangs in phase %s with %v", w.phase, w.m.op)
			}
			w.now = max(w.now, next)
			w.step(evTick{})
		}
		took, most := w.now.Sub(begun), w.cfg.StopTime(w.stopped, w.limit)+2*time.Second
		if w.m.s.Notified { // the inner driver's own timeout is then the cap; see sendStop
			most = max(w.cfg.stopLimit(w.limit), w.stopped) + 2*sharedReserve + w.stopped
		}
		if took > most {
			w.t.Fatalf("the stop took %s, at most %s is promised", took, most)
		}
	}
}

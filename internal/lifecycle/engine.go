package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
)

// Options are what an Engine is made of. Config, Host and ID are needed.
type Options struct {
	Config *Config // nil: no hooks, but all operations
	Host   Host
	States States // nil: restore_state and save_state fail
	// ID names this run of the task. Delivery IDs begin with it, so it must be another one for every StartTask, and the
	// same after a Recover (it is saved, Recover ignores this one).
	ID string
	// StopBudget is the driver's cap on one stop; 0: DefaultStopBudget.
	StopBudget time.Duration
	Clock      clock.Clock // nil: the boot clock
	Log        hclog.Logger
}

// Engine runs the lifecycle of one task. Its methods may be called from any goroutine.
type Engine struct {
	opts   Options
	events chan any
	ended  chan struct{}
	cancel context.CancelFunc
	ctx    context.Context
	runner *runner

	mu     sync.Mutex
	status Status
	calls  map[uint64]chan answer
	nextID uint64
}

type answer struct {
	err    error
	detail string
}

// Status is what an Engine shows of its task.
type Status struct {
	Phase     Phase                   `json:"phase"`
	For       time.Duration           `json:"for_ns"` // how long it has been in this phase
	Operation string                  `json:"operation,omitempty"`
	Hook      HookName                `json:"hook,omitempty"` // under way
	Progress  string                  `json:"progress,omitempty"`
	Ready     bool                    `json:"ready"`
	AppStatus string                  `json:"app_status,omitempty"` // STATUS= of the application
	Stopping  bool                    `json:"app_stopping,omitempty"`
	Aborts    int                     `json:"stops_aborted,omitempty"`
	Exit      *ExitStatus             `json:"exit,omitempty"`
	Hooks     map[HookName]HookReport `json:"hooks"` // the last run of each
}

// New returns the engine of a task in phase created.
func New(opts Options) *Engine {
	opts = opts.withDefaults()
	return start(opts, newMachine(*opts.Config, opts.StopBudget, opts.ID))
}

// Recover returns the engine of a task that an earlier driver started, from what Host.Persist was given last. Nil is a task
// of which nothing was saved: it runs.
func Recover(opts Options, saved []byte) (*Engine, error) {
	opts = opts.withDefaults()
	if saved == nil {
		m := newMachine(*opts.Config, opts.StopBudget, opts.ID)
		m.s.Phase = Running
		saved = m.encode()
	}
	m, err := recoverMachine(*opts.Config, opts.StopBudget, opts.Clock.Now(), saved)
	if err != nil {
		return nil, err
	}
	return start(opts, m), nil
}

func (o Options) withDefaults() Options {
	if o.Config == nil {
		o.Config = &Config{Budget: Separate}
	}
	if o.Clock == nil {
		o.Clock = clock.Boot()
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return o
}

func start(opts Options, m *machine) *Engine {
	e := &Engine{opts: opts, events: make(chan any), ended: make(chan struct{}), calls: map[uint64]chan answer{}}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.runner = &runner{host: opts.Host, states: opts.States, cfg: opts.Config}
	e.publish(m)
	go e.loop(m)
	return e
}

// Start takes the task from created to running: StartTask. An error means that the process is gone, or never was.
// When the process ends by itself meanwhile, Start gives no error: how it ended is the driver's to tell.
func (e *Engine) Start(ctx context.Context) error {
	_, err := e.do(ctx, verbStart, StopRequest{})
	return err
}

// Stop takes the task to its end: StopTask. It goes on when ctx ends before it.
func (e *Engine) Stop(ctx context.Context, r StopRequest) error {
	_, err := e.do(ctx, verbStop, r)
	return err
}

// Destroy ends the engine: DestroyTask. A process that runs has to be ended before; on_exit may go on to its end.
func (e *Engine) Destroy(ctx context.Context) error {
	_, err := e.do(ctx, verbDestroy, StopRequest{})
	return err
}

// Pause freezes the task after its pause hook; Resume lets it go on. Resume also gives up a Drain.
func (e *Engine) Pause(ctx context.Context) (detail string, err error) {
	return e.do(ctx, verbPause, StopRequest{})
}

// Resume undoes Pause and Drain.
func (e *Engine) Resume(ctx context.Context) (detail string, err error) {
	return e.do(ctx, verbResume, StopRequest{})
}

// Drain runs pre_drain and drain without a stop. The task stays in phase draining until Stop or Resume.
func (e *Engine) Drain(ctx context.Context) (detail string, err error) {
	return e.do(ctx, verbDrain, StopRequest{})
}

// Save runs save_state now.
func (e *Engine) Save(ctx context.Context) (detail string, err error) {
	return e.do(ctx, verbSave, StopRequest{})
}

// Reconfigure runs on_config.
func (e *Engine) Reconfigure(ctx context.Context) error {
	if !e.opts.Config.Has(OnConfig) {
		return fmt.Errorf("%w: it has no on_config", ErrNoHook)
	}
	_, err := e.do(ctx, verbConfig, StopRequest{})
	return err
}

// Signal takes the signals that are the lifecycle's: the words pause, resume, drain and save (in any case), and the signal
// that on_config answers. Any other is not handled, and the driver's to deliver.
func (e *Engine) Signal(ctx context.Context, signal string) (handled bool, err error) {
	v, ok := e.verbOf(signal)
	if !ok {
		return false, nil
	}
	_, err = e.do(ctx, v, StopRequest{})
	return true, err
}

// Exited tells that the process has ended: the inner WaitTask.
func (e *Engine) Exited(status ExitStatus) { e.send(evExited{status}) }

// Notify tells what the application says of itself.
func (e *Engine) Notify(n Notice) { e.send(evNotify{n}) }

// Status returns what the engine shows.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.For = e.opts.Clock.Now().Sub(clock.Instant(s.For))
	return s
}

// Done is closed when the task was destroyed and its last hook has ended.
func (e *Engine) Done() <-chan struct{} { return e.ended }

// Close ends the engine at once: the driver ends, and the task goes on without it. Who waits gets an error; hooks are
// cancelled.
func (e *Engine) Close() {
	e.cancel()
	<-e.ended
}

var errClosed = errors.New("the driver ends")

func (e *Engine) do(ctx context.Context, v verb, r StopRequest) (string, error) {
	e.mu.Lock()
	e.nextID++
	id, ch := e.nextID, make(chan answer, 1)
	e.calls[id] = ch
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.calls, id)
		e.mu.Unlock()
	}()
	if !e.send(evCall{id: id, verb: v, stop: r}) {
		return "", e.afterEnd(v)
	}
	select {
	case a := <-ch:
		return a.detail, a.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-e.ended:
		select {
		case a := <-ch:
			return a.detail, a.err
		default:
			return "", e.afterEnd(v)
		}
	}
}

// afterEnd is the answer of an engine that has ended.
func (e *Engine) afterEnd(v verb) error {
	if e.ctx.Err() != nil && e.Status().Phase != Destroyed {
		return errClosed
	}
	if v == verbStop || v == verbDestroy {
		return nil
	}
	return ErrExited
}

// send hands an event to the loop; false when that has ended.
func (e *Engine) send(ev any) bool {
	select {
	case e.events <- ev:
		return true
	case <-e.ended:
		return false
	}
}

// loop owns the machine.
func (e *Engine) loop(m *machine) {
	defer func() {
		e.cancel()
		close(e.ended)
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	cancels := map[uint64]context.CancelFunc{}
	for {
		e.carryOut(m, cancels)
		if m.idle() {
			return
		}
		var due <-chan time.Time
		if at := m.next(); at != clock.Never {
			timer.Reset(max(0, at.Sub(e.opts.Clock.Now())))
			due = timer.C
		}
		var ev any
		select {
		case ev = <-e.events:
		case <-due:
			ev = evTick{}
		case <-e.ctx.Done():
			return
		}
		if done, ok := ev.(evHooked); ok {
			if stop, ok := cancels[done.run]; ok {
				stop()
				delete(cancels, done.run)
			}
		}
		m.step(e.opts.Clock.Now(), ev)
	}
}

// carryOut does what the machine wants.
func (e *Engine) carryOut(m *machine, cancels map[uint64]context.CancelFunc) {
	fx, dirty := m.take()
	e.publish(m)
	if dirty {
		if err := e.opts.Host.Persist(m.encode()); err != nil {
			e.opts.Log.Error("cannot keep the lifecycle's state; after a crash of the driver hooks may run again", "phase", m.s.Phase, "error", err)
		}
	}
	for _, one := range fx {
		switch fx := one.(type) {
		case fxEvent:
			e.opts.Host.Event(fx.event)
		case fxReply:
			e.reply(fx)
		case fxCancel:
			if stop, ok := cancels[fx.run]; ok {
				stop()
			}
		case fxHook:
			ctx, stop := context.WithCancel(e.ctx)
			cancels[fx.run] = stop
			left := time.Duration(fx.deadline - int64(e.opts.Clock.Now()))
			go func() { e.send(evHooked{fx.run, e.runner.run(ctx, fx, left)}) }()
		case fxPlace:
			e.act(func(ctx context.Context) (string, error) { return e.runner.place(ctx) })
		case fxStart:
			e.act(func(ctx context.Context) (string, error) { return "", e.opts.Host.Start(ctx) })
		case fxFreeze:
			e.act(func(ctx context.Context) (string, error) { return "", e.opts.Host.Freeze(ctx) })
		case fxThaw:
			e.act(func(ctx context.Context) (string, error) { return "", e.opts.Host.Thaw(ctx) })
		case fxStop:
			e.act(func(ctx context.Context) (string, error) { return "", e.opts.Host.Stop(ctx, fx.signal, fx.timeout) })
		case fxKill:
			e.aside("SIGKILL", func(ctx context.Context) error { return e.opts.Host.Kill(ctx) })
		case fxSignal:
			e.aside(fx.signal, func(ctx context.Context) error { return e.opts.Host.Signal(ctx, fx.signal) })
		}
	}
}

// act carries out an action whose end the machine waits for.
func (e *Engine) act(f func(context.Context) (string, error)) {
	go func() {
		detail, err := f(e.ctx)
		e.send(evActed{err, detail})
	}()
}

// aside carries out what nobody waits for.
func (e *Engine) aside(what string, f func(context.Context) error) {
	go func() {
		if err := f(e.ctx); err != nil && e.ctx.Err() == nil {
			e.opts.Log.Warn("cannot signal the task", "signal", what, "error", err)
		}
	}()
}

func (e *Engine) reply(fx fxReply) {
	e.mu.Lock()
	ch := e.calls[fx.id]
	e.mu.Unlock()
	if ch != nil { // nil: the caller has given up
		ch <- answer{fx.err, fx.detail}
	}
}

// publish shows the machine's state to Status.
func (e *Engine) publish(m *machine) {
	s := m.view()
	e.mu.Lock()
	e.status = s
	e.mu.Unlock()
}

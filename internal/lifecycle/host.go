package lifecycle

import (
	"context"
	"time"
)

// Host is what the engine needs from whoever runs the task: the driver with an inner driver, or the in-container shim.
// The engine calls its methods from goroutines of its own, never two hooks of one task at the same time. Every method
// must return soon after its context has ended; the engine does not wait longer than that.
type Host interface {
	// Place puts a restored state where the task finds it ($RETINUE_STATE). It is called before Start.
	Place(ctx context.Context, state []byte) error
	// Start starts the task's process.
	Start(ctx context.Context) error
	// Stop sends signal, waits at most timeout and then kills; it returns when the process is gone. Empty signal: the
	// driver's own.
	Stop(ctx context.Context, signal string, timeout time.Duration) error
	// Kill ends the process at once, beside a Stop that is under way.
	Kill(ctx context.Context) error
	// Signal sends a signal to the task.
	Signal(ctx context.Context, signal string) error
	// Freeze stops every process of the task where it stands; Thaw lets it go on. Both may be called twice.
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error

	// Exec runs a command inside the task.
	Exec(ctx context.Context, call ExecCall) (ExecResult, error)
	// HTTP sends one request to the application, or, for on_exit, from the host. An error that no answer came of because
	// nobody listens must be, or wrap, ErrUnreachable.
	HTTP(ctx context.Context, call HTTPCall) (HTTPResult, error)
	// Connections counts the established TCP connections of a port in the task's network namespace.
	Connections(ctx context.Context, port int) (int, error)

	// Event tells the user; Nomad shows it in `nomad alloc status`. It must not block.
	Event(Event)
	// Persist keeps the machine's state, for Recover. It is called before the effects of an edge are carried out, from
	// the engine's own goroutine; it should be quick.
	Persist(saved []byte) error
}

// States keeps the application's state; see package state for what implements it.
type States interface {
	// Load returns the newest state; found is false when there is none. An error means that there is one which cannot be
	// used (damaged, too large, store away).
	Load(ctx context.Context) (state State, found bool, err error)
	// Save keeps data as the newest state. It returns only when that is durable.
	Save(ctx context.Context, data []byte) error
	// Reject sets the newest state aside, so that it is kept and not restored again.
	Reject(ctx context.Context, why string) error
}

// State is what an application saved.
type State struct {
	Data       []byte
	Version    int // of the format of what stands beside it
	AppVersion string
	SavedAt    time.Time
}

// ExecCall is one run of a command inside the task.
type ExecCall struct {
	Command []string
	Env     []string // RETINUE_*; a host that cannot set the environment may leave it out
	Limit   int64    // bytes of output; more is an error
}

// ExecResult is what a command answered.
type ExecResult struct {
	Code   int
	Stdout []byte
	Stderr []byte
}

// HTTPCall is one request of a hook.
type HTTPCall struct {
	Request
	Header   map[string]string // Retinue-*
	Body     []byte
	Limit    int64 // bytes of the answer; more is an error
	FromHost bool  // on_exit: outside the task, which is gone
}

// HTTPResult is what came back.
type HTTPResult struct {
	Status     int
	RetryAfter string // header
	Body       []byte
}

// Event is a change that people should see.
type Event struct {
	From, To Phase
	Message  string
	Details  map[string]string // hook -> how it ended, and so on; never a secret
	Failed   bool
}

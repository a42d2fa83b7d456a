package manage

import (
	"context"
	"io"
	"net"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/state"
)

// Task is what the API asks the driver, or the shim, for. Methods that cannot answer return ErrUnsupported.
type Task interface {
	Info() Info
	// Engine is the task's lifecycle.
	Engine() *lifecycle.Engine
	// Usage is what the task uses now.
	Usage(ctx context.Context) (Usage, error)
	// Logs opens a stream of the task ("stdout" or "stderr"): its last tail bytes, and with follow what comes.
	Logs(ctx context.Context, stream string, tail int64, follow bool) (io.ReadCloser, error)
	// Config is the task's configuration as the job has it. Values of the environment are not shown; see Redact.
	Config() map[string]any
	// Pids are the task's processes, as the caller's /proc has them.
	Pids(ctx context.Context) ([]int, error)
	// Exec runs a command inside the task.
	Exec(ctx context.Context, call lifecycle.ExecCall) (lifecycle.ExecResult, error)
	// Dial connects to the application's own socket.
	Dial(ctx context.Context) (net.Conn, error)
	// State describes the newest saved state; state.ErrNone when there is none.
	State(ctx context.Context) (state.Meta, error)
	// Replicate sets the count of the task's group, and returns what it was.
	Replicate(ctx context.Context, count func(now int) (int, error)) (before, after int, err error)
}

// Info names a task.
type Info struct {
	Namespace string `json:"namespace"`
	Job       string `json:"job"`
	Group     string `json:"group"`
	Task      string `json:"task"`
	Alloc     string `json:"alloc"`
	Node      string `json:"node"`
	Driver    string `json:"driver"`
	Version   string `json:"version"` // of Retinue
	Pid       int    `json:"pid,omitempty"`
}

// Usage is what a task uses.
type Usage struct {
	CPUSeconds     float64 `json:"cpu_seconds"`
	MemoryBytes    uint64  `json:"memory_bytes"`
	MemoryMaxBytes uint64  `json:"memory_max_bytes,omitempty"`
	SwapBytes      uint64  `json:"swap_bytes,omitempty"`
	Processes      int     `json:"processes"`
	Threads        int     `json:"threads,omitempty"`
}

// Description answers GET /v1/task.
type Description struct {
	Info
	Lifecycle lifecycle.Status `json:"lifecycle"`
	Hooks     []HookInfo       `json:"configured_hooks"`
	State     *state.Meta      `json:"state,omitempty"`
}

// HookInfo is a hook as it is configured.
type HookInfo struct {
	Name      string `json:"name"`
	Kind      string `json:"kind"`
	TimeoutMS int64  `json:"timeout_ms"`
	OnFailure string `json:"on_failure"`
}

// Health answers GET /v1/health and /v1/ready.
type Health struct {
	OK     bool   `json:"ok"`
	Source string `json:"source"` // "application" or "driver"
	Phase  string `json:"phase"`
	Detail string `json:"detail,omitempty"`
}

// Done answers an operation.
type Done struct {
	Phase  string `json:"phase"`
	Detail string `json:"detail,omitempty"`
	TookMS int64  `json:"took_ms"`
}

// Scaled answers POST /v1/replicate.
type Scaled struct {
	Before int `json:"before"`
	After  int `json:"after"`
	Limit  int `json:"limit"`
}

// ReplicateRequest asks for a count, or for some more.
type ReplicateRequest struct {
	Count int `json:"count,omitempty"`
	Add   int `json:"add,omitempty"`
}

// Refusal is every error.
type Refusal struct {
	Error   string `json:"error"` // for programs: not_found, wrong_phase, ...
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

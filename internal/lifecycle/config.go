package lifecycle

import (
	"time"
)

// Budget says how the hooks of a stop and the kill timeout share the time.
type Budget string

// The budgets.
const (
	Separate Budget = "separate" // each hook has its timeout; the kill timeout begins with the signal
	Shared   Budget = "shared"   // hooks eat into the kill timeout, as in Kubernetes; at least two seconds are left for the signal
)

// Limits that hold for every task.
const (
	DefaultStopBudget = 5 * time.Minute
	MaxTimeout        = time.Hour
	MaxStateSize      = 64 << 20 // bytes
	DefaultStateSize  = 8 << 20  // bytes
	MinEvery          = time.Second
	sharedReserve     = 2 * time.Second // left for the signal under a shared budget
)

// Config is the lifecycle of one task. Decode and FromMeta make valid ones; the zero value has no hooks.
type Config struct {
	Budget      Budget
	StopBudget  time.Duration // lowers the driver's own cap; 0: the driver's
	Watchdog    time.Duration // longest silence between two WATCHDOG=1; 0: none
	MaxReplicas int           // highest count that "replicate yourself" may ask for; 0: refused
	Hooks       map[HookName]Hook
	State       StateConfig
}

// Hook is one configured hook.
type Hook struct {
	Name      HookName
	Kind      Kind
	Exec      []string      // KindExec
	HTTP      Request       // KindHTTP
	Sleep     time.Duration // KindSleep
	Signal    string        // KindSignal
	Port      int           // KindTCP
	Interval  time.Duration // ready and drain: between two questions
	OnSignal  string        // on_config: the signal that it answers
	Timeout   time.Duration
	OnFailure Policy
}

// Request is where an http hook goes.
type Request struct {
	Method string
	URL    string // empty: the application's Unix socket
	Path   string // with the query; of the URL too
}

// String is the request as a job specification has it.
func (r Request) String() string { return r.Method + " " + r.URL + r.Path }

// StateConfig says where the application's state goes.
type StateConfig struct {
	Store      string        // "alloc", "consul-kv", "nomad-var" or "dir:/path"
	MaxSize    int64         // bytes
	Every      time.Duration // between two saves of a running task; 0: only at a stop
	AppVersion string        // kept beside the state and offered to whom it is restored
}

// Has says whether a hook is configured. It is safe on a nil Config.
func (c *Config) Has(name HookName) bool {
	if c == nil {
		return false
	}
	_, ok := c.Hooks[name]
	return ok
}

// StopTime is the longest time that a stop may take with this configuration: the sum of what is declared, within the cap.
func (c *Config) StopTime(killTimeout, limit time.Duration) time.Duration {
	if c.Budget == Shared {
		return killTimeout + sharedReserve
	}
	total := killTimeout
	for _, name := range []HookName{PreDrain, Drain, SaveState, PreStop} {
		total += c.Hooks[name].Timeout
	}
	return min(total, max(c.stopLimit(limit), killTimeout))
}

// stopLimit is the cap on one stop: the driver's, which the job may lower.
func (c *Config) stopLimit(driver time.Duration) time.Duration {
	if driver <= 0 {
		driver = DefaultStopBudget
	}
	if c.StopBudget > 0 {
		driver = min(driver, c.StopBudget)
	}
	return driver
}

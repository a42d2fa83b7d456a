package lifecycle

import (
	"slices"
	"time"
)

// HookName is the name of a hook, as it stands in a job specification.
type HookName string

// The hooks, in the order in which a task meets them.
const (
	RestoreState HookName = "restore_state" // before the process (a file), or after its start (http)
	PostStart    HookName = "post_start"    // after the start
	Ready        HookName = "ready"         // gates the end of the start
	Pause        HookName = "pause"         // before the freeze
	Resume       HookName = "resume"        // after the thaw
	OnConfig     HookName = "on_config"     // when the configured signal comes, in its place
	PreDrain     HookName = "pre_drain"     // first step of a stop
	Drain        HookName = "drain"         // until nothing is in flight
	SaveState    HookName = "save_state"    // after the drain, and now and then
	PreStop      HookName = "pre_stop"      // before the signal
	OnExit       HookName = "on_exit"       // after the end, whatever its cause
)

// Kind says how a hook is carried out.
type Kind string

// The kinds of hook. Every hook has one of them; see Spec for which hook takes which.
const (
	KindExec   Kind = "exec"     // a command inside the task
	KindHTTP   Kind = "http"     // a request to the application
	KindSleep  Kind = "sleep"    // only waits
	KindSignal Kind = "signal"   // a signal to the task
	KindTCP    Kind = "tcp_port" // counts connections of a port (drain)
	KindNotify Kind = "notify"   // waits for READY=1 (ready)
	KindFile   Kind = "file"     // the state as a file at $RETINUE_STATE (restore_state)
)

// Policy says what a hook's failure does.
type Policy string

// The failure policies.
const (
	Ignore    Policy = "ignore"     // go on; the failure stands in the task's event
	Fail      Policy = "fail"       // the operation fails: a start kills the task, and the restart policy decides
	AbortStop Policy = "abort_stop" // the task goes on to run and StopTask fails, so that Nomad tries again
)

// Spec is what the project lays down for one hook.
type Spec struct {
	Name      HookName
	Called    string // when, in a sentence
	Android   string // its counterpart in the Activity model; may be empty
	Blocking  bool
	Timeout   time.Duration // when the job says nothing
	OnFailure Policy        // when the job says nothing
	Kinds     []Kind
	Policies  []Policy
}

// Hooks returns the table of hooks. It is the contract; documentation and schema are made from it.
func Hooks() []Spec {
	any4 := []Kind{KindExec, KindHTTP, KindSleep, KindSignal}
	start, stop := []Policy{Fail, Ignore}, []Policy{Ignore, AbortStop}
	return []Spec{
		{RestoreState, "before the process starts (file), or after its start (http)", "onRestoreInstanceState", true, 30 * time.Second, Fail, []Kind{KindFile, KindHTTP}, start},
		{PostStart, "after the process was started", "onCreate", true, 30 * time.Second, Fail, any4, start},
		{Ready, "asked again and again; the start ends when it succeeds", "onStart, onResume", true, 30 * time.Second, Fail, []Kind{KindExec, KindHTTP, KindNotify, KindSleep}, start},
		{Pause, "before the task is frozen", "onPause", true, 5 * time.Second, Ignore, any4, []Policy{Ignore, Fail}},
		{Resume, "after the task was thawed, and when a drain without a stop is given up", "onResume", true, 5 * time.Second, Ignore, any4, []Policy{Ignore, Fail}},
		{OnConfig, "in place of the configured signal (template change_mode = \"signal\")", "onConfigurationChanged", true, 10 * time.Second, Ignore, any4, []Policy{Ignore, Fail}},
		{PreDrain, "first step of a stop; services are deregistered already", "onPause", true, 5 * time.Second, Ignore, any4, stop},
		{Drain, "until nothing is in flight", "", true, 30 * time.Second, Ignore, []Kind{KindExec, KindHTTP, KindTCP, KindSleep}, stop},
		{SaveState, "after the drain, and periodically", "onSaveInstanceState", true, 10 * time.Second, Ignore, []Kind{KindExec, KindHTTP}, stop},
		{PreStop, "before the stop signal", "onStop", true, 10 * time.Second, Ignore, any4, stop},
		{OnExit, "after the process has ended, whatever the cause; runs on the host", "onDestroy", false, 5 * time.Second, Ignore, []Kind{KindHTTP}, []Policy{Ignore}},
	}
}

// SpecOf returns the row of a hook; ok is false for a name that is none.
func SpecOf(name HookName) (spec Spec, ok bool) {
	table := Hooks()
	i := slices.IndexFunc(table, func(s Spec) bool { return s.Name == name })
	if i < 0 {
		return Spec{}, false
	}
	return table[i], true
}

package lifecycle

import (
	"fmt"
	"time"
)

// What the machine is told. Each event carries what is needed to judge it; the time comes beside it.
type (
	// evCall is a request that somebody waits for. Its id comes back in an fxReply.
	evCall struct {
		id   uint64
		verb verb
		stop StopRequest // of verbStop
	}
	// evActed is the end of an action: fxPlace, fxStart, fxFreeze, fxThaw or fxStop.
	evActed struct {
		err    error
		detail string
	}
	// evHooked is the end of one attempt of a hook.
	evHooked struct {
		run     uint64
		outcome outcome
	}
	evExited struct{ status ExitStatus }
	evNotify struct{ n Notice }
	evTick   struct{} // time has passed; due when next says so
)

// verb is an operation on a task.
type verb string

const (
	verbStart   verb = "start"
	verbStop    verb = "stop"
	verbPause   verb = "pause"
	verbResume  verb = "resume"
	verbConfig  verb = "config"
	verbDrain   verb = "drain"
	verbSave    verb = "save"
	verbDestroy verb = "destroy"
	verbEvery   verb = "periodic save" // nobody waits for it
)

// StopRequest is what Nomad gives with a StopTask.
type StopRequest struct {
	Signal  string        // empty: the driver's own
	Timeout time.Duration // kill_timeout
}

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code   int    `json:"code"`
	Signal int    `json:"signal,omitempty"`
	OOM    bool   `json:"oom,omitempty"`
	Err    string `json:"error,omitempty"` // the driver lost it
}

func (s ExitStatus) String() string {
	switch {
	case s.Err != "":
		return s.Err
	case s.OOM:
		return "out of memory"
	case s.Signal != 0:
		return fmt.Sprintf("signal %d", s.Signal)
	}
	return fmt.Sprintf("exit code %d", s.Code)
}

// killed says that SIGKILL ended the process; a container runtime reports it as 128+9.
func (s ExitStatus) killed() bool { return s.Signal == 9 || s.Code == 137 }

// Notice is what an application says of itself through NOTIFY_SOCKET.
type Notice struct {
	Ready     bool          // READY=1
	Stopping  bool          // STOPPING=1
	Watchdog  bool          // WATCHDOG=1
	Trigger   bool          // WATCHDOG=trigger: end me now
	Extend    time.Duration // EXTEND_TIMEOUT_USEC; 0: not said
	Status    string        // STATUS=
	HasStatus bool
}

// outcome is how one attempt of a hook ended.
type outcome struct {
	err         error         // nil: it worked, or asks for another attempt
	unreachable bool          // nobody listens (yet)
	again       bool          // not done: ask again
	after       time.Duration // with again; 0: the hook's interval
	detail      string        // for people, such as "in flight 3"
}

// What the machine wants done.
type (
	// fxHook makes one attempt of a hook; evHooked answers, even after fxCancel.
	fxHook struct {
		run      uint64
		hook     Hook
		delivery string
		attempt  int
		deadline int64 // nanoseconds of the machine's clock; the header has it as time left
		reason   string
		exit     *ExitStatus // of on_exit
	}
	fxCancel struct{ run uint64 }
	fxPlace  struct{} // restore_state: give the saved state back, as a file
	fxStart  struct{}
	fxFreeze struct{}
	fxThaw   struct{}
	fxStop   struct {
		signal  string
		timeout time.Duration
	}
	fxKill   struct{}
	fxSignal struct{ signal string }
	fxEvent  struct{ event Event }
	fxReply  struct {
		id     uint64
		err    error
		detail string
	}
)

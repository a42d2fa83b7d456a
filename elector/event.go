package elector

import (
	"time"

	"retinue/internal/clock"
)

// Events are everything that can happen to a machine. Requests of applications get a reply at once; a resign is answered again
// when Consul has committed it.
type (
	evTick struct{}

	// From the store.
	evOpened struct {
		session Session
		sent    clock.Instant
		err     error
	}
	evRenewed struct {
		session        string
		sent, received clock.Instant
		err            error // nil, errSessionGone, or "no answer"
	}
	evCommitted struct {
		result Result
		err    error // non-nil: the outcome is unknown
	}
	evObserved struct{ snapshot Snapshot }
	evClosed   struct{}
	evSwept    struct{}

	// From applications.
	evCampaign struct {
		election, id string
		lease        time.Duration // 0: the elector's
		priority     int
		value        any
	}
	evWithdraw struct{ election, id string }
	evClaim    struct{ election, id string }
	evRenew    struct {
		election string
		token    uint64
	}
	evTether struct {
		election string
		token    uint64
		closed   bool
		stuck    bool // closed by us, because nobody read: the application may live
	}
	evResign struct {
		election string
		token    uint64
		to       string
		req      uint64
	}
	evStepdown struct {
		election string
		to       string
	}
	evRebalance struct{}
	evPublish   struct {
		election string
		token    uint64
		value    any
	}
	evStop struct{ keep bool } // keep: a restart of the elector alone may leave leadership to the next process
)

// ofStore says whether ev comes from the store, and may thus change what is led.
func ofStore(ev any) bool {
	switch ev.(type) {
	case evOpened, evRenewed, evCommitted, evObserved:
		return true
	}
	return false
}

// reply is the immediate answer to a request. At most one field is set; none means "done".
type reply struct {
	grant   *Grant
	refusal *Refusal
	moves   map[string]string
}

// Effects are what a machine wants done. The owner carries them out in order.
type (
	fxOpen    struct{ spec SessionSpec }
	fxRenew   struct{ session string }
	fxCommit  struct{ batch Batch }
	fxWatch   struct{} // start the watch anew: its connection may be dead
	fxClose   struct{ session string }
	fxSweep   struct{ remains Remains }
	fxDestroy struct{ session string } // a session that was given up
	fxAnswer  struct {
		req uint64
		out Outcome
	}
	fxEvent struct{ event Event }
	fxDone  struct{ keep bool }
)

// EventType names what happened to an election.
type EventType string

// The events that applications see.
const (
	EventElected       EventType = "elected"
	EventSuspended     EventType = "suspended"
	EventResumed       EventType = "resumed"
	EventLost          EventType = "lost"
	EventStepdown      EventType = "stepdown"
	EventLeaderChanged EventType = "leader_changed"
	EventVacant        EventType = "vacant"
)

// Event is one change of one election.
type Event struct {
	Index    uint64      `json:"index"`
	Type     EventType   `json:"type"`
	Election string      `json:"election"`
	Role     Role        `json:"role"`
	Reason   string      `json:"reason,omitempty"`
	Token    uint64      `json:"token,omitempty"`
	Leader   *LeaderInfo `json:"leader,omitempty"`
	Deadline int64       `json:"deadline_boottime_ns,omitempty"` // while this side leads
	Time     time.Time   `json:"time"`
}

// Outcome is how a resign ended.
type Outcome struct {
	Released  bool   `json:"released"`
	Index     uint64 `json:"released_index,omitempty"`
	Successor string `json:"successor,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// Refusal is why a request was not granted.
type Refusal struct {
	Status  int         `json:"-"`
	Error   string      `json:"error"`
	Message string      `json:"message,omitempty"`
	Reason  string      `json:"reason,omitempty"`
	Token   uint64      `json:"token,omitempty"`
	Current *LeaderInfo `json:"current,omitempty"`
	Leader  *LeaderInfo `json:"leader,omitempty"`
	RetryMS int64       `json:"retry_after_ms,omitempty"`
	Known   []string    `json:"known,omitempty"`
}

package coordinator

import (
	"encoding/json"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
)

// Events are everything that can happen to a machine. An item in hand is named by its handle: the same item may be delivered again.
type (
	evTick struct{}

	// From the broker.
	evReceived struct {
		msgs []*source.Message
		err  error
	}
	evExtended struct {
		handles []uint64
		errs    map[uint64]error
	}
	evPublished struct {
		handle uint64
		err    error
	}
	evAcked struct {
		handles []uint64
		errs    map[uint64]error
	}
	evReleased struct{ handles []uint64 }

	evHandBack struct { // a partition goes to another coordinator: what has not begun goes back
		partition int
		msgs      []*source.Message
	}

	// From the commit point.
	evChecked struct {
		handle uint64
		record *item.Record
		err    error
	}
	evCommitted struct {
		handle uint64
		record item.Record // that counts
		err    error       // non-nil: the outcome is unknown
	}

	// From the worker.
	evCalled struct {
		call     uint64
		verdicts []worker.Verdict // as many as the call has items
	}
	evBeat struct {
		id    string
		again bool // it begins only now: its time starts again
		claim bool // it had waited for a worker until now

		progress json.RawMessage // how far it is; nil: it does not say
	}

	// From people.
	evShare  struct{ share float64 } // of the rates
	evPause  struct{ reason string }
	evResume struct{ key string } // "": the stage
	evDrain  struct{}
	evCancel struct{ id string }
	evStop   struct{}
)

// Effects are what a machine wants done.
type (
	fxReceive struct{ max int }
	fxIdle    struct{} // nothing will be received for a while
	fxCheck   struct {
		handle uint64
		id     string
	}
	fxCall struct {
		call  uint64
		tasks []*item.Task
	}
	fxEnd struct { // a call, with the class of its failure
		call   uint64
		class  item.Class
		reason string
	}
	fxCommit struct {
		handle uint64
		record item.Record
		out    string
	}
	fxPublish struct {
		handle uint64
		outs   map[string][]source.Out // by queue
		part   *GroupPart              // of member's group; nil for none
		member membership
	}
	fxAck     struct{ handles []uint64 }
	fxExtend  struct{ handles []uint64 }
	fxRelease struct {
		handles []uint64
		delay   time.Duration
	}
	fxDiscard struct{ out *worker.Output } // an attempt's leftovers
	fxEnded   struct {                     // an item has ended here
		record item.Record
	}
	fxFailed struct { // an attempt has failed
		id      string
		attempt item.Attempt
		counted bool
	}
	fxDiverted struct{ id, reason string } // an item goes to another queue
	fxState    struct{ state string }      // of the stage: running, paused ...
	fxDone     struct{}
)

// messageOf finds the message of an item in hand; the owner hands it to the source.
func (m *machine) messageOf(handle uint64) *source.Message {
	if it := m.items[handle]; it != nil {
		return it.msg
	}
	return nil
}

// Package worker is how items reach a container that knows nothing of queues:
// a command for each item (Exec), folders that a long-lived process claims
// (Watch), HTTP (HTTP), and lines of JSON (Lines).
//
// What every kind promises: a call returns exactly one verdict for each of its
// items, soon after its context ends at the latest; nothing of an attempt goes
// on after that which could still touch its output; and a worker that is not
// ready is told from an item that fails.
package worker

import (
	"context"
	"errors"
	"time"

	"retinue/coordinator/item"
)

// Kind is what a worker said of an item.
type Kind string

// The kinds.
const (
	Ack      Kind = "ack"
	Retry    Kind = "retry"
	Dead     Kind = "dead"
	Drop     Kind = "drop"
	NotReady Kind = "not_ready" // nothing was done, and not because of the item
	Crashed  Kind = "crash"
	TimedOut Kind = "timeout"
	Infra    Kind = "infra"   // this side could not do its part
	Stopped  Kind = "stopped" // the context ended
)

// Verdict is how an attempt ended.
type Verdict struct {
	Kind       Kind
	Reason     string
	RetryAfter time.Duration
	Stderr     string
	Output     *Output // of an attempt that has a folder, or that succeeded; the receiver discards it
	// Node and Alloc say where the attempt was; "": where its coordinator is.
	Node, Alloc string
	// Whole says that the call failed as a whole and this item only with it.
	Whole bool
}

// Output is what an attempt produced.
type Output struct {
	Dir        string // the attempt's folder, removed by Discard; "" for none
	Out        string // the folder of its files; "" for none
	Result     []byte
	ResultType string
	Next       []item.Message
	Files      []item.File
}

// Worker runs attempts.
type Worker interface {
	// Call runs one attempt at each task and returns their verdicts in the same order. The cause of the context's end says
	// why: ErrTimeout, ErrHeartbeat or anything else. Call is used by many goroutines.
	Call(ctx context.Context, tasks []*item.Task) []Verdict
	// Discard removes what an attempt left. It is called once for every output that Call returned, after the commit.
	Discard(out *Output)
	// Close ends what the worker keeps open. No call is under way.
	Close() error
}

// Causes of the end of a call.
var (
	ErrTimeout   = errors.New("longer than max_runtime")
	ErrHeartbeat = errors.New("no heartbeat")
)

// stopped is the verdict on an attempt whose context ended.
func stopped(ctx context.Context) Verdict {
	cause := context.Cause(ctx)
	if errors.Is(cause, ErrTimeout) || errors.Is(cause, ErrHeartbeat) {
		return Verdict{Kind: TimedOut, Reason: cause.Error()}
	}
	return Verdict{Kind: Stopped, Reason: cause.Error()}
}

// all returns the same verdict for every task of a call that failed as a whole.
func all(tasks []*item.Task, v Verdict) []Verdict {
	v.Whole = len(tasks) > 1
	verdicts := make([]Verdict, len(tasks))
	for i := range verdicts {
		verdicts[i] = v
	}
	return verdicts
}

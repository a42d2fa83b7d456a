// Package coordinator is the work queue that runs beside a container: it takes
// items from a broker, hands them to a worker that knows nothing of queues,
// and makes what came out count exactly once.
//
// What it promises:
//
//   - At least once execution, exactly once committed output, exactly one
//     message to the next stage for an item (conditions: the README).
//   - An item is acknowledged last: after its record at the commit point and
//     after its messages to the next stage.
//   - A worker that is not ready costs no item an attempt.
//
// How it is built: machine holds the whole logic as a pure state machine
// (events in, effects out; no clock, no goroutine, no network). Coordinator
// owns it in one goroutine and carries the effects out: source.Source is the
// broker, commit.Point the commit point, worker.Worker the worker.
package coordinator

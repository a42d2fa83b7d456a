// Package lifecycle gives one task a formal life: a state machine with hooks
// that the application defines (created, started, about to stop, ...), as the
// Android Activity model has (section 3 of the paper).
//
// It has three parts. Config is the `lifecycle` block of a task, decoded from
// plain values or from the task's meta, with all problems told at once. A machine
// is the pure state machine: events and the time go in, effects come out; it
// touches no clock, no network and no goroutine. Engine owns a machine, carries
// its effects out through a Host (the task driver, or the in-container shim) and
// feeds the results back.
//
// What it promises:
//   - The hooks of one task never run at the same time.
//   - The stop signal is sent only after pre_stop has ended, failed or timed out.
//   - After the process has ended no hook runs but on_exit.
//   - A stop takes at most the sum of the declared budgets and two seconds, and
//     never more than the stop budget of the driver (or the kill timeout, where
//     that is longer). No hook can hold the drain of a node for ever.
//   - A hook's failure never makes a stop fail, unless it says abort_stop; and
//     that at most four times in a row and within the stop budget, because Nomad
//     gives up on a task after the fifth failure.
//   - Hooks are delivered at least once: after a crash of the driver a stop
//     begins again from pre_drain, and each hook keeps its delivery ID.
//   - An edge of the state machine makes one task event at most.
//
// The driver imports this package from the plugins module, and `retinue init`
// from the root module: that is why it lives here and imports neither Nomad nor
// gRPC nor a network package.
package lifecycle

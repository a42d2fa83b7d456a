// Package elector is the leader election that runs beside a container: one
// elector in every task group of an application, talking Consul on one side
// and plain HTTP on the other, so that the application needs no library.
//
// What it promises:
//
//   - At most one application acts as leader under an unexpired lease (the
//     conditions are the fault table of the README). The lease is measured on
//     the boot clock from before the request that confirmed it.
//   - Every grant carries a fencing token, the Raft index at which the lock
//     was taken. It grows with every new leader and never repeats.
//   - Whether this process leads is answered by the clock alone: a stuck
//     connection to Consul can make it say "no" too early, never "yes" too
//     late.
//
// How it is built: machine holds the whole logic as a pure state machine
// (events in, effects out; no clock, no goroutine, no network). Elector owns
// it in one goroutine. Store is what it needs of Consul. The HTTP handlers
// read published views and post events.
package elector

// Package gather is the root of scatter/gather: it fans a client's request
// out to many leaf containers at once and returns one answer, made by the
// user's merge container or by a built-in merge. A root may be the leaf of
// another root, so trees of any depth need nothing special.
//
// What it promises:
//
//   - A partial answer is never mistaken for a whole one: the coverage it
//     reports is exactly what was gathered, by weight, through all levels;
//     without leave (a policy) it is an error.
//   - The extra load of hedges and of retries stays within their budgets.
//   - An answer, or an error, comes within the deadline; whatever is not
//     needed any more is cancelled: losers of a hedge, everything on a
//     client's abort.
//   - Memory is bounded.
//
// How it is built: the policies (Picker, Ejector, Budget, Quantile, Policy,
// Coverage, ...) are pure and are told the time. A request is owned by one
// goroutine, which keeps the state of all its shards without a lock; each
// leaf call is a goroutine that reports to it. What requests share (load and
// latency of replicas, budgets) is behind atomics or a lock held for
// nanoseconds, never over I/O.
package gather

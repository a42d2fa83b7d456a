// Package source is what the coordinator needs of a message broker, and
// nothing else: take messages under a lease, keep the lease, give a message
// back, remove it, publish, and see how much is waiting. Each broker has a
// package of its own below this one; package sourcetest holds the one suite
// that all of them pass, against real servers.
//
// What every adapter promises, whatever its broker promises:
//
//   - At least once. A message that Publish reported as stored is delivered
//     until it was acknowledged: over a kill -9 of its consumer, of the broker
//     (where the broker itself keeps what it confirmed), and over a cut
//     connection.
//   - One consumer at a time has a message, as long as that consumer extends
//     the lease in time. After a lost lease two may have it: effects are made
//     single by the coordinator's commit, never here.
//   - Release and Ack are safe to repeat, and neither loses a message when the
//     process dies in the middle of it. Such a death may deliver once more.
//   - Messages travel unchanged: binary bodies, headers, key, class, identity
//     and time of publication. Messages that somebody else's producer wrote
//     are delivered too, with what they have.
//
// What is not here on purpose: counting attempts, backoff, dead letters,
// deduplication of effects, results. They live in the coordinator, so that they
// are the same on every broker. A dead letter is a Publish to a second source
// (another queue) followed by an Ack here.
package source

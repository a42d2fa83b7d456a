// Package scale keeps the number of workers of a queue where the work is: none
// without items, more when what is there would take longer than it may, and
// less when that is over.
//
// What it promises:
//
//   - Of all scalers of a queue one leads, by a Consul session, and it alone
//     changes the count; a change that comes late meets Nomad's check of the
//     job's index and does nothing.
//   - Items in flight count. Steps up at most double what runs; steps down wait
//     until less was enough for a whole cooldown.
//   - Without knowing the queue's depth it changes nothing.
//   - Every decision can be read: what was seen, what follows, what limited it,
//     what was done.
//
// How it is built: policy decides, without clock or network; Scaler owns it in
// one goroutine, and reads the broker, Nomad and the coordinators' reports once
// in an interval.
package scale

// Package electorclient lets a Go application lead: it speaks to the elector
// beside it, and calls a function for as long as this process is the leader.
//
//	c, err := electorclient.FromEnv()
//	...
//	for ctx.Err() == nil {
//		err := c.Lead(ctx, "leader", func(ctx context.Context, l *electorclient.Leadership) error {
//			return work(ctx, l.Token()) // until ctx ends
//		})
//		log.Print("leading no more: ", err)
//	}
//
// What it promises:
//
//   - The function runs only while this process leads, and its context ends
//     before the lease does: a tenth of the lease, at most a second, is left to
//     stop in. The lease is measured on the boot clock, from before the request
//     that confirmed it.
//   - Leadership is given back only after the function has returned. Until
//     then it is renewed, also while the function cleans up after the caller's
//     context has ended.
//   - When the process dies the elector knows at once (the tether, an open
//     connection, closes); when it hangs, within one lease.
//
// What it cannot promise: a function that does not return when its context
// ends is not stopped by anybody, and a write that is under way when the
// machine is paused may arrive much later. Send Token along with every write,
// and let the store refuse a lower one than it has seen.
//
// The package needs nothing but the standard library and no other package of
// this project, so it may also be copied. It is a convenience: the same HTTP
// interface serves every language.
package electorclient

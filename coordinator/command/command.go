// Package command is the command line of the coordinator and of the worker
// beside it. The programs that have it differ in the brokers they link:
// `retinue` those that leave a helper small, `retinue-coordinator` all.
package command

import (
	"context"

	"retinue/coordinator/source"
)

// Program is the one that links every broker.
const Program = "retinue-coordinator"

// Brokers are what a program links.
type Brokers struct {
	// Schemes are the addresses that Open understands, separated by ", ".
	Schemes string
	// Open opens the queue of o at an address.
	Open func(ctx context.Context, address string, o source.Options) (source.Source, error)
	// Others are the addresses that it does not understand and another program does; "" for none.
	Others string
	// Elsewhere says for a scheme that this program does not link what to do instead; "" where nothing is known of it.
	Elsewhere func(scheme string) string
}

// Package command is the command line of the coordinator and of the worker
// beside it. The programs that have it differ in the brokers they link:
// `retinue` those that leave a helper small, `retinue-coordinator` all.
package command

import (
	"context"
	"errors"
	"fmt"

	"retinue/coordinator/source"
)

// Brokers are what a program links.
type Brokers struct {
	// Schemes are the addresses that Open understands, separated by ", ".
	Schemes string
	// Open opens the queue of o at an address.
	Open func(ctx context.Context, address string, o source.Options) (source.Source, error)
	// Elsewhere says for a scheme that this program does not link what to do instead; "" where nothing is known of it.
	Elsewhere func(scheme string) string
}

// Exit codes.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// usageError marks an error of the command line itself.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// exitError ends the program with a code when everything has been said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Code is the exit code of a program whose command ended with err, and whether everything has been said already.
func Code(err error) (code int, said bool) {
	switch e := exitError(0); {
	case err == nil:
		return 0, true
	case errors.As(err, &e):
		return int(e), true
	case errors.As(err, new(usageError)):
		return exitUsage, false
	}
	return exitFailed, false
}

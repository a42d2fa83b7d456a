package source

import (
	"errors"
	"fmt"
	"strings"
)

// What callers branch on; adapters wrap them with the broker's own words and, where there is some, advice (internal/hint).
var (
	// ErrLost: the message is not ours any more.
	ErrLost = errors.New("the lease was lost")
	// ErrClosed: the source was closed.
	ErrClosed = errors.New("the source is closed")
	// ErrUnavailable: the broker cannot be reached or cannot serve now. Time may heal it.
	ErrUnavailable = errors.New("the broker is not available")
	// ErrAccess: the broker refuses who we are or what we want to do.
	ErrAccess = errors.New("the broker refuses access")
	// ErrConfig: an address, an option or the queue as it exists does not fit.
	ErrConfig = errors.New("the configuration does not fit the broker")
	// ErrInvalid: an Out that the contract forbids.
	ErrInvalid = errors.New("the message is not valid")
	// ErrTooLarge: a body above Caps.MaxBody.
	ErrTooLarge = errors.New("the message is too large")
)

// Failures is the error of a call with several messages of which some failed.
type Failures map[*Message]error

func (f Failures) Error() string {
	const shown = 3
	var parts []string
	for m, err := range f {
		if len(parts) == shown {
			parts = append(parts, "...")
			break
		}
		parts = append(parts, fmt.Sprintf("%s: %v", m.ID, err))
	}
	return fmt.Sprintf("%d messages failed: %s", len(f), strings.Join(parts, "; "))
}

// Unwrap lets errors.Is find what any of the messages failed with.
func (f Failures) Unwrap() []error {
	var errs []error
	for _, err := range f {
		errs = append(errs, err)
	}
	return errs
}

// Err returns f as an error: nil where nothing failed.
func (f Failures) Err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// ErrorOf returns what an error of Extend, Ack or Release says about one of the messages.
func ErrorOf(err error, m *Message) error {
	var f Failures
	if errors.As(err, &f) {
		return f[m]
	}
	return err
}

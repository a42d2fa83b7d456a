// Package actor drives a pure state machine: one goroutine owns it, feeds it
// one event after the other, and wakes it when something is due. The machine
// itself knows neither goroutines nor timers, and the goroutine knows nothing
// of what the machine decides.
package actor

import (
	"context"
	"time"

	"retinue/internal/clock"
)

// Loop is the owner of a machine that takes events of type E.
type Loop[E any] struct {
	Clock clock.Clock
	// Inbox brings what happens and what is asked.
	Inbox <-chan E
	// Tick is fed when something is due, Stop once, when the context ends.
	Tick, Stop E
	// Step feeds an event to the machine at now, and carries out what follows from it. Whatever the event, the machine deals with all
	// that is due at now.
	Step func(now clock.Instant, event E)
	// Next is when the machine has something to do after now, if nothing else happens; clock.Never if it has not.
	Next func(now clock.Instant) clock.Instant
	// Done says that the machine has ended.
	Done func() bool
}

// Run steps the machine until it has ended. The end of ctx asks it to end; that of hard ends the loop at once, with hard's error.
func (l Loop[E]) Run(ctx, hard context.Context) error {
	stop := ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var event E
		select {
		case event = <-l.Inbox:
		case <-timer.C:
			event = l.Tick
		case <-stop:
			event, stop = l.Stop, nil
		case <-hard.Done():
			return hard.Err()
		}
		stepped := l.Clock.Now()
		l.Step(stepped, event)
		if l.Done() {
			return nil
		}
		// What the step left for later, though later may be over by now: asked for what comes after this moment, the machine would
		// pass over it.
		if at := l.Next(stepped); at != clock.Never {
			timer.Reset(max(0, at.Sub(l.Clock.Now())))
		} else {
			timer.Stop()
		}
	}
}

package actor

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"retinue/internal/clock"
)

// machine notes what it is fed, and has something to do wait after every step, until it has been stepped often enough.
type machine struct {
	events []string
	at     []clock.Instant
	due    clock.Instant
	wait   time.Duration
	steps  int // it ends after so many; 0: never
}

func (m *machine) loop(clk clock.Clock, inbox <-chan string) Loop[string] {
	return Loop[string]{
		Clock: clk, Inbox: inbox, Tick: "tick", Stop: "stop",
		Step: func(now clock.Instant, event string) {
			m.events, m.at = append(m.events, event), append(m.at, now)
			m.due = clock.Never
			if m.wait > 0 {
				m.due = now.Add(m.wait)
			}
		},
		Next: func(now clock.Instant) clock.Instant {
			if m.due > now {
				return m.due
			}
			return clock.Never
		},
		Done: func() bool { return len(m.events) == m.steps },
	}
}

// run runs a loop for a minute of the bubble's time at most.
func run(t *testing.T, ctx context.Context, l Loop[string]) error {
	hard, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return l.Run(ctx, hard)
}

// leaping is the clock of a machine so busy that time passes between any two readings.
type leaping struct {
	clock.Clock
	by, ahead time.Duration
}

func (c *leaping) Now() clock.Instant {
	c.ahead += c.by
	return c.Clock.Now().Add(c.ahead)
}

// What becomes due while a step is being carried out is due at once, and not passed over.
func TestNothingDueIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{wait: time.Millisecond, steps: 5}
		start := time.Now()
		if err := run(t, t.Context(), m.loop(&leaping{Clock: clock.Bubble(), by: time.Second}, nil)); err != nil {
			t.Errorf("%v after %q", err, m.events)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("waited %s for what was due", took)
		}
	})
}

func TestTicksWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{wait: 3 * time.Second, steps: 4}
		if err := run(t, t.Context(), m.loop(clock.Bubble(), nil)); err != nil {
			t.Fatal(err)
		}
		for i, at := range m.at[1:] {
			if gap := at.Sub(m.at[i]); gap != 3*time.Second {
				t.Errorf("tick %d came after %s", i+1, gap)
			}
		}
	})
}

// An event moves what is due, and nothing is fed when nothing is.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{steps: 4}
		inbox := make(chan string)
		go func() {
			for _, event := range []string{"one", "two", "three"} {
				time.Sleep(time.Second)
				inbox <- event
			}
		}()
		if err := run(t, t.Context(), m.loop(clock.Bubble(), inbox)); err != nil {
			t.Error(err)
		}
		if want := []string{"tick", "one", "two", "three"}; !slices.Equal(m.events, want) {
			t.Errorf("fed %q, want %q", m.events, want)
		}
	})
}

func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{wait: time.Second}
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(2500*time.Millisecond, stop)
		if err := run(t, ctx, m.loop(clock.Bubble(), nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a machine that does not end: %v", err)
		}
		if n := slices.Index(m.events, "stop"); n != 3 || slices.Contains(m.events[n+1:], "stop") || len(m.events) < 50 {
			t.Errorf("stop is not the event 3 of %d, or not the only one: %q", len(m.events), m.events)
		}
	})
}

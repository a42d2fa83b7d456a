package scale

import (
	"errors"
	"fmt"
	"time"

	"retinue/internal/hint"
)

// Config is what a scaler does.
type Config struct {
	// Queue is what is measured; Job and Group are what is scaled.
	Queue, Job, Group string
	// ID names this scaler, for people.
	ID string

	// Min and Max bound the count of the group.
	Min, Max int
	// Slots is how many items a worker handles at once.
	Slots int
	// Target is how long it may take to work off what is there.
	Target time.Duration
	// Cooldown is how long less must have been enough before the count goes down.
	Cooldown time.Duration
	// Drain is how long a worker that is stopped may finish what it has. Where items take longer, those that work are not stopped.
	Drain time.Duration
	// Assumed is what an item takes before anything was measured.
	Assumed time.Duration
	// Interval is the time between two decisions.
	Interval time.Duration
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case c.Queue == "":
		return hint.Wrap(errors.New("no queue named"), "give --queue NAME, that of the coordinators")
	case c.Job == "" || c.Group == "":
		return hint.Wrap(errors.New("no job or group named"), "give --job and --group; inside a Nomad task the job is its own")
	case c.Min < 0 || c.Max < 1 || c.Max < c.Min || c.Max > 10000:
		return hint.Wrap(fmt.Errorf("between %d and %d workers", c.Min, c.Max), "--min is 0 or more, --max is 1 to 10000 and not below --min")
	case c.Slots < 1 || c.Slots > 10000:
		return hint.Wrap(fmt.Errorf("%d slots", c.Slots), "1 to 10000, as the coordinators have")
	case c.Target <= 0:
		return hint.Wrap(fmt.Errorf("target %s", c.Target), "how long it may take to work off what is there, such as 60s")
	case c.Cooldown < 0 || c.Drain < 0:
		return errors.New("a time is negative")
	case c.Assumed <= 0:
		return hint.Wrap(fmt.Errorf("service time %s", c.Assumed), "what an item takes, roughly, such as 1s; it counts until something was measured")
	case c.Interval < 50*time.Millisecond || c.Interval > time.Minute:
		return hint.Wrap(fmt.Errorf("interval %s", c.Interval), "between 50ms and 1m; 1s suits most queues")
	}
	return nil
}

package scale

import (
	"fmt"
	"math"
	"time"

	"retinue/internal/clock"
)

// Seen is what a decision is made from.
type Seen struct {
	// Of the broker: items that wait now, with a delay, and at workers. -1: it does not tell.
	Ready    int64 `json:"ready"`
	Delayed  int64 `json:"delayed"`
	InFlight int64 `json:"in_flight"`
	// Of Nomad: the group's count, and its allocations.
	Count   int `json:"count"`
	Placed  int `json:"placed"` // running and pending
	Running int `json:"running"`
	// Of the coordinators.
	Loads []Load `json:"loads,omitempty"`
}

// Where the time of an item comes from.
const (
	FromMeasured = "measured" // from attempts that have ended
	FromRunning  = "running"  // what runs now has taken so long already
	FromAssumed  = "assumed"  // nothing was measured yet
)

// Decision is what follows from what was seen.
type Decision struct {
	Seen        Seen    `json:"seen"`
	Items       int64   `json:"items"`     // ready and in flight
	ServiceS    float64 `json:"service_s"` // an item in a slot
	ServiceFrom string  `json:"service_from"`
	Wanted      int     `json:"wanted"` // by the formula alone
	Count       int     `json:"count"`  // what the group gets
	// Limits say what made a difference between Wanted and Count, in order.
	Limits []string `json:"limits,omitempty"`
}

// Change says whether the count is to be changed.
func (d Decision) Change() bool { return d.Count != d.Seen.Count }

// policy is the whole logic: no clock, no network.
type policy struct {
	cfg     Config
	service service
	window  []need
	since   clock.Instant // when the queue has been seen without a gap since
	blind   bool
}

// need is how many workers were needed at a time.
type need struct {
	at    clock.Instant
	count int
}

func newPolicy(cfg Config, now clock.Instant) *policy { return &policy{cfg: cfg, since: now} }

// lost notes that nothing could be seen. What is unknown cannot justify a step down.
func (p *policy) lost() { p.blind = true }

// decide says how many workers there should be.
func (p *policy) decide(now clock.Instant, seen Seen) Decision {
	if p.blind {
		p.blind, p.since, p.window = false, now, nil
	}
	p.service.add(now, seen.Loads)
	d := Decision{Seen: seen, Items: items(seen)}
	took := p.time(seen, &d)
	d.Wanted = workers(float64(d.Items)*took.Seconds(), p.cfg.Target.Seconds()*float64(p.cfg.Slots))
	d.Count = d.Wanted
	if full := workers(float64(d.Items), float64(p.cfg.Slots)); d.Count > full {
		d.limit(full, "%d items fill %d workers of %d slots", d.Items, full, p.cfg.Slots)
	}
	if d.Count > p.cfg.Max {
		d.limit(p.cfg.Max, "the maximum is %d", p.cfg.Max)
	}
	if d.Count < p.cfg.Min {
		d.limit(p.cfg.Min, "the minimum is %d", p.cfg.Min)
	}
	p.remember(now, d.Count)
	switch {
	case d.Count > seen.Count:
		p.up(&d)
	case d.Count < seen.Count:
		p.down(now, &d)
	}
	return d
}

// items counts what there is to do. Where the broker does not tell what is in flight, the coordinators do.
func items(seen Seen) int64 {
	flying := seen.InFlight
	if flying < 0 {
		flying = 0
		for _, l := range seen.Loads {
			flying += int64(l.InHand)
		}
	}
	return max(0, seen.Ready) + flying
}

// time is how long an item takes. A mean of attempts that ended knows nothing of a new, longer kind until the first of them has
// ended; so what runs now counts once it has taken clearly longer.
func (p *policy) time(seen Seen, d *Decision) time.Duration {
	took, measured := p.service.mean()
	d.ServiceFrom = FromMeasured
	if !measured {
		took, d.ServiceFrom = p.cfg.Assumed, FromAssumed
	}
	if old, running := age(seen.Loads); running > 0 && old > 2*took {
		took, d.ServiceFrom = old, FromRunning
	}
	d.ServiceS = took.Seconds()
	return took
}

// workers is how many of them do the work of so many slot-seconds; at least one while there is any.
func workers(work, each float64) int {
	if work <= 0 {
		return 0
	}
	return int(max(1, min(math.Ceil(work/each-1e-9), math.MaxInt32)))
}

// up allows one step: at most twice of what runs.
func (p *policy) up(d *Decision) {
	step := max(1, 2*d.Seen.Running, d.Seen.Count, p.cfg.Min)
	if d.Count <= step {
		return
	}
	switch {
	case d.Seen.Placed < d.Seen.Count:
		d.limit(step, "Nomad has placed %d of %d: there is no room for more, or not yet", d.Seen.Placed, d.Seen.Count)
	case d.Seen.Running < d.Seen.Count:
		d.limit(step, "%d of %d run yet; a step is at most twice of what runs", d.Seen.Running, d.Seen.Count)
	default:
		d.limit(step, "a step is at most twice of the %d that run", d.Seen.Running)
	}
}

// down allows as few as were enough during the whole cooldown.
func (p *policy) down(now clock.Instant, d *Decision) {
	before := d.Seen.Count
	if before > p.cfg.Max {
		before = p.cfg.Max // somebody has set more than may be
	}
	peak := d.Count
	for _, n := range p.window {
		peak = max(peak, n.count)
	}
	if watched := now.Sub(p.since); watched < p.cfg.Cooldown {
		peak = before
	}
	if peak = min(peak, before); peak > d.Count {
		d.limit(peak, "a step down waits until less was enough for %s", p.cfg.Cooldown)
	}
	if d.Count < before && d.ServiceS > p.cfg.Drain.Seconds() {
		// Nomad stops the allocations with the highest index. An item that does not end within the drain would begin anew elsewhere.
		if busy := min(busyBelow(d.Seen.Loads), before); busy > d.Count {
			d.limit(busy, "worker %d has an item that may take longer than the %s of its drain", busy-1, p.cfg.Drain)
		}
	}
}

// busyBelow is one more than the highest index of a worker that has an item.
func busyBelow(loads []Load) int {
	n := 0
	for _, l := range loads {
		if l.Running > 0 {
			n = max(n, l.Index+1)
		}
	}
	return n
}

// remember keeps the needs of the last cooldown.
func (p *policy) remember(now clock.Instant, count int) {
	keep := p.window[:0]
	for _, n := range p.window {
		if now.Sub(n.at) < p.cfg.Cooldown {
			keep = append(keep, n)
		}
	}
	p.window = append(keep, need{now, count})
}

func (d *Decision) limit(count int, format string, args ...any) {
	d.Count = count
	d.Limits = append(d.Limits, fmt.Sprintf(format, args...))
}

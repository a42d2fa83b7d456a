package gather

import (
	"time"

	"retinue/internal/clock"
)

const (
	ratioWindow = 10 * time.Second
	ratioCalls  = 20 // before a ratio means something
)

// Ejector decides from its outcomes when one replica is left alone, and for how long. It knows neither its shard's other
// replicas nor the time.
type Ejector struct {
	consecutive     int
	calls, failures int
	window          clock.Instant
	times           int // ejections in short succession
	until           clock.Instant
	out             bool
}

// Success notes a good answer. It ends an ejection: the probe went well.
func (e *Ejector) Success(cfg *EjectConfig, now clock.Instant) {
	e.count(now)
	e.consecutive = 0
	if e.out {
		e.out = false
		e.calls, e.failures = 0, 0
	} else if e.times > 0 && now.Sub(e.until) > e.backoff(cfg) {
		e.times = 0 // it has behaved for as long as it was out
	}
}

// Failure notes a failure, a timeout or a lost hedge, and says whether the replica should be ejected.
func (e *Ejector) Failure(cfg *EjectConfig, now clock.Instant) bool {
	e.count(now)
	e.consecutive++
	e.failures++
	if cfg.Consecutive == 0 {
		return false
	}
	if e.out {
		return now >= e.until // the probe failed
	}
	return e.consecutive >= cfg.Consecutive || e.calls >= ratioCalls && float64(e.failures) >= cfg.Ratio*float64(e.calls)
}

func (e *Ejector) count(now clock.Instant) {
	if now.Sub(e.window) >= ratioWindow {
		e.window, e.calls, e.failures = now, 0, 0
	}
	e.calls++
}

// Eject leaves the replica alone until the returned time.
func (e *Ejector) Eject(cfg *EjectConfig, now clock.Instant) clock.Instant {
	e.times++
	e.out = true
	e.until = now.Add(e.backoff(cfg))
	e.calls, e.failures = 0, 0
	return e.until
}

func (e *Ejector) backoff(cfg *EjectConfig) time.Duration {
	d := cfg.Base
	for i := 1; i < e.times && d < cfg.Limit; i++ {
		d *= 2
	}
	return min(d, cfg.Limit)
}

// mayEject says whether one more of n replicas may go when out of them are away: a share of them, one at least, never the last.
func mayEject(cfg *EjectConfig, n, out int) bool {
	return out < max(1, int(cfg.Max*float64(n))) && out+1 < n
}

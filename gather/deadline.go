package gather

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"retinue/internal/clock"
)

// mergeMargin is added to the merge's measured p99, for the answer's way back.
const mergeMargin = 2 * time.Millisecond

// lateDecay is how long it takes until a peak of lateness counts for a third.
const lateDecay = 10 * time.Second

// latest is how late a root believes that it can be, of a request's time: what it was late beyond that when it stood still says nothing
// about the next one.
func latest(total time.Duration) time.Duration { return total / 10 }

// Lateness is by how much a root missed the ends of its own waiting lately: its timers, the processor that others have, the writing of
// the answer. It follows peaks at once and forgets them slowly, as latency does in Finagle's balancer.
type Lateness struct {
	mu   sync.Mutex
	peak time.Duration
	when clock.Instant
}

// Observe notes that one ended so much late, now.
func (l *Lateness) Observe(now clock.Instant, late time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if late > l.at(now) {
		l.peak, l.when = late, now
	}
}

// At says how late the next one may be.
func (l *Lateness) At(now clock.Instant) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at(now)
}

func (l *Lateness) at(now clock.Instant) time.Duration {
	return time.Duration(float64(l.peak) * math.Exp(-float64(now.Sub(l.when))/float64(lateDecay)))
}

// ParseDeadline reads Retinue-Deadline-Ms: the time left in milliseconds, relative, so that no clocks need to agree.
func ParseDeadline(s string) (time.Duration, error) {
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(f > 0 && f <= 1e9) {
		return 0, fmt.Errorf("Retinue-Deadline-Ms %q is not a number of milliseconds above 0", s)
	}
	return time.Duration(f * float64(time.Millisecond)), nil
}

// FormatDeadline writes d as ParseDeadline reads it: whole milliseconds, rounded down, 1 at least.
func FormatDeadline(d time.Duration) string {
	return strconv.FormatInt(max(1, d.Milliseconds()), 10)
}

// Deadline divides the time of one request.
type Deadline struct {
	Total  time.Duration // until the client must have its answer
	Gather time.Duration // until the merge must have the last leaf
	Leaf   time.Duration // that a leaf is told
}

// Divide splits total: the merge gets its reserve, at most half; a leaf is told what is left after one level's way.
func Divide(total, reserve, perLevel time.Duration) Deadline {
	g := total - min(reserve, total/2)
	return Deadline{Total: total, Gather: g, Leaf: max(g-perLevel, g/2)}
}

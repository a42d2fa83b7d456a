package gather

import (
	"math"
	"sync"
	"time"

	"retinue/internal/clock"
)

const (
	perOctave = 16  // buckets per doubling: a quantile is at most 4.5 % too high
	octaves   = 27  // 1 us to 134 s
	enough    = 100 // observations before a quantile says something

	// The window has so many slots, each of a second at least, and of so many observations at least. Fewer would make a high
	// quantile a matter of chance; a longer time would keep it up long after a storm, and hedges away with it.
	slots     = 4
	slotTime  = time.Second
	slotCount = 300
)

// Quantile estimates quantiles of durations, from a histogram of the last of them: those of three to four seconds, or of a longer
// time where that are fewer than a thousand.
type Quantile struct {
	mu     sync.Mutex
	slots  [slots]slot
	newest int
	sum    slot // of all slots
}

// slot is the histogram of a part of the window.
type slot struct {
	counts [perOctave * octaves]uint32
	total  int
	began  clock.Instant
}

func bucketOf(d time.Duration) int {
	us := float64(d) / float64(time.Microsecond)
	if us <= 1 {
		return 0
	}
	return min(int(math.Log2(us)*perOctave), perOctave*octaves-1)
}

// Observe adds durations that ended now.
func (q *Quantile) Observe(now clock.Instant, ds ...time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := &q.slots[q.newest]
	switch {
	case s.total == 0:
		s.began = now
	case s.total >= slotCount && now.Sub(s.began) >= slotTime:
		s = q.turn(now)
	}
	for _, d := range ds {
		b := bucketOf(d)
		s.counts[b]++
		q.sum.counts[b]++
	}
	s.total += len(ds)
	q.sum.total += len(ds)
}

// turn forgets the oldest slot, and begins anew in its place.
func (q *Quantile) turn(now clock.Instant) *slot {
	q.newest = (q.newest + 1) % slots
	oldest := &q.slots[q.newest]
	for i, n := range oldest.counts {
		q.sum.counts[i] -= n
	}
	q.sum.total -= oldest.total
	*oldest = slot{began: now}
	return oldest
}

// At returns the quantile p; false until there have been enough observations.
func (q *Quantile) At(p float64) (time.Duration, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sum.total < enough {
		return 0, false
	}
	left := float64(q.sum.total) * (1 - p) // from above: quantiles of interest are high
	for i := len(q.sum.counts) - 1; i > 0; i-- {
		if left -= float64(q.sum.counts[i]); left < 0 {
			return time.Duration(math.Exp2(float64(i+1)/perOctave) * float64(time.Microsecond)), true
		}
	}
	return time.Microsecond, true
}

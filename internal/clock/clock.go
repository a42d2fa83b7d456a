// Package clock gives the one clock that leases are measured with: the boot
// clock of the kernel (CLOCK_BOOTTIME). It never jumps when somebody sets the
// time of day, it goes on while the machine sleeps (Go's own monotonic clock
// does not), and every process on the same kernel reads the same value, so a
// deadline can be handed to another process as a number.
//
// What it cannot see: a virtual machine that is suspended or restored from a
// snapshot. Only a fencing token protects against that.
package clock

import (
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Instant is a point in time: nanoseconds since the machine booted.
type Instant int64

// Never is later than every instant a clock shows.
const Never Instant = math.MaxInt64

// Add returns the instant d later; Never stays Never.
func (i Instant) Add(d time.Duration) Instant {
	if i == Never || d > 0 && i > Never-Instant(d) {
		return Never
	}
	return i + Instant(d)
}

// Sub returns how long i is after u.
func (i Instant) Sub(u Instant) time.Duration { return time.Duration(i - u) }

// Min returns the earlier of two instants.
func Min(a, b Instant) Instant {
	if a < b {
		return a
	}
	return b
}

// Clock tells the time. Tests use a clock of their own.
type Clock interface {
	Now() Instant
}

type boot struct{}

// Boot returns the boot clock of this machine.
func Boot() Clock { return boot{} }

func (boot) Now() Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// The call fails only on a kernel older than 2.6.39, where nothing of this project runs.
		panic("clock: CLOCK_BOOTTIME: " + err.Error())
	}
	return Instant(ts.Nano())
}

// recent is the boot clock for those who ask it ten times for each item of a queue: a question to the kernel is a system call, which
// Go's own clock needs none for. The kernel is asked again once a millisecond has passed.
type recent struct {
	start time.Time
	last  atomic.Pointer[reading]
}

type reading struct {
	at   time.Duration // since the start, by Go's clock
	boot Instant
}

// Recent returns a boot clock that may miss a sleep of the machine for a millisecond after its end. It is as if the sleep had begun
// right after the question, which nobody can rule out with any clock.
func Recent() Clock { return &recent{start: time.Now()} }

func (r *recent) Now() Instant {
	at := time.Since(r.start)
	if last := r.last.Load(); last != nil && at >= last.at && at-last.at < time.Millisecond {
		return last.boot.Add(at - last.at)
	}
	now := boot{}.Now()
	if time.Since(r.start)-at < exact { // otherwise others ran between the two questions, and the answers are of different times
		r.last.Store(&reading{at, now})
	}
	return now
}

// exact is how far a Recent clock may be from the kernel's.
const exact = 20 * time.Microsecond

// Bubble returns a clock that follows time.Now from the moment it is made. Inside a testing/synctest bubble that is the
// bubble's own time.
func Bubble() Clock {
	return bubble{start: time.Now()}
}

type bubble struct{ start time.Time }

func (b bubble) Now() Instant { return Instant(time.Since(b.start)) + Instant(time.Hour) }

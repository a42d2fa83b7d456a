//go:build !linux

package electorclient

import "time"

var started = time.Now()

// bootTime is Go's monotonic clock, which may stop while the machine sleeps: good enough to develop with. Electors run on Linux.
func bootTime() time.Duration { return time.Since(started) }

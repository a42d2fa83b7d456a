package command

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// smallHeap is what a heap may have before Go's default holds again: twice of what lives.
const smallHeap = 16 << 20

// growHeap lets a small heap grow to five times of what lives. Go collects one of 4 MiB by default, which thousands of items a second fill every
// few milliseconds: a sixth of a coordinator's processor time. GOGC, where it is set, counts more.
func growHeap(getenv func(string) string) {
	if getenv("GOGC") == "" {
		adjustHeap(100)
	}
}

// adjustHeap sets what is right for what lives now, and does so again after each collection.
func adjustHeap(before int) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	percent := heapPercent(live[0].Value.Uint64())
	if percent != before {
		debug.SetGCPercent(percent)
	}
	next := &collected{percent}
	runtime.SetFinalizer(next, func(c *collected) { adjustHeap(c.percent) })
}

// collected becomes garbage at once, so that its finalizer runs after the next collection.
type collected struct{ percent int }

// heapPercent is how much may be allocated until the next collection, in percent of what lives.
func heapPercent(live uint64) int {
	if live >= smallHeap/2 {
		return 100
	}
	return int(min(400, (smallHeap-live)*100/max(1, live)))
}

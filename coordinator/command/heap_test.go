package command

import (
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
)

// The ballast counts for the garbage collector, and takes no memory.
func TestGrowHeap(t *testing.T) {
	goal := func() int64 {
		runtime.GC()
		s := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64())
	}
	resident := func() int64 {
		data, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Fatal(err)
		}
		pages, err := strconv.ParseInt(strings.Fields(string(data))[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return pages * int64(os.Getpagesize())
	}
	before, was := goal(), resident()
	growHeap()
	defer func() { ballast = nil }()
	if grown := goal() - before; grown < int64(len(ballast)) {
		t.Errorf("the heap may be %d KiB larger, with a ballast of %d KiB", grown>>10, len(ballast)>>10)
	}
	if took := resident() - was; took > int64(len(ballast))/2 {
		t.Errorf("%d KiB more are resident", took>>10)
	}
}

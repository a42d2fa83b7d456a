package command

import (
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
)

// The ballast counts for the garbage collector, and takes no memory: in a process that begins, as a coordinator does.
func TestGrowHeap(t *testing.T) {
	if os.Getenv("TEST_GROW_HEAP") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGrowHeap$")
		cmd.Env = append(os.Environ(), "TEST_GROW_HEAP=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
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
	was := resident()
	growHeap()
	if took := resident() - was; took > int64(len(ballast))/2 {
		t.Errorf("%d KiB more are resident", took>>10)
	}
	with := goal()
	size := int64(len(ballast))
	ballast = nil
	if without := goal(); with-without < size {
		t.Errorf("with a ballast of %d KiB the heap may have %d KiB, and %d without", size>>10, with>>10, without>>10)
	}
}

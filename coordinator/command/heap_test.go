package command

import (
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestHeapPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 400, 1 << 20: 400, 3 << 20: 400, 4 << 20: 300, 6 << 20: 166, 8 << 20: 100, 1 << 30: 100} {
		if got := heapPercent(live); got != want {
			t.Errorf("%d MiB live: %d %%, want %d", live>>20, got, want)
		}
	}
}

// A small heap has room, a large one what Go gives it, and GOGC counts more. In a process of its own: the setting is the process's.
func TestGrowHeap(t *testing.T) {
	if os.Getenv("TEST_GROW_HEAP") == "" {
		for _, gogc := range []string{"", "50"} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestGrowHeap$", "-test.v")
			cmd.Env = append(os.Environ(), "TEST_GROW_HEAP=1", "GOGC="+gogc)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("GOGC=%q: %v\n%s", gogc, err, out)
			}
		}
		return
	}
	growHeap(os.Getenv)
	percent := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	expect := func(what string, want uint64) {
		t.Helper()
		if os.Getenv("GOGC") != "" {
			want = 50
		}
		for range 100 {
			runtime.GC()
			if percent() == want {
				return
			}
			time.Sleep(10 * time.Millisecond) // finalizers have a goroutine of their own
		}
		t.Errorf("%s: %d %%, want %d", what, percent(), want)
	}
	expect("a small heap", 400)
	large := make([]byte, 32<<20)
	expect("a large heap", 100)
	runtime.KeepAlive(large)
	expect("small again", 400)
}

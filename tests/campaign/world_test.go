package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"retinue/tests/harness"
)

// Each run of a process has a number of its own, whatever process id the system gives it.
func TestRuns(t *testing.T) {
	p := newProc(t, harness.Spec{Name: "counted", Path: "/bin/sh", Args: []string{"-c", "echo run $" + runEnv + "; exec sleep 60"}},
		func(name, tail string) { t.Errorf("%s ended by itself: %s", name, tail) })
	for n := 1; n <= 3; n++ {
		if p.run() != n {
			t.Fatalf("run %d, want %d", p.run(), n)
		}
		harness.Eventually(t, 10*time.Second, "the process has said its number", func(context.Context) error {
			if !strings.Contains(p.Log(), fmt.Sprintf("run %d\n", n)) {
				return fmt.Errorf("it has said %q", p.Log())
			}
			return nil
		})
		p.kill()
		if n < 3 {
			p.start() // at once: the end of the last run is still expected
		}
	}
}

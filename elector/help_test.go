package elector

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// lockedBuffer takes a log from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await polls until cond holds, and fails the test when it does not within 30 seconds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lateness measures, until the test ends, how late this machine wakes those who sleep. It returns a function that tells the worst so far.
func lateness(t *testing.T) func() time.Duration {
	var worst atomic.Int64
	ctx := t.Context()
	go func() {
		for slept := time.Now(); ctx.Err() == nil; slept = time.Now() {
			time.Sleep(time.Millisecond)
			worst.Store(max(worst.Load(), int64(time.Since(slept)-time.Millisecond)))
		}
	}()
	return func() time.Duration { return time.Duration(worst.Load()) }
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// Package harness runs the outside world of an end-to-end test: hosts with
// their own network, Consul and Nomad agents, electors, applications, a
// browser. Each is a Go type that can be run, killed, paused, cut off from the
// network and cleaned up.
//
// It promises three things. Nothing is left behind: not when a test fails, not
// when it panics, not when the test binary is killed (a janitor process
// outlives it, and the next run sweeps what even that one missed). What goes
// wrong is seen: the log tails of every process a failed test used are in its
// output. What could not be tried has a name: Need skips by name, and fails
// instead where the machine promised to have the thing.
//
// A test package that uses it has one line of set-up:
//
//	func TestMain(m *testing.M) { harness.Main(m) }
package harness

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

// T is what the harness asks of a test. *testing.T has it, and so has the
// package-wide scope of Share, which outlives the test that came first.
type T interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	Failed() bool
}

// Main runs a package's tests. It ends the process.
func Main(m *testing.M) {
	if dir := os.Getenv(janitorEnv); dir != "" {
		os.Exit(runJanitor(dir))
	}
	// What the tests run is not part of this binary: by reading the hash of it
	// here, `go test` knows that a result it has kept is of other programs.
	_ = os.Getenv("RETINUE_TEST_INPUTS")
	code := m.Run()
	closeShared()
	closeRun()
	os.Exit(code)
}

// Eventually tries until check succeeds, and fails the test with its last
// error after the timeout.
func Eventually(t T, timeout time.Duration, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		// The error that the deadline itself caused says less than the one before it.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, timeout, last)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// Share builds one thing for all tests of a package, at first use. It is torn
// down by Main after the last test.
func Share[V any](build func(t T) V) *Shared[V] {
	return &Shared[V]{build: build}
}

// Shared is a thing that Share builds. Declare it as a package variable.
type Shared[V any] struct {
	build func(t T) V
	once  sync.Once
	scope *scope
	value V
	err   error
}

// Get returns the thing, built by the first caller. When t fails, the logs of
// the shared processes are added to its output.
func (s *Shared[V]) Get(t T) V {
	t.Helper()
	s.once.Do(func() {
		s.scope = &scope{name: "shared"}
		addShared(s.scope)
		defer func() {
			if r := recover(); r != nil {
				failure, ok := r.(scopeFailure)
				if !ok {
					panic(r)
				}
				s.err = failure
			}
		}()
		s.value = s.build(s.scope)
	})
	logs := s.scope.takeLogs
	t.Cleanup(func() {
		if t.Failed() {
			for _, tail := range logs() {
				t.Logf("%s", tail)
			}
		}
	})
	if s.err != nil {
		t.Fatalf("shared set-up: %v", s.err)
	}
	return s.value
}

// scope is a T that lives as long as the test binary.
type scope struct {
	name string

	mu       sync.Mutex
	cleanups []func()
	tails    []func() string
	failed   bool
}

type scopeFailure struct{ message string }

func (f scopeFailure) Error() string { return f.message }

func (s *scope) Helper()                         {}
func (s *scope) Name() string                    { return s.name }
func (s *scope) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (s *scope) Errorf(format string, args ...any) {
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
	s.Logf(format, args...)
}

func (s *scope) Fatalf(format string, args ...any) {
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
	panic(scopeFailure{fmt.Sprintf(format, args...)})
}

func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *scope) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *scope) close() {
	s.mu.Lock()
	cleanups := s.cleanups
	s.cleanups = nil
	s.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		cleanups[i]()
	}
}

func (s *scope) addLog(tail func() string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tails = append(s.tails, tail)
}

func (s *scope) takeLogs() []string {
	s.mu.Lock()
	tails := append([]func() string(nil), s.tails...)
	s.mu.Unlock()
	var out []string
	for _, tail := range tails {
		out = append(out, tail())
	}
	return out
}

// attachLog arranges that tail is part of the output when t fails.
func attachLog(t T, tail func() string) {
	if s, ok := t.(*scope); ok {
		s.addLog(tail)
		return
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", tail())
		}
	})
}

// shared is every package-wide scope of this test binary, for Main to close.
// It is process-wide because TestMain has nothing else to hand it through.
var shared struct {
	sync.Mutex
	scopes []*scope
}

func addShared(s *scope) {
	shared.Lock()
	defer shared.Unlock()
	shared.scopes = append(shared.scopes, s)
}

func closeShared() {
	shared.Lock()
	scopes := shared.scopes
	shared.scopes = nil
	shared.Unlock()
	for _, s := range scopes {
		s.close()
	}
}

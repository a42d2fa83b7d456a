package main

import (
	"fmt"
	"io"
	"sync"
)

// scope is what the harness wants of a test, for a program: a failure of the world (not of the elector) ends the campaign.
type scope struct {
	out io.Writer

	mu       sync.Mutex
	cleanups []func()
	failed   bool
}

// worldBroken is the panic of Fatalf. The lanes and the campaign turn it into an error.
type worldBroken struct{ message string }

func (e worldBroken) Error() string { return e.message }

func (s *scope) Helper()      {}
func (s *scope) Name() string { return "campaign" }

func (s *scope) Logf(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

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
	panic(worldBroken{fmt.Sprintf(format, args...)})
}

func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// Failed is false so that the harness does not print the logs of a hundred processes: the report says where they are.
func (s *scope) Failed() bool { return false }

func (s *scope) close() {
	for {
		s.mu.Lock()
		if len(s.cleanups) == 0 {
			s.mu.Unlock()
			return
		}
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		s.mu.Unlock()
		last()
	}
}

// guard runs f and returns what broke the world, if anything did.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			broken, ok := r.(worldBroken)
			if !ok {
				panic(r)
			}
			err = broken
		}
	}()
	return f()
}

package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

// All holds with two windows too, which are open here as soon as anything passes.
func TestContractAbreast(t *testing.T) {
	t.Parallel()
	sourcetest.Run(t, harness(t, 30*time.Minute, 2*time.Second, func(c *Config) { c.Abreast, c.fast = true, 0.01 }))
}

// The second window is open while messages pass fast, and only then; each message comes once over both.
func TestWindows(t *testing.T) {
	t.Parallel()
	h := harness(t, 30*time.Minute, 2*time.Second, func(c *Config) { c.fast = 5 })
	for _, abreast := range []bool{true, false} {
		t.Run(fmt.Sprintf("abreast=%v", abreast), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			src, err := h.Open(ctx, "", source.Options{Queue: fmt.Sprintf("windows-%v", abreast), Lease: time.Minute, Prefetch: 16, Abreast: abreast})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close(context.Background())
			s := src.(*Source)
			published, times := 0, map[string]int{}
			publish := func() {
				outs := make([]source.Out, 50)
				for i := range outs {
					outs[i].ID = fmt.Sprint(published)
					published++
				}
				if err := s.Publish(ctx, outs...); err != nil {
					t.Fatal(err)
				}
			}
			receive := func(max int) {
				ms, err := s.Receive(ctx, max)
				if err == nil {
					err = s.Ack(ctx, ms...)
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range ms {
					times[m.ID]++
				}
			}
			most, end := 1, time.Now().Add(4*time.Second)
			for time.Now().Before(end) && (most < 2 || !abreast) {
				publish()
				for len(times) < published {
					receive(16)
				}
				most = max(most, s.current().windows())
			}
			if want := map[bool]int{true: 2, false: 1}[abreast]; most != want {
				t.Errorf("%d windows are open while messages pass fast, want %d", most, want)
			}
			publish()
			for len(times) < published && s.current().windows() > 1 {
				receive(1)
				time.Sleep(100 * time.Millisecond)
			}
			if n := s.current().windows(); n != 1 {
				t.Errorf("%d windows are open while messages pass slowly", n)
			}
			for len(times) < published {
				receive(16)
			}
			for id, n := range times {
				if n != 1 {
					t.Errorf("%s came %d times", id, n)
				}
			}
		})
	}
}

// Acknowledgements ask the broker whether it has worked them off, while consumers come and go: each has its own answer.
func TestQuestionsSideBySide(t *testing.T) {
	t.Parallel()
	h := harness(t, 30*time.Minute, 2*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	src, err := h.Open(ctx, "", source.Options{Queue: "questions", Lease: time.Minute, Prefetch: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close(context.Background())
	se := src.(*Source).current()
	until := time.Now().Add(2 * time.Second)
	for range 4 * runtime.NumCPU() { // who has sent a question does not wait for its answer at once
		go func() {
			for time.Now().Before(until) {
			}
		}()
	}
	asked := make(chan error)
	for range 4 {
		go func() {
			var err error
			for err == nil && time.Now().Before(until) {
				err = se.window()
			}
			asked <- err
		}()
	}
	for err == nil && time.Now().Before(until) {
		err = errors.Join(se.consume(), se.rest())
	}
	for range 4 {
		err = errors.Join(err, <-asked)
	}
	if err != nil || !se.alive() {
		t.Errorf("the channel lives: %v; %v", se.alive(), err)
	}
}

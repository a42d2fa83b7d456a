package redis

import (
	"context"
	"fmt"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// Messages that are not wanted abreast come in the order of their publication, however they come: one by one, while answers are on their way.
func TestInTurn(t *testing.T) {
	t.Parallel()
	_, addr := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Open(ctx, Config{URL: at(addr, "p"), Options: source.Options{Queue: "q", Lease: time.Minute, Prefetch: 16}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	const n = 3000
	published := make(chan error, 1)
	go func() {
		for i := range n {
			if err := s.Publish(ctx, source.Out{ID: fmt.Sprint(i)}); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	for next := 0; next < n; {
		ms, err := s.Receive(ctx, 1+next%16)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms {
			if m.ID != fmt.Sprint(next) {
				t.Fatalf("%s came, want %d", m.ID, next)
			}
			next++
		}
		if err := s.Ack(ctx, ms...); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}
}

// What arrives just before it is waited for is not waited for.
func TestWaitSeesWhatArrived(t *testing.T) {
	t.Parallel()
	r := newReader(&Source{cfg: Config{Options: source.Options{Classes: 1}}})
	r.add(&source.Message{ID: "1"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.wait(ctx, 8); err != nil {
		t.Error(err)
	}
}

package memory

import (
	"context"
	"errors"
	"testing"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

func TestContract(t *testing.T) {
	b := New()
	sourcetest.Run(t, sourcetest.Harness{
		Open: func(_ context.Context, _ string, o source.Options) (source.Source, error) { return b.Open(o) },
	})
}

// A fault before the operation leaves it undone; one after it only loses the answer.
func TestFaults(t *testing.T) {
	b := New()
	s, err := b.Open(source.Options{Queue: "q"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	broken := errors.New("broken")
	if err := s.Publish(ctx, source.Out{ID: "a"}, source.Out{ID: "b"}); err != nil {
		t.Fatal(err)
	}
	ms, err := s.Receive(ctx, 2)
	if err != nil || len(ms) != 2 {
		t.Fatalf("%v, %v", ms, err)
	}
	b.Fault(func(op Op, queue, id string) (bool, error) {
		if op == Ack && queue == "q" {
			return id == "a", broken
		}
		return false, nil
	})
	err = s.Ack(ctx, ms...)
	if !errors.Is(source.ErrorOf(err, ms[0]), broken) || !errors.Is(source.ErrorOf(err, ms[1]), broken) {
		t.Errorf("ack: %v", err)
	}
	if left := b.Items("q"); len(left) != 1 || left[0] != "a" {
		t.Errorf("left in the queue: %v", left)
	}
	b.Fault(nil)
	b.Stop()
	if err := s.Ack(ctx, ms[0]); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("ack at a broker that is down: %v", err)
	}
	if _, err := s.Receive(ctx, 1); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("receive from a broker that is down: %v", err)
	}
	b.Start()
	s.Expire()
	if err := s.Extend(ctx, ms[0]); !errors.Is(err, source.ErrLost) {
		t.Errorf("extend after the lease ended: %v", err)
	}
}

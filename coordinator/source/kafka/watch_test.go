package kafka

import (
	"context"
	"errors"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// A watcher that reads late overlooks nothing that was confirmed in time.
func TestLateWatcher(t *testing.T) {
	t.Parallel()
	addr, _ := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const lease = 2 * time.Second
	s, err := Open(ctx, Config{URL: at(addr, "p"), Partitions: 1, Session: session, Groups: groupsClassic, Options: source.Options{Queue: "q", Lease: lease}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	if err := s.Publish(ctx, source.Out{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	ms, err := s.Receive(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	w := s.watch
	s.mu.Unlock()
	flying := func() (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, b := range w.boards {
			n, _ = b.counts()
		}
		return n
	}
	for flying() == 0 && ctx.Err() == nil {
		if err := s.Extend(ctx, ms...); err != nil { // so that the lease is young when the watcher has it
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.client.PauseFetchTopics(s.marksTopic())
	if err := s.Ack(ctx, ms...); err != nil {
		t.Fatal(err)
	}
	if flying() != 1 {
		t.Skip("the watcher read the acknowledgement before it was stopped")
	}
	time.AfterFunc(lease+lease/2, func() { w.client.ResumeFetchTopics(s.marksTopic()) })
	wait, stop := context.WithTimeout(ctx, 2*lease)
	defer stop()
	if again, err := s.Receive(wait, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("received %v, %v", again, err)
	}
	for flying() != 0 && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	if flying() != 0 {
		t.Error("the watcher never read on")
	}
}

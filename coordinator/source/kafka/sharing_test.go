package kafka

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"retinue/coordinator/source"
)

// numbered are n items.
func numbered(n int) (outs []source.Out) {
	for i := range n {
		outs = append(outs, source.Out{ID: fmt.Sprint(i)})
	}
	return outs
}

func received(ctx context.Context, t *testing.T, s *Source, n int) (all []*source.Message) {
	t.Helper()
	for len(all) < n {
		ms, err := s.Receive(ctx, n-len(all))
		if err != nil {
			t.Fatalf("%d of %d: %v", len(all), n, err)
		}
		all = append(all, ms...)
	}
	return all
}

// A worker that is never ready does not use up the deliveries that the broker allows.
func TestNoDeliveryLimit(t *testing.T) {
	t.Parallel()
	_, url := cluster(t)
	s, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Publish(ctx, numbered(1)...); err != nil {
		t.Fatal(err)
	}
	const limit = 5 // of the broker
	for i := 1; i <= 4*limit; i++ {
		m := received(ctx, t, s, 1)[0]
		if m.ID != "0" || m.Deliveries != i {
			t.Fatalf("delivery %d is %s and says %d", i, m.ID, m.Deliveries)
		}
		delay := time.Duration(0)
		if i == 2*limit {
			delay = time.Millisecond // which begins to count anew in its own way
		}
		if err := s.Release(ctx, delay, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Ack(ctx, received(ctx, t, s, 1)...); err != nil {
		t.Fatal(err)
	}
}

// What one consumer holds stays its own over many locks of the broker, and keeps nothing from others.
func TestFullHands(t *testing.T) {
	t.Parallel()
	_, url := cluster(t, kfake.NumBrokers(3))
	a, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	b, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Publish(ctx, numbered(3)...); err != nil {
		t.Fatal(err)
	}
	mine := received(ctx, t, a, 3)
	if err := b.Publish(ctx, numbered(30)...); err != nil {
		t.Fatal(err)
	}
	// From all partitions, those that the group has assigned to the other too.
	if err := b.Ack(ctx, received(ctx, t, b, 30)...); err != nil {
		t.Fatal(err)
	}
	wait, stop := context.WithTimeout(ctx, 3*2*session)
	defer stop()
	if ms, err := b.Receive(wait, 3); err == nil {
		t.Errorf("%s came again, delivery %d", ms[0].ID, ms[0].Deliveries)
	}
	if err := a.Ack(ctx, mine...); err != nil {
		t.Error(err)
	}
}

// One message that is lost takes none of those along that are ended with it.
func TestOneOfManyIsLost(t *testing.T) {
	t.Parallel()
	_, url := cluster(t)
	s, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Publish(ctx, numbered(40)...); err != nil {
		t.Fatal(err)
	}
	ms := received(ctx, t, s, 40)
	// The broker is told behind the link's back.
	lost, _ := s.held.Get(ms[17])
	l := lost.grip.link
	o := newOp(release, lost.at)
	l.submit(o)
	if err := o.wait(ctx); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.held[lost.at] = lost.grip
	l.mu.Unlock()
	err = s.Ack(ctx, ms...)
	for i, m := range ms {
		if failed := source.ErrorOf(err, m); (failed != nil) != (i == 17) {
			t.Errorf("%d: %v", i, failed)
		}
	}
	if m := received(ctx, t, s, 1)[0]; m.ID != ms[17].ID || m.Deliveries != 2 {
		t.Errorf("%s came, delivery %d", m.ID, m.Deliveries)
	}
}

// A partition that moves to another broker takes its messages along.
func TestLeaderMoves(t *testing.T) {
	t.Parallel()
	c, url := cluster(t, kfake.NumBrokers(3))
	s, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const n = 60
	if err := s.Publish(ctx, numbered(n)...); err != nil {
		t.Fatal(err)
	}
	done := map[string]bool{}
	for round := 0; len(done) < n; round++ {
		ms, err := s.Receive(ctx, 7)
		if err != nil {
			t.Fatalf("%d of %d: %v", len(done), n, err)
		}
		if round < 6 {
			if err := c.MoveTopicPartition(s.topic(0), int32(round%partitions), int32((round+1)%3)); err != nil {
				t.Fatal(err)
			}
		}
		err = s.Ack(ctx, ms...)
		for _, m := range ms {
			if source.ErrorOf(err, m) == nil {
				done[m.ID] = true
			}
		}
	}
}

// What a fetch brings when nobody waits any more goes to who does, long before the lease is over.
func TestUnwantedGoesBack(t *testing.T) {
	t.Parallel()
	_, url := cluster(t)
	a, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	b, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute/2)
	defer cancel()
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	a.Receive(short, 3) // its fetch goes on
	if err := b.Publish(ctx, numbered(3)...); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if ready, _, _ := a.consumer.(*sharing).pools[0].state(); ready == 0 {
		t.Skip("the fetch was over before there was something")
	}
	if err := b.Ack(ctx, received(ctx, t, b, 3)...); err != nil {
		t.Fatal(err)
	}
}

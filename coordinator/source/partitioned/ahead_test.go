package partitioned

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/partition"
	"retinue/coordinator/source"
	"retinue/internal/clock"
)

// asked is a queue that remembers how much was asked of it last.
type asked struct {
	source.Source
	n atomic.Int64
}

func (a *asked) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	a.n.Store(int64(max))
	return a.Source.Receive(ctx, max)
}

// A partition is asked for all that is wanted, not for the part of it that is due to one of several queues: that would be a round trip for each
// message.
func TestAsksForAllThatIsWanted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seat := w.a.seat("a")
	var of [1 + partitions]asked // the queue, and its partitions in the order in which they are opened
	var opened atomic.Int64
	s, err := New(Config{Options: w.options(), Partitions: partitions, Owner: seat, Clock: clock.Boot(), Log: hclog.NewNullLogger(), Open: func(o source.Options) (source.Source, error) {
		src, err := w.broker.Open(o)
		a := &of[opened.Add(1)-1]
		a.Source = src
		return a, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	s.quiet = 50 * time.Millisecond
	for p := range partitions {
		w.a.give(p, seat)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.Receive(ctx, 2*prefetch)
	want := [...]int64{prefetch, prefetch, prefetch, prefetch}
	var got [partitions]int64
	for end := time.Now().Add(10 * time.Second); got != want; time.Sleep(5 * time.Millisecond) {
		for i := range got {
			got[i] = of[1+i].n.Load()
		}
		if time.Now().After(end) {
			t.Fatalf("%d are asked of the partitions, want %d", got, want)
		}
	}
}

// silent is an Owner who must not be asked.
type silent struct {
	Owner
	t *testing.T
}

func (s silent) Held(int) (partition.Claim, bool) {
	s.t.Error("it is asked whether a partition is ours of which nothing is here")
	return partition.Claim{}, true
}

// Whether a partition is ours is asked where something of it is to be handed out: the question is a look at the clock.
func TestAsksNobodyAboutNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.open(nil, nil, nil)
	defer s.Close(context.Background())
	s.cfg.Owner = silent{t: t}
	for n := range partitions {
		s.parts[n] = s.newPart(n, 1)
	}
	if ms, err := s.take(8); len(ms) > 0 || err != nil {
		t.Errorf("there came %s, %v", names(ms), err)
	}
	clear(s.parts)
}

// lone is a queue whose Receive takes a moment to end, and that knows whether Idle came meanwhile: one of them at a time may be called.
type lone struct {
	source.Source
	busy atomic.Bool
	met  atomic.Int64
}

func (l *lone) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	if !l.busy.CompareAndSwap(false, true) {
		l.met.Add(1)
	}
	defer l.busy.Store(false)
	ms, err := l.Source.Receive(ctx, max)
	time.Sleep(5 * time.Millisecond)
	return ms, err
}

func (l *lone) Idle(ctx context.Context) error {
	if l.busy.Load() {
		l.met.Add(1)
	}
	return l.Source.Idle(ctx)
}

// The queue of what has no key is not asked to rest while it is asked for messages.
func TestIdleWaitsForReceive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var base *lone
	s, err := New(Config{Options: w.options(), Partitions: partitions, Owner: w.a.seat("a"), Clock: clock.Boot(), Log: hclog.NewNullLogger(), Open: func(o source.Options) (source.Source, error) {
		src, err := w.broker.Open(o)
		if base == nil {
			base = &lone{Source: src}
			return base, err
		}
		return src, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		_, _ = s.Receive(ctx, 8)
		cancel()
		if err := s.Idle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := base.met.Load(); n > 0 {
		t.Errorf("%d calls met", n)
	}
}

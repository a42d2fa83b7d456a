package partitioned

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
)

// one is a coordinator that a test moves by hand.
type one struct {
	*Source
	t    *testing.T
	w    *world
	seat *seat
}

// single makes a coordinator, and what cuts it off as kill -9 does.
func (w *world) single(name string, back func(int, []*source.Message)) (*one, func()) {
	var opened []*memory.Source
	seat := w.a.seat(name)
	s := w.open(seat, back, func(src *memory.Source) {
		w.mu.Lock()
		defer w.mu.Unlock()
		opened = append(opened, src)
	})
	w.t.Cleanup(func() { s.Close(context.Background()) })
	return &one{s, w.t, w, seat}, func() {
		seat.dead.Store(true)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, src := range opened {
			src.Cut()
		}
	}
}

// give has a coordinator have all partitions, as soon as the others have given them back.
func (w *world) give(to *one) {
	for p := range partitions {
		w.a.give(p, to.seat)
	}
}

// rob has it have them at once.
func (w *world) rob(to *one) {
	for p := range partitions {
		w.a.rob(p, to.seat)
	}
}

// put publishes items of one key.
func (o *one) put(from, to int) {
	o.t.Helper()
	for i := from; i <= to; i++ {
		if err := o.Publish(o.t.Context(), source.Out{ID: fmt.Sprint(i), Key: "k", Body: fmt.Append(nil, i)}); err != nil {
			o.t.Fatal(err)
		}
	}
}

func (o *one) take(n int) (ms []*source.Message) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 20*time.Second)
	defer cancel()
	for len(ms) < n {
		more, err := o.Receive(ctx, n-len(ms))
		if err != nil {
			o.t.Fatal(err)
		}
		ms = append(ms, more...)
	}
	return ms
}

// nothing wants nothing to come for a while.
func (o *one) nothing(d time.Duration) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), d)
	defer cancel()
	if ms, err := o.Receive(ctx, 1); len(ms) > 0 || !errors.Is(err, context.DeadlineExceeded) {
		o.t.Errorf("there came %s, %v", names(ms), err)
	}
}

func names(ms []*source.Message) string {
	var ids []string
	for _, m := range ms {
		ids = append(ids, m.ID)
	}
	return strings.Join(ids, " ")
}

func (o *one) expect(n int, want string) []*source.Message {
	o.t.Helper()
	ms := o.take(n)
	if got := names(ms); got != want {
		o.t.Errorf("they come as %s, want %s", got, want)
	}
	return ms
}

// Of a coordinator that died its leases run on, and nothing behind what it had goes before.
func TestAfterADeath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, kill := w.single("a", nil)
	b, _ := w.single("b", nil)
	w.give(a)
	a.put(1, 2)
	a.expect(2, "1 2")
	kill()
	b.put(3, 4)
	w.rob(b)
	b.expect(4, "1 2 3 4")
}

// A partition goes to another coordinator when nothing of it is in hand any more, and what has not begun is asked back.
func TestHandOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	asked := make(chan []*source.Message, partitions)
	a, _ := w.single("a", func(_ int, ms []*source.Message) { asked <- ms })
	b, _ := w.single("b", nil)
	w.give(a)
	a.put(1, 4)
	ms := a.expect(3, "1 2 3")
	w.give(b)
	for range partitions {
		if back := <-asked; len(back) > 0 {
			if len(back) != 3 {
				t.Errorf("asked back: %s", names(back))
			}
		}
	}
	if err := a.Release(t.Context(), 0, ms[2], ms[1]); err != nil {
		t.Fatal(err)
	}
	b.nothing(w.lease / 2)
	if err := a.Extend(t.Context(), ms[0]); err != nil {
		t.Fatalf("what runs on is not ours: %v", err)
	}
	if err := a.Ack(t.Context(), ms[0]); err != nil {
		t.Fatal(err)
	}
	b.expect(3, "2 3 4")
}

// Who has lost a partition hands out nothing of it and keeps nothing of it.
func TestRobbed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, _ := w.single("a", nil)
	b, _ := w.single("b", nil)
	w.give(a)
	a.put(1, 4)
	ms := a.expect(1, "1")
	time.Sleep(w.lease / 3) // more of it may have come here
	w.rob(b)
	if err := a.Extend(t.Context(), ms[0]); !errors.Is(err, source.ErrLost) {
		t.Errorf("a lease goes on in a partition that is another one's: %v", err)
	}
	a.nothing(w.lease / 2)
	b.expect(4, "1 2 3 4")
}

// Nobody has to be told first that a partition is not his any more: its hold is looked at each time.
func TestHoldIsLookedAt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.lease = time.Minute // it looks by itself every half second
	s, _ := w.single("a", nil)
	s.put(1, 3)
	w.give(s)
	ms := s.expect(1, "1")
	w.a.mu.Lock()
	clear(w.a.claims)
	w.a.mu.Unlock()
	if more, err := s.Source.take(3); len(more) > 0 || err != nil {
		t.Errorf("there came %s, %v", names(more), err)
	}
	if s.Ours(ms[0]) {
		t.Error("a message is ours in a partition that is not")
	}
	if err := s.Extend(t.Context(), ms[0]); !errors.Is(err, source.ErrLost) {
		t.Errorf("its lease is extended: %v", err)
	}
}

// With one lease everything is lost: it comes again, and before what is behind it.
func TestOneLeaseLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.single("a", nil)
	w.give(s)
	s.put(1, 3)
	ms := s.expect(3, "1 2 3")
	s.put(4, 4)
	w.broker.Fault(func(op memory.Op, _, id string) (bool, error) {
		if op == memory.Extend && id == "1" {
			return true, source.ErrLost
		}
		return false, nil
	})
	if err := s.Extend(t.Context(), ms...); !errors.Is(source.ErrorOf(err, ms[0]), source.ErrLost) {
		t.Fatalf("extend: %v", err)
	}
	w.broker.Fault(nil)
	if err := s.Extend(t.Context(), ms[1:]...); !errors.Is(source.ErrorOf(err, ms[1]), source.ErrLost) || !errors.Is(source.ErrorOf(err, ms[2]), source.ErrLost) {
		t.Errorf("extend the others: %v", err)
	}
	s.expect(4, "1 2 3 4")
}

// A broker that was away may have sent something that did not arrive.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.single("a", nil)
	w.give(s)
	s.put(1, 4)
	ms := s.expect(2, "1 2")
	w.broker.Stop()
	time.Sleep(w.lease / 4)
	w.broker.Start()
	if err := s.Ack(t.Context(), ms[0]); err != nil {
		t.Errorf("what is in hand goes on: %v", err)
	}
	if err := s.Ack(t.Context(), ms[1]); err != nil {
		t.Errorf("what is in hand goes on: %v", err)
	}
	s.expect(2, "3 4")
}

// TestTakenBack: what is given back without having been tried comes again in its place, whatever the order in which it went.
func TestTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.single("me", nil)
	w.give(s)
	s.put(1, 6)
	ms := s.take(5)
	if err := s.Ack(t.Context(), ms[1]); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{4, 0, 3, 2} {
		if err := s.Release(t.Context(), 0, ms[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Ack(t.Context(), ms[0]); !errors.Is(err, source.ErrLost) {
		t.Errorf("an acknowledgement of what was given back: %v", err)
	}
	var ids []string
	for _, m := range s.take(5) {
		ids = append(ids, m.ID)
		if again := m.ID != "6"; (m.Deliveries > 1) != again {
			t.Errorf("%s: delivery %d", m.ID, m.Deliveries)
		}
	}
	if got := strings.Join(ids, " "); got != "1 3 4 5 6" {
		t.Errorf("they come as %s", got)
	}
}

// What a producer that knows of no partitions puts into the queue itself comes to its partition. What has no key stays there, for anyone.
func TestMoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.single("a", nil)
	w.give(s)
	raw, err := w.broker.Open(w.options())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close(context.Background())
	for i := 1; i <= 3; i++ {
		out := source.Out{ID: fmt.Sprint(i), Key: "k", Body: fmt.Append(nil, i), Headers: map[string]string{"mine": "yes"}}
		if err := (plain{raw}).Publish(t.Context(), out, source.Out{ID: fmt.Sprint("any", i)}); err != nil {
			t.Fatal(err)
		}
	}
	var keyed []string
	for _, m := range s.take(6) {
		_, ofPartition := m.Token.(*entry)
		if ofPartition != (m.Key == "k") {
			t.Errorf("%s with the key %q: of a partition: %v", m.ID, m.Key, ofPartition)
		}
		if m.Key == "k" {
			keyed = append(keyed, m.ID)
		}
		if err := s.Ack(t.Context(), m); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(keyed, " "); got != "1 2 3" {
		t.Errorf("they come as %s", got)
	}
	if d, err := s.Depth(t.Context()); err != nil || d.Ready+d.InFlight != 0 {
		t.Errorf("left: %+v, %v", d, err)
	}
}

// The depth is that of all queues.
func TestDepth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.open(nil, nil, nil)
	defer s.Close(context.Background())
	for i := range 20 {
		out := source.Out{ID: fmt.Sprint(i), Key: fmt.Sprint("k", i%5)}
		if i%4 == 0 {
			out.Key = ""
		}
		if i%10 == 0 {
			out.Delay = time.Hour
		}
		if err := s.Publish(t.Context(), out); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := s.Depth(t.Context()); err != nil || d.Ready != 18 || d.Delayed != 2 || d.InFlight != 0 || d.Oldest <= 0 {
		t.Errorf("%+v, %v", d, err)
	}
	if err := s.Publish(t.Context(), source.Out{ID: "good", Key: "k"}, source.Out{ID: "not good"}); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("an id that is none: %v", err)
	}
	if d, err := s.Depth(t.Context()); err != nil || d.Ready != 18 {
		t.Errorf("after one that was refused: %+v, %v", d, err)
	}
}

// Who wants nothing for a while lets others have the partitions, until it wants something again.
func TestWithdrawal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.single("a", nil)
	w.give(s)
	s.put(1, 1)
	ms := s.expect(1, "1")
	if err := s.Ack(t.Context(), ms...); err != nil {
		t.Fatal(err)
	}
	idle := func() {
		t.Helper()
		if err := s.Idle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	idle()
	s.nothing(s.withdrawal / 4)
	time.Sleep(2 * s.withdrawal)
	if !s.seat.stands.Load() {
		t.Error("it withdrew though it asked for something in between")
	}
	idle()
	time.Sleep(2 * s.withdrawal)
	if s.seat.stands.Load() {
		t.Error("it wants nothing, and stands")
	}
	s.nothing(time.Millisecond)
	if !s.seat.stands.Load() {
		t.Error("it wants something, and does not stand")
	}
}

// unordered is a broker that gives out a queue in any order.
type unordered struct{ source.Source }

func (u unordered) Caps() source.Caps {
	caps := u.Source.Caps()
	caps.Order = false
	return caps
}

func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opened := 0
	for name, c := range map[string]Config{
		"none":      {Partitions: 0},
		"too many":  {Partitions: 65},
		"no order":  {Partitions: 4},
		"bad queue": {Partitions: 4, Options: source.Options{Queue: "no such name"}},
	} {
		if c.Options.Queue == "" {
			c.Options = w.options()
		}
		c.Open = func(o source.Options) (source.Source, error) {
			opened++
			src, err := w.broker.Open(o)
			return unordered{src}, err
		}
		if s, err := New(c); !errors.Is(err, source.ErrConfig) || s != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if opened != 1 {
		t.Errorf("%d queues were opened", opened)
	}
}

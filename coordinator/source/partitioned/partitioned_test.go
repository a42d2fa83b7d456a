package partitioned

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/partition"
	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/coordinator/source/sourcetest"
	"retinue/internal/clock"
)

// arbiter stands for Consul: one owner of each partition at most, as long as it is not told to let two believe that they are for a moment.
type arbiter struct {
	mu     sync.Mutex
	epoch  uint64
	claims map[int]*hold
}

type hold struct {
	partition.Claim
	seat *seat
	next *seat // who shall have it
}

// seat is one coordinator's Owner.
type seat struct {
	a       *arbiter
	name    string
	dead    atomic.Bool
	stands  atomic.Bool
	changed chan struct{}
}

func newArbiter() *arbiter { return &arbiter{claims: map[int]*hold{}} }

func (a *arbiter) seat(name string) *seat {
	s := &seat{a: a, name: name, changed: make(chan struct{})}
	s.stands.Store(true)
	return s
}

func (a *arbiter) tellLocked(seats ...*seat) {
	for _, s := range seats {
		if s != nil {
			close(s.changed)
			s.changed = make(chan struct{})
		}
	}
}

// give lets somebody have a partition: at once if nobody has it, or when who has it gives it back.
func (a *arbiter) give(p int, to *seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.claims[p]
	switch {
	case h == nil:
		a.takeLocked(p, to, true)
	case h.seat == to:
		h.next, h.Leave = nil, false
		a.tellLocked(to)
	default:
		h.next, h.Leave = to, true
		a.tellLocked(h.seat)
	}
}

func (a *arbiter) takeLocked(p int, to *seat, clean bool) {
	a.epoch++
	a.claims[p] = &hold{Claim: partition.Claim{Epoch: a.epoch, Clean: clean, Until: clock.Never}, seat: to}
	a.tellLocked(to)
}

// rob takes a partition from whoever has it, as the end of a session does.
func (a *arbiter) rob(p int, to *seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.claims[p]
	a.takeLocked(p, to, false)
	if was != nil {
		a.tellLocked(was.seat)
	}
}

func (a *arbiter) owner(p int) *seat {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.claims[p]; h != nil {
		return h.seat
	}
	return nil
}

func (s *seat) Held(p int) (partition.Claim, bool) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	h := s.a.claims[p]
	if h == nil || h.seat != s {
		return partition.Claim{}, false
	}
	return h.Claim, true
}

func (s *seat) Changed() <-chan struct{} {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	return s.changed
}

func (s *seat) Give(p int, epoch uint64) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	h := s.a.claims[p]
	if h == nil || h.seat != s || h.Epoch != epoch || s.dead.Load() {
		return
	}
	if delete(s.a.claims, p); h.next != nil {
		s.a.takeLocked(p, h.next, true)
	}
}

func (s *seat) Stand(yes bool) { s.stands.Store(yes) }

// plain is a source of a broker that knows nothing of keys, and gives out again in any order what it gives out again, though before what is new.
type plain struct{ *memory.Source }

func (s plain) Publish(ctx context.Context, outs ...source.Out) error {
	outs = slices.Clone(outs)
	for i := range outs {
		outs[i].Headers, outs[i].Key = map[string]string{"key": outs[i].Key}, ""
	}
	return s.Source.Publish(ctx, outs...)
}

func (s plain) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	ms, err := s.Source.Receive(ctx, max)
	n := 0
	for _, m := range ms {
		m.Key = m.Headers["key"]
	}
	for n < len(ms) && ms[n].Deliveries > 1 {
		n++
	}
	rand.Shuffle(n, func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	return ms, err
}

// world is a queue with coordinators that keep the order of a key as the real one does: one at a time, and no other before it has ended.
type world struct {
	t      *testing.T
	broker *memory.Broker
	a      *arbiter
	lease  time.Duration

	mu     sync.Mutex
	opened map[*worker][]*memory.Source
	done   map[string]int // by key: the number of the last item that has ended
	wrong  []string
	starts int
	twice  int
}

const partitions = 4

func newWorld(t *testing.T) *world {
	return &world{t: t, broker: memory.New(), a: newArbiter(), lease: 300 * time.Millisecond, opened: map[*worker][]*memory.Source{}, done: map[string]int{}}
}

func (w *world) options() source.Options {
	return source.Options{Queue: "q", Lease: w.lease, Prefetch: 8}
}

func (w *world) open(owner Owner, back func(int, []*source.Message), opened func(*memory.Source)) *Source {
	w.t.Helper()
	s, err := New(Config{Options: w.options(), Partitions: partitions, Owner: owner, Back: back, Clock: clock.Boot(), Log: hclog.NewNullLogger(),
		Open: func(o source.Options) (source.Source, error) {
			src, err := w.broker.Open(o)
			if err != nil {
				return nil, err
			}
			if opened != nil {
				opened(src)
			}
			return plain{src}, nil
		}})
	if err != nil {
		w.t.Fatal(err)
	}
	s.quiet, s.withdrawal = 50*time.Millisecond, 100*time.Millisecond
	return s
}

// worker is a coordinator.
type worker struct {
	w      *world
	seat   *seat
	source *Source
	ctx    context.Context
	cancel context.CancelFunc
	over   sync.WaitGroup
	frozen atomic.Bool

	mu    sync.Mutex
	lanes map[string][]*source.Message
	hand  map[*source.Message]bool // that we extend
	begun map[*source.Message]bool
	asked map[*source.Message]bool // to go back, and not yet arrived
}

func (w *world) worker(name string) *worker {
	k := &worker{w: w, seat: w.a.seat(name), lanes: map[string][]*source.Message{}, hand: map[*source.Message]bool{}, begun: map[*source.Message]bool{}, asked: map[*source.Message]bool{}}
	k.ctx, k.cancel = context.WithCancel(w.t.Context())
	k.source = w.open(k.seat, k.back, func(src *memory.Source) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.opened[k] = append(w.opened[k], src)
	})
	k.over.Go(k.receive)
	k.over.Go(k.extend)
	return k
}

func (k *worker) receive() {
	for k.ctx.Err() == nil {
		ms, err := k.source.Receive(k.ctx, 1+rand.IntN(6))
		if err != nil && k.ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		var back []*source.Message
		k.mu.Lock()
		for _, m := range ms {
			if !k.source.Ours(m) {
				continue
			}
			if k.asked[m] {
				back = append(back, m)
				continue
			}
			k.hand[m] = true
			k.lanes[m.Key] = append(k.lanes[m.Key], m)
		}
		clear(k.asked)
		k.mu.Unlock()
		if len(back) > 0 {
			_ = k.source.Release(k.ctx, 0, back...)
		}
		for _, m := range ms {
			k.pump(m.Key)
		}
		for k.count() > 12 && k.ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
}

func (k *worker) count() int { k.mu.Lock(); defer k.mu.Unlock(); return len(k.hand) }

// pump begins the first of a lane, if none is under way.
func (k *worker) pump(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	lane := k.lanes[key]
	if len(lane) == 0 || k.begun[lane[0]] {
		return
	}
	m := lane[0]
	k.begun[m] = true
	k.over.Go(func() { k.work(m) })
}

func (k *worker) work(m *source.Message) {
	k.w.begin(m)
	time.Sleep(time.Duration(rand.IntN(6)) * time.Millisecond)
	for k.frozen.Load() {
		time.Sleep(time.Millisecond)
	}
	if k.seat.dead.Load() {
		return
	}
	k.w.end(m)
	err := k.source.Ack(k.ctx, m)
	for i := 0; err != nil && !errors.Is(err, source.ErrLost) && k.ctx.Err() == nil && i < 200; i++ {
		time.Sleep(5 * time.Millisecond)
		err = k.source.Ack(k.ctx, m)
	}
	k.drop(m)
}

// drop takes a message out of our hands, and begins what waited for it.
func (k *worker) drop(m *source.Message) {
	k.mu.Lock()
	delete(k.hand, m)
	delete(k.begun, m)
	k.lanes[m.Key] = slices.DeleteFunc(k.lanes[m.Key], func(o *source.Message) bool { return o == m })
	k.mu.Unlock()
	k.pump(m.Key)
}

func (k *worker) extend() {
	for k.ctx.Err() == nil {
		time.Sleep(k.w.lease / 4)
		if k.frozen.Load() {
			continue
		}
		k.mu.Lock()
		var ms []*source.Message
		for m := range k.hand {
			ms = append(ms, m)
		}
		k.mu.Unlock()
		if len(ms) == 0 {
			continue
		}
		err := k.source.Extend(k.ctx, ms...)
		for _, m := range ms {
			if !errors.Is(source.ErrorOf(err, m), source.ErrLost) {
				continue
			}
			k.mu.Lock()
			begun := k.begun[m]
			k.mu.Unlock()
			if !begun { // what has begun ends by itself, and its record decides
				k.drop(m)
			}
		}
	}
}

// back gives back what has not begun.
func (k *worker) back(_ int, ms []*source.Message) {
	var back []*source.Message
	k.mu.Lock()
	for _, m := range ms {
		k.asked[m] = !k.hand[m]
		if k.hand[m] && !k.begun[m] {
			back = append(back, m)
			delete(k.hand, m)
			k.lanes[m.Key] = slices.DeleteFunc(k.lanes[m.Key], func(o *source.Message) bool { return o == m })
		}
	}
	k.mu.Unlock()
	if len(back) > 0 {
		_ = k.source.Release(k.ctx, 0, back...)
	}
}

// stop ends a coordinator in order.
func (k *worker) stop() {
	k.cancel()
	k.over.Wait()
	if err := k.source.Close(context.Background()); err != nil && !strings.Contains(err.Error(), "not available") {
		k.w.t.Errorf("close %s: %v", k.seat.name, err)
	}
}

// kill ends it as kill -9 does: its leases run out.
func (k *worker) kill() {
	k.seat.dead.Store(true)
	k.w.mu.Lock()
	for _, src := range k.w.opened[k] {
		src.Cut()
	}
	k.w.mu.Unlock()
	k.stop()
}

func (w *world) begin(m *source.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts++
}

// end is an item's commit: the first one counts.
func (w *world) end(m *source.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var n int
	fmt.Sscan(string(m.Body), &n)
	switch last := w.done[m.Key]; {
	case n <= last:
		w.twice++
	case n == last+1:
		w.done[m.Key] = n
	default:
		w.wrong = append(w.wrong, fmt.Sprintf("key %s: item %d ended after %d", m.Key, n, last))
		w.done[m.Key] = n
	}
}

// publish puts items of several keys, each numbered.
func (w *world) publish(s *Source, keys, each int, every time.Duration) {
	for n := 1; n <= each; n++ {
		for k := range keys {
			out := source.Out{ID: fmt.Sprintf("k%d-%d", k, n), Key: fmt.Sprintf("k%d", k), Body: fmt.Append(nil, n)}
			for err := s.Publish(w.t.Context(), out); err != nil; err = s.Publish(w.t.Context(), out) {
				if w.t.Context().Err() != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		time.Sleep(every)
	}
}

func (w *world) ended() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	sum := 0
	for _, n := range w.done {
		sum += n
	}
	return sum
}

// check waits until everything has ended, and says what was out of order.
func (w *world) check(items int, within time.Duration) {
	w.t.Helper()
	for deadline := time.Now().Add(within); w.ended() < items && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, wrong := range w.wrong {
		if i < 10 {
			w.t.Error(wrong)
		}
	}
	sum := 0
	for _, n := range w.done {
		sum += n
	}
	if sum != items {
		w.t.Errorf("%d of %d items have ended", sum, items)
	}
	w.t.Logf("%d items, %d starts, %d repeated", sum, w.starts, w.twice)
}

// TestOrder has coordinators come, go, die, freeze and be robbed while items of many keys are done: each key's end in order.
func TestOrder(t *testing.T) {
	t.Parallel()
	const keys, each = 12, 150
	w := newWorld(t)
	producer := w.open(nil, nil, nil)
	var names atomic.Int64
	crew := []*worker{}
	join := func() *worker {
		k := w.worker(fmt.Sprint("c", names.Add(1)))
		crew = append(crew, k)
		return k
	}
	join()
	join()
	for p := range partitions {
		w.a.give(p, crew[p%2].seat)
	}
	var publishing sync.WaitGroup
	publishing.Go(func() { w.publish(producer, keys, each, 25*time.Millisecond) })
	rng := rand.New(rand.NewPCG(7, 7))
	other := func(not *seat) *worker {
		for {
			if k := crew[rng.IntN(len(crew))]; k.seat != not {
				return k
			}
		}
	}
	ended := make(chan struct{})
	go func() { publishing.Wait(); close(ended) }()
	for done := false; !done; {
		p := rng.IntN(partitions)
		switch rng.IntN(7) {
		case 0, 1: // it moves in order
			w.a.give(p, other(w.a.owner(p)).seat)
		case 2: // it is robbed
			w.a.rob(p, other(w.a.owner(p)).seat)
		case 3: // one dies, another comes
			k := crew[rng.IntN(len(crew))]
			crew = slices.DeleteFunc(crew, func(o *worker) bool { return o == k })
			k.kill()
			join()
			for p := range partitions {
				if w.a.owner(p) == k.seat {
					w.a.rob(p, other(k.seat).seat)
				}
			}
		case 4: // one ends in order
			k := crew[rng.IntN(len(crew))]
			crew = slices.DeleteFunc(crew, func(o *worker) bool { return o == k })
			join()
			for p := range partitions {
				if w.a.owner(p) == k.seat {
					w.a.give(p, other(k.seat).seat)
				}
			}
			k.stop()
			for p := range partitions {
				if o := w.a.owner(p); o == k.seat {
					w.a.rob(p, other(k.seat).seat)
				}
			}
		case 5: // one is frozen for longer than its leases, and is robbed meanwhile
			k := crew[rng.IntN(len(crew))]
			k.frozen.Store(true)
			time.Sleep(w.lease / 2)
			if o := w.a.owner(p); o == k.seat {
				w.a.rob(p, other(k.seat).seat)
			}
			time.Sleep(w.lease)
			k.frozen.Store(false)
		case 6: // the broker is away, now and then longer than a lease
			w.broker.Stop()
			time.Sleep(time.Duration(rng.Int64N(int64(2 * w.lease))))
			w.broker.Start()
		}
		select {
		case <-ended:
			done = true
		case <-time.After(time.Duration(rng.IntN(700)) * time.Millisecond):
		}
	}
	w.check(keys*each, 60*time.Second)
	for _, k := range crew {
		k.stop()
	}
	if err := producer.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestContract: whoever does not know of partitions sees a queue as any other. The first coordinator has all of them, and when it ends the next one.
func TestContract(t *testing.T) {
	var mu sync.Mutex
	broker, arbiters := memory.New(), map[string]*arbiter{}
	sourcetest.Run(t, sourcetest.Harness{Open: func(_ context.Context, _ string, o source.Options) (source.Source, error) {
		if err := o.Complete(); err != nil {
			return nil, err
		}
		if o.Order {
			return broker.Open(o) // that of a whole queue is not what partitions are for
		}
		mu.Lock()
		defer mu.Unlock()
		a := arbiters[o.Queue]
		if a == nil {
			a = newArbiter()
			arbiters[o.Queue] = a
		}
		me := a.seat(o.Consumer)
		s, err := New(Config{Options: o, Partitions: partitions, Owner: me, Clock: clock.Boot(), Log: hclog.NewNullLogger(),
			Open: func(o source.Options) (source.Source, error) { return broker.Open(o) }})
		if err != nil {
			return nil, err
		}
		s.quiet = 20 * time.Millisecond
		for p := range partitions {
			if a.owner(p) == nil {
				a.give(p, me)
			}
		}
		return s, nil
	}})
}

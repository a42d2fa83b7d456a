package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"retinue/coordinator/source"
)

var flowCases = []namedCase{
	{"competing consumers share without a double", func(r *rig) {
		const consumers, n = 4, 1000
		outs := items("c", n)
		p := r.open()
		r.publish(p, outs...)
		var mu sync.Mutex
		var all []*source.Message
		got := make([]int, consumers)
		ctx, cancel := context.WithTimeout(r.Context(), 4*patience)
		defer cancel()
		var wg sync.WaitGroup
		for i := range consumers {
			s := r.open(prefetch(10), lease(time.Minute))
			wg.Go(func() {
				for ctx.Err() == nil {
					ms, err := s.Receive(ctx, 10)
					if err == nil {
						err = s.Ack(ctx, ms...)
					}
					if err != nil && ctx.Err() == nil {
						r.Errorf("consumer %d: %v", i, err)
						cancel()
					}
					mu.Lock()
					all = append(all, ms...)
					got[i] += len(ms)
					if len(all) >= n {
						cancel()
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		r.once(all, outs)
		r.Logf("consumers had %v", got)
		r.empty(p)
	}},
	{"urgent classes go first and none starves", func(r *rig) {
		s := r.open(classes(3), prefetch(32), lease(time.Minute))
		const each = 60
		for class := range 3 {
			outs := items(fmt.Sprintf("p%d", class), each)
			for i := range outs {
				outs[i].Class = class
			}
			r.publish(s, outs...)
		}
		var counts [3]int
		for range 56 {
			m := r.receive(s, 1, 1, patience)[0]
			counts[m.Class]++
			r.ack(s, m)
		}
		// Shares of 1, 4, 9 of 14; what is fetched ahead blurs them.
		if counts[0] < 1 || counts[1] <= counts[0] || counts[2] <= counts[1] || counts[2] < 25 {
			r.Errorf("of 56 messages, classes 0, 1, 2 had %v", counts)
		}
		for range 3*each - 56 {
			r.ack(s, r.receive(s, 1, 1, patience)...)
		}
		r.empty(s)
	}},
	{"messages of one key keep their order", func(r *rig) {
		first := r.open(prefetch(8), lease(20*time.Second))
		if !first.Caps().KeyOrder {
			r.Skip("this broker does not")
		}
		const keys, each = 6, 30
		var outs []source.Out
		for i := range each {
			for k := range keys {
				outs = append(outs, source.Out{ID: fmt.Sprintf("k%d-%d", k, i), Key: fmt.Sprintf("key %d", k), Body: fmt.Appendf(nil, "%d", i)})
			}
		}
		for start := 0; start < len(outs); start += keys {
			r.publish(first, outs[start:start+keys]...)
		}
		order := newOrder()
		ctx, cancel := context.WithTimeout(r.Context(), 4*patience)
		defer cancel()
		var wg sync.WaitGroup
		for i, s := range []source.Source{first, r.open(prefetch(8), lease(20*time.Second)), r.open(prefetch(8), lease(20*time.Second))} {
			wg.Go(func() {
				for ctx.Err() == nil {
					ms, err := s.Receive(ctx, 4)
					if err != nil && ctx.Err() == nil {
						r.Errorf("receive: %v", err)
						cancel()
					}
					for _, m := range ms {
						order.took(r, i, m)
					}
					for _, m := range ms {
						order.done(m)
						if err := s.Ack(ctx, m); err != nil && ctx.Err() == nil {
							r.Errorf("ack: %v", err)
						}
						if order.count() == keys*each {
							cancel()
						}
					}
				}
			})
		}
		wg.Wait()
		if order.count() != keys*each {
			r.Errorf("%d of %d messages arrived", order.count(), keys*each)
		}
	}},
	{"what nobody asks for any more goes to others", func(r *rig) {
		if r.h.Lingers {
			r.Skip("this broker keeps it for a lease")
		}
		a, b := r.open(lease(10*time.Minute)), r.open(lease(10*time.Minute))
		// It wanted more than there was, and what is fetched for it comes after that.
		r.publish(b, items("first", 1)...)
		ms, err := a.Receive(r.Context(), 10)
		if err != nil {
			r.Fatal(err)
		}
		r.ack(a, ms...)
		outs := items("more", 5)
		for _, out := range outs {
			r.publish(b, out)
		}
		pause(r.Context(), 100*time.Millisecond)
		ms = r.receive(b, len(outs), 2, patience) // long before a lease ends
		r.once(ms, outs)
		r.ack(b, ms...)
		r.empty(a)
	}},
	{"thousands in flight", func(r *rig) {
		const n = 3000
		s := r.open(prefetch(n), lease(10*time.Minute))
		outs := items("t", n)
		for i := 0; i < n; i += 500 {
			r.publish(s, outs[i:i+500]...)
		}
		ms := r.receive(s, n, 250, 4*patience)
		r.once(ms, outs)
		if s.Caps().Counts.InFlight {
			r.eventually(s, "3000 in flight", func(d source.Depth) bool { return d.InFlight == n && d.Ready == 0 })
		}
		ctx, cancel := context.WithTimeout(r.Context(), 2*patience)
		defer cancel()
		if err := s.Extend(ctx, ms...); err != nil {
			r.Fatalf("extend %d: %v", n, err)
		}
		if err := s.Ack(ctx, ms...); err != nil {
			r.Fatalf("ack %d: %v", n, err)
		}
		r.empty(s)
	}},
	{"the depth is told", func(r *rig) {
		s := r.open(prefetch(3), lease(time.Minute))
		counts := s.Caps().Counts
		r.publish(s, items("d", 10)...)
		r.eventually(s, "10 ready", func(d source.Depth) bool {
			return d.Ready == 10 && (!counts.InFlight || d.InFlight == 0) && (!counts.Oldest || d.Oldest >= 0 && d.Oldest < patience)
		})
		ms := r.receive(s, 3, 3, patience)
		if err := s.Idle(r.Context()); err != nil {
			r.Fatal(err)
		}
		r.eventually(s, "7 ready, 3 in flight", func(d source.Depth) bool { return d.Ready == 7 && (!counts.InFlight || d.InFlight == 3) })
		r.ack(s, ms[0])
		r.eventually(s, "7 ready, 2 in flight", func(d source.Depth) bool { return d.Ready == 7 && (!counts.InFlight || d.InFlight == 2) })
		r.release(s, time.Minute, ms[1])
		r.eventually(s, "one message delayed", func(d source.Depth) bool {
			if counts.Delayed {
				return d.Ready == 7 && d.InFlight <= 1 && d.Delayed == 1
			}
			return d.Ready+max(d.InFlight, 0) <= 9
		})
		if counts.Oldest {
			r.eventually(s, "the oldest a second old", func(d source.Depth) bool { return d.Oldest >= time.Second })
		}
	}},
	{"a cancelled receive takes nothing", func(r *rig) {
		s := r.open()
		ctx, cancel := context.WithCancel(r.Context())
		done := make(chan error, 1)
		go func() { _, err := s.Receive(ctx, 1); done <- err }()
		pause(r.Context(), 100*time.Millisecond)
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				r.Errorf("receive: %v", err)
			}
		case <-time.After(patience):
			r.Fatal("Receive does not end with its context")
		}
		// Cancelled at any moment of an arrival.
		outs := items("x", 60)
		var got []*source.Message
		for i := range outs {
			r.publish(s, outs[i])
			ctx, cancel := context.WithTimeout(r.Context(), time.Duration(i%12)*300*time.Microsecond)
			ms, _ := s.Receive(ctx, 5)
			cancel()
			r.ack(s, ms...)
			got = append(got, ms...)
		}
		for len(got) < len(outs) {
			ms := r.receive(s, 1, 1, 3*r.h.Lease+patience)
			r.ack(s, ms...)
			got = append(got, ms...)
		}
		r.once(got, outs)
		r.empty(s)
	}},
	{"a message wakes who waits", func(r *rig) {
		s, p := r.open(), r.open()
		got := make(chan error, 1)
		go func() {
			_, err := take(r.Context(), s, 1, 1, patience)
			got <- err
		}()
		pause(r.Context(), 300*time.Millisecond)
		start := time.Now()
		r.publish(p, source.Out{ID: "w"})
		if err := <-got; err != nil {
			r.Fatal(err)
		}
		r.Logf("after %v", time.Since(start))
	}},
}

// order watches over the order of keys.
type order struct {
	mu     sync.Mutex
	next   map[string]int // index expected next
	flying map[string]map[string]int
	n      int
}

func newOrder() *order { return &order{next: map[string]int{}, flying: map[string]map[string]int{}} }

func (o *order) took(r *rig, consumer int, m *source.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if want := fmt.Sprint(o.next[m.Key]); string(m.Body) != want && m.Deliveries == 1 {
		r.Errorf("%s: number %s was received, %s is next", m.Key, m.Body, want)
	}
	o.next[m.Key]++
	for id, other := range o.flying[m.Key] {
		if other != consumer {
			r.Errorf("%s: consumer %d has %s while %d has %s", m.Key, other, id, consumer, m.ID)
		}
	}
	if o.flying[m.Key] == nil {
		o.flying[m.Key] = map[string]int{}
	}
	o.flying[m.Key][m.ID] = consumer
}

func (o *order) done(m *source.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.flying[m.Key], m.ID)
	o.n++
}

func (o *order) count() int { o.mu.Lock(); defer o.mu.Unlock(); return o.n }

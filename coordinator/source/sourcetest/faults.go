package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"retinue/coordinator/source"
)

// faultCases break what is theirs alone: a consumer, or connections through a proxy.
var faultCases = []namedCase{
	{"what a killed consumer had is delivered elsewhere", func(r *rig) {
		if r.h.Child == nil {
			r.Skip("a source of one process")
		}
		s := r.open()
		outs := items("k", 20)
		r.publish(s, outs...)
		d := r.startDoomed(len(outs))
		r.nothing(s, 2*r.h.Lease)
		d.kill()
		start := time.Now()
		bound := s.Caps().Redelivery
		ms := r.receive(s, len(outs), 20, bound+patience)
		r.Logf("redelivered after %v, promised %v", time.Since(start).Round(time.Millisecond), bound)
		if took := time.Since(start); took > bound+patience/6 {
			r.Errorf("redelivered after %v, promised %v", took, bound)
		}
		r.once(ms, outs)
		for _, m := range ms {
			if m.Deliveries < 2 {
				r.Errorf("%s: delivery %d", m.ID, m.Deliveries)
			}
		}
		r.ack(s, ms...)
		r.empty(s)
	}},
	{"nothing is lost when connections are cut", func(r *rig) {
		if r.h.Addr == "" {
			r.Skip("the server has no address")
		}
		p := NewProxy(r, r.h.Addr)
		r.campaign(p.Addr(), 6, func(int) { p.Cut() })
	}},
	{"a frozen consumer loses its messages and learns it", func(r *rig) {
		if r.h.Addr == "" {
			r.Skip("the server has no address")
		}
		p := NewProxy(r, r.h.Addr)
		b := r.open()
		a := r.openVia(p.Addr())
		r.publish(b, items("f", 4)...)
		ms := r.receive(a, 4, 4, patience)
		p.Freeze()
		defer p.Thaw()
		start := time.Now()
		again := r.receive(b, 4, 4, 5*r.h.Lease+b.Caps().Redelivery+patience)
		r.Logf("redelivered after %v", time.Since(start).Round(time.Millisecond))
		r.once(again, items("f", 4))
		r.ack(b, again...)
		p.Thaw()
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		for _, m := range ms {
			if err := source.ErrorOf(a.Extend(ctx, m), m); !errors.Is(err, source.ErrLost) {
				r.Errorf("extend of a lost message: %v", err)
			}
		}
		r.publish(b, source.Out{ID: "after"})
		r.ack(b, r.receive(b, 1, 1, patience)...)
		r.publish(b, source.Out{ID: "after-2"})
		if err := b.Idle(ctx); err != nil {
			r.Fatal(err)
		}
		r.ack(a, r.receive(a, 1, 1, 2*patience)...)
	}},
}

// brokerCases run when nothing else does: they kill what all need.
var brokerCases = []namedCase{
	{"nothing that was confirmed is lost when the broker is killed", func(r *rig) {
		if r.h.Server == nil {
			r.Skip("the server cannot be killed")
		}
		r.campaign("", 3, func(int) {
			r.h.Server.Kill()
			r.h.Server.Start()
		})
	}},
}

// campaign publishes and consumes while a fault hits several times, and holds the result against what was confirmed: each
// confirmed item arrives, and in the end the queue is empty. What came again is counted.
func (r *rig) campaign(via string, faults int, fault func(int)) {
	r.Helper()
	c := &tally{confirmed: map[string]bool{}, received: map[string]bool{}, acked: map[string]int{}}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Minute)
	defer cancel()
	publishing, stop := context.WithCancel(ctx)
	var producers, consumers sync.WaitGroup
	for i := range 2 {
		s := r.openVia(via, prefetch(32))
		producers.Go(func() { c.publish(publishing, s, fmt.Sprintf("w%d", i)) })
	}
	consuming, done := context.WithCancel(ctx)
	for range 2 {
		s := r.openVia(via, prefetch(32))
		consumers.Go(func() { c.consume(consuming, s) })
	}
	for i := range faults {
		// Each fault hits a run that goes well: some 150 more items were confirmed and acknowledged.
		if !c.progress(ctx, 150) {
			r.Fatalf("no progress before fault %d: %+v", i, c.numbers())
		}
		fault(i)
	}
	if !c.progress(ctx, 150) {
		r.Fatalf("no progress after the last fault: %+v", c.numbers())
	}
	stop()
	producers.Wait()
	for ctx.Err() == nil && c.missing() > 0 {
		pause(ctx, 20*time.Millisecond)
	}
	done()
	consumers.Wait()
	n := c.numbers()
	r.Logf("confirmed %d, acknowledged %d, repeated %d, doubtful %d", n.confirmed, n.acked, n.repeated, n.doubtful)
	if n.missing > 0 {
		r.Errorf("%d confirmed items never arrived", n.missing)
	}
	r.drain(r.open())
}

// drain takes what the consumers had in hand when they were stopped, until the queue is empty.
func (r *rig) drain(s source.Source) {
	r.Helper()
	deadline := time.Now().Add(2 * patience)
	for {
		ctx, cancel := context.WithTimeout(r.Context(), 300*time.Millisecond)
		ms, _ := s.Receive(ctx, 50)
		cancel()
		if len(ms) > 0 {
			r.ack(s, ms...)
		}
		d := r.depth(s)
		if d.Ready <= 0 && d.InFlight <= 0 && d.Delayed <= 0 && len(ms) == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("the depth stays %+v", d)
		}
	}
}

// tally is what a campaign saw.
type tally struct {
	mu        sync.Mutex
	confirmed map[string]bool
	received  map[string]bool
	acked     map[string]int // confirmed ends of an item
	doubtful  int            // acknowledgements without an answer
	total     int            // confirmed ends, repeats included
}

type numbers struct{ confirmed, acked, repeated, doubtful, missing int }

func (c *tally) publish(ctx context.Context, s source.Source, name string) {
	for i := 0; ctx.Err() == nil; i++ {
		out := source.Out{ID: fmt.Sprintf("%s-%d", name, i), Body: make([]byte, 200)}
		// The same item until it is confirmed, as the coordinator does.
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := s.Publish(try, out)
			cancel()
			if err == nil {
				c.mu.Lock()
				c.confirmed[out.ID] = true
				c.mu.Unlock()
				break
			}
			pause(ctx, 10*time.Millisecond)
		}
	}
}

func (c *tally) consume(ctx context.Context, s source.Source) {
	for ctx.Err() == nil {
		ms, err := s.Receive(ctx, 16)
		if err != nil {
			pause(ctx, 20*time.Millisecond)
			continue
		}
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = s.Ack(try, ms...)
		cancel()
		c.mu.Lock()
		for _, m := range ms {
			// An end in doubt may have been one: such an item need not come again.
			c.received[m.ID] = true
			if source.ErrorOf(err, m) != nil {
				c.doubtful++
				continue
			}
			c.acked[m.ID]++
			c.total++
		}
		c.mu.Unlock()
	}
}

// progress waits for n more confirmed publications and ends.
func (c *tally) progress(ctx context.Context, n int) bool {
	c.mu.Lock()
	confirmed, total := len(c.confirmed)+n, c.total+n
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 4*patience)
	defer cancel()
	for {
		c.mu.Lock()
		good := len(c.confirmed) >= confirmed && c.total >= total
		c.mu.Unlock()
		if good || !pause(ctx, 10*time.Millisecond) {
			return good
		}
	}
}

func (c *tally) missing() int { return c.numbers().missing }

func (c *tally) numbers() numbers {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := numbers{confirmed: len(c.confirmed), acked: len(c.acked), doubtful: c.doubtful}
	for _, times := range c.acked {
		n.repeated += times - 1
	}
	for id := range c.confirmed {
		if !c.received[id] {
			n.missing++
		}
	}
	return n
}

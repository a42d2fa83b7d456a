// Package sourcetest is the one suite that every adapter of package source
// passes, against a real server that it may kill. An adapter's test starts a
// server, says how to open a source on it, and calls Run; what the broker
// promises beyond the contract is read from Caps and then held against it.
//
// It also holds what those tests share: a server as a process of the test
// (own folder, own port, kill -9 and start again), a proxy that cuts or
// freezes connections, and a consumer in a process of its own that can be
// killed.
package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// Harness is an adapter and its server.
type Harness struct {
	// Open opens a source. With via not empty it connects to that address in place of the server's.
	Open func(ctx context.Context, via string, o source.Options) (source.Source, error)
	// Addr is the server's host:port, for the tests with a proxy. Empty: they are left out.
	Addr string
	// Server may be killed and started again. Nil: those tests are left out.
	Server *Server
	// Child is the environment for a process that opens the same source: see Main. Nil: those tests are left out.
	Child []string
	// Lease is the shortest lease the broker is good for. Default 1s.
	Lease time.Duration
	// Denied opens a source with credentials that the server refuses. Nil: the server checks none.
	Denied func(ctx context.Context, o source.Options) (source.Source, error)
	// Foreign publishes a body as a producer would that knows nothing of this project.
	Foreign func(ctx context.Context, queue string, body []byte) error
	// Together runs the cases that break a consumer or connections beside the others: the broker must have power to spare.
	Together bool
	// Lingers: what was fetched, and nobody asks for any more, goes to others only after a lease.
	Lingers bool
	// Settle is how old a queue must be to survive a kill of the broker.
	Settle time.Duration
}

// patience is how long a thing may take that should take no time: the machine may be busy.
const patience = 30 * time.Second

// Run tries the whole contract.
func Run(t *testing.T, h Harness) {
	if h.Lease == 0 {
		h.Lease = time.Second
	}
	// What is opened now is old enough when the broker is killed.
	old := newCase(t, h)
	if h.Settle > 0 {
		old.open()
	}
	settled := time.Now().Add(h.Settle)
	all, alone := slices.Concat(messageCases, leaseCases, releaseCases, flowCases, orderCases, closeCases, accessCases), slices.Concat(faultCases, orderFaultCases)
	if h.Together {
		all, alone = append(all, alone...), nil
	}
	t.Run("side by side", func(t *testing.T) {
		for _, c := range all {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(newCase(t, h))
			})
		}
	})
	for _, c := range alone {
		t.Run(c.name, func(t *testing.T) { c.run(newCase(t, h)) })
	}
	for _, c := range brokerCases {
		t.Run(c.name, func(t *testing.T) {
			r := newCase(t, h)
			r.queue = old.queue
			pause(t.Context(), time.Until(settled))
			c.run(r)
		})
	}
}

// RunHold keeps messages for longer than the broker lets a consumer keep one whatever it does, on a server where that limit
// is short.
func RunHold(t *testing.T, h Harness, limit time.Duration) {
	r := newCase(t, h)
	a, b := r.open(), r.open()
	r.publish(a, items("h", 2)...)
	ms := r.receive(a, 2, 2, patience)
	stop := keep(r.Context(), a, r.h.Lease, ms...)
	r.nothing(b, 5*limit/2)
	if err := stop(); err != nil {
		r.Errorf("extend: %v", err)
	}
	r.ack(a, ms[0])
	r.release(a, 0, ms[1])
	m := r.receive(b, 1, 2, patience)[0]
	if m.ID != ms[1].ID || string(m.Body) != string(ms[1].Body) || m.Deliveries < 2 {
		r.Errorf("released %s, received %s with %q, delivery %d", ms[1].ID, m.ID, m.Body, m.Deliveries)
	}
	r.ack(b, m)
	r.nothing(b, 2*r.h.Lease)
	r.empty(a)
}

// RunOrderHold is RunHold for an ordered queue: what was kept that long still comes first when it is given back, whether its consumer
// took others meanwhile or rested.
func RunOrderHold(t *testing.T, h Harness, limit time.Duration) {
	if h.Lease == 0 {
		h.Lease = time.Second
	}
	for name, busy := range map[string]bool{"busy": true, "at rest": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newCase(t, h).holdInOrder(limit, busy)
		})
	}
}

type namedCase struct {
	name string
	run  func(*rig)
}

// rig is what one case works with.
type rig struct {
	*testing.T
	h     Harness
	queue string
}

var queues atomic.Int64

func newCase(t *testing.T, h Harness) *rig {
	return &rig{T: t, h: h, queue: fmt.Sprintf("q%d-%d", os.Getpid(), queues.Add(1))}
}

func (r *rig) options(change ...func(*source.Options)) source.Options {
	o := source.Options{Queue: r.queue, Lease: r.h.Lease, Prefetch: 64}
	for _, c := range change {
		c(&o)
	}
	return o
}

// open opens a source until the test is over.
func (r *rig) open(change ...func(*source.Options)) source.Source { return r.openVia("", change...) }

func (r *rig) openVia(via string, change ...func(*source.Options)) source.Source {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	s, err := r.h.Open(ctx, via, r.options(change...))
	if err != nil {
		r.Fatalf("open: %v", err)
	}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Close(ctx); err != nil && !errors.Is(err, source.ErrUnavailable) {
			r.Logf("close: %v", err)
		}
	})
	return s
}

func lease(d time.Duration) func(*source.Options) { return func(o *source.Options) { o.Lease = d } }
func prefetch(n int) func(*source.Options)        { return func(o *source.Options) { o.Prefetch = n } }
func classes(n int) func(*source.Options)         { return func(o *source.Options) { o.Classes = n } }

// publish stores messages, or fails the test.
func (r *rig) publish(s source.Source, outs ...source.Out) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	if err := s.Publish(ctx, outs...); err != nil {
		r.Fatalf("publish: %v", err)
	}
}

// items are n messages whose ids are numbered.
func items(prefix string, n int) []source.Out {
	outs := make([]source.Out, n)
	for i := range outs {
		outs[i] = source.Out{ID: fmt.Sprintf("%s-%d", prefix, i), Body: fmt.Appendf(nil, "body %s %d", prefix, i)}
	}
	return outs
}

// receive takes exactly n messages within the time, asking for at most batch at once.
func (r *rig) receive(s source.Source, n, batch int, within time.Duration) []*source.Message {
	r.Helper()
	ms, err := take(r.Context(), s, n, batch, within)
	if err != nil {
		r.Fatalf("received %d of %d in %v: %v", len(ms), n, within, err)
	}
	return ms
}

// take receives until it has n messages, going on over times when the broker is away.
func take(ctx context.Context, s source.Source, n, batch int, within time.Duration) ([]*source.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var all []*source.Message
	for len(all) < n {
		ms, err := s.Receive(ctx, min(batch, n-len(all)))
		all = append(all, ms...)
		if errors.Is(err, source.ErrUnavailable) && ctx.Err() == nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		if err != nil {
			return all, err
		}
		if len(ms) == 0 || len(ms) > batch {
			return all, fmt.Errorf("Receive(%d) returned %d messages and no error", batch, len(ms))
		}
	}
	return all, nil
}

// nothing fails the test when a message comes within the time.
func (r *rig) nothing(s source.Source, within time.Duration) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), within)
	defer cancel()
	ms, err := s.Receive(ctx, 10)
	if len(ms) > 0 {
		r.Fatalf("received %s (delivery %d), expected nothing", ms[0].ID, ms[0].Deliveries)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		r.Fatalf("receive: %v", err)
	}
}

func (r *rig) ack(s source.Source, ms ...*source.Message) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	if err := s.Ack(ctx, ms...); err != nil {
		r.Fatalf("ack: %v", err)
	}
}

func (r *rig) release(s source.Source, delay time.Duration, ms ...*source.Message) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	if err := s.Release(ctx, delay, ms...); err != nil {
		r.Fatalf("release: %v", err)
	}
}

func (r *rig) depth(s source.Source) source.Depth {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	d, err := s.Depth(ctx)
	if err != nil {
		r.Fatalf("depth: %v", err)
	}
	return d
}

// eventually waits until the depth is as wanted.
func (r *rig) eventually(s source.Source, what string, want func(source.Depth) bool) {
	r.Helper()
	deadline := time.Now().Add(patience)
	for {
		d := r.depth(s)
		if want(d) {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("the depth is %+v, expected %s", d, what)
		}
		pause(r.Context(), 50*time.Millisecond)
	}
}

// empty waits until nothing is in the queue, in any state.
func (r *rig) empty(s source.Source) {
	r.Helper()
	r.eventually(s, "nothing", func(d source.Depth) bool { return d.Ready <= 0 && d.InFlight <= 0 && d.Delayed <= 0 })
}

// keep extends messages every third of a lease until the returned function is called; what failed is its result.
func keep(ctx context.Context, s source.Source, lease time.Duration, ms ...*source.Message) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		var failed error
		for pause(ctx, lease/3) {
			if err := s.Extend(ctx, ms...); err != nil && ctx.Err() == nil && failed == nil {
				failed = err
			}
		}
		done <- failed
	}()
	return func() error { cancel(); return <-done }
}

// pause waits and says whether the context is still good.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// once fails the test unless ms are exactly the published items, each one time.
func (r *rig) once(ms []*source.Message, outs []source.Out) {
	r.Helper()
	want := map[string]int{}
	for _, o := range outs {
		want[o.ID]++
	}
	for _, m := range ms {
		want[m.ID]--
	}
	var wrong []string
	for id, n := range want {
		if n != 0 {
			wrong = append(wrong, fmt.Sprintf("%s %+d", id, -n))
		}
	}
	if slices.Sort(wrong); len(wrong) > 0 {
		r.Errorf("of %d items %d came too seldom or too often: %s", len(outs), len(wrong), wrong[:min(10, len(wrong))])
	}
}

package partition_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/partition"
	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
)

const ttl = time.Second

// wire is the way of one coordinator to Consul. Cut, it passes nothing on and says nothing, as a network does that is gone; what was under
// way arrives when it is whole again.
type wire struct {
	l     net.Listener
	to    string
	mu    sync.Mutex
	cut   chan struct{} // closed while whole
	conns []net.Conn
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l: l, to: to, cut: make(chan struct{})}
	close(w.cut)
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(from)
		}
	}()
	t.Cleanup(w.close)
	return w
}

func (w *wire) serve(from net.Conn) {
	to, err := net.Dial("tcp", w.to)
	if err != nil {
		from.Close()
		return
	}
	w.mu.Lock()
	w.conns = append(w.conns, from, to)
	w.mu.Unlock()
	pass := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			<-w.whole()
			if n > 0 {
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	go pass(to, from)
	pass(from, to)
}

func (w *wire) whole() chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut
}

func (w *wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = make(chan struct{})
}

func (w *wire) Mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.cut)
}

func (w *wire) close() {
	w.l.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	select {
	case <-w.cut:
	default:
		close(w.cut)
	}
}

// rig is one queue and its coordinators.
type rig struct {
	t      *testing.T
	consul *consultest.Agent
	n      int

	mu      sync.Mutex
	all     []*one
	overlap []string // moments at which two held a partition
	samples int
	book    ledger
}

// one is a coordinator.
type one struct {
	*partition.Holder
	id   string
	wire *wire
	stop func() // as at the end of the process
}

func newRig(t *testing.T, n int, consul *consultest.Agent) *rig {
	t.Helper()
	r := &rig{t: t, consul: consul, n: n}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			r.sample()
			time.Sleep(time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if r.samples < 10 {
			t.Errorf("looked only %d times", r.samples)
		}
	})
	return r
}

// sample looks whether two hold a partition at one moment: one that holds it before and after another was seen to hold it, with the same
// epoch, held it meanwhile too.
func (r *rig) sample() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples++
	r.noteAll()
	for p := range r.n {
		for i, a := range r.all {
			before, ok := a.Held(p)
			if !ok {
				continue
			}
			for j, b := range r.all {
				other, both := b.Held(p)
				if i == j || !both {
					continue
				}
				if after, ok := a.Held(p); ok && after.Epoch == before.Epoch {
					r.overlap = append(r.overlap, fmt.Sprintf("partition %d: %s with %d and %s with %d", p, a.id, after.Epoch, b.id, other.Epoch))
				}
			}
		}
	}
}

// exclusive fails the test if ever two held a partition.
func (r *rig) exclusive() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.overlap) > 0 {
		r.t.Errorf("%d times two held a partition at once, first %s", len(r.overlap), r.overlap[0])
	}
}

func (r *rig) config(id, addr, token string) partition.Config {
	r.t.Helper()
	client, err := consulkit.New(consulkit.Config{Address: addr, Token: token})
	if err != nil {
		r.t.Fatal(err)
	}
	log := hclog.NewNullLogger()
	if testing.Verbose() {
		log = hclog.New(&hclog.LoggerOptions{Name: id, Level: hclog.Info, Output: testWriter{r.t}})
	}
	return partition.Config{Client: client, Prefix: "retinue/queues/thumbs/", Queue: "thumbs", ID: id, Partitions: r.n, TTL: ttl, Clock: clock.Boot(), Log: log}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}

var _ io.Writer = testWriter{}

func (r *rig) start(id string) *one { return r.startAs(id, "") }

func (r *rig) startAs(id, token string) *one {
	r.t.Helper()
	wire := newWire(r.t, r.consul.Addr)
	o := r.run(r.config(id, wire.l.Addr().String(), token))
	o.wire = wire
	return o
}

func (r *rig) run(cfg partition.Config) *one {
	r.t.Helper()
	h, err := partition.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Run(ctx)
	}()
	o := &one{Holder: h, id: cfg.ID}
	o.stop = sync.OnceFunc(func() {
		began := time.Now()
		cancel()
		<-done
		if d := time.Since(began); d > 3*time.Second {
			r.t.Errorf("%s took %s to stop", cfg.ID, d)
		}
	})
	r.mu.Lock()
	r.all = append(r.all, o)
	r.mu.Unlock()
	r.t.Cleanup(o.stop)
	return o
}

// obey gives whatever shall go to another, until the test ends. It is what the user of a Holder does, with nothing in hand.
func (r *rig) obey(os ...*one) {
	for _, o := range os {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				changed := o.Changed()
				for p, c := range o.claims(r.n) {
					if c.Leave {
						r.mu.Lock()
						r.book.note(p, c.Epoch, true)
						r.mu.Unlock()
						o.Give(p, c.Epoch)
						if _, held := o.Held(p); held {
							r.t.Errorf("%s holds %d after it gave it", o.id, p)
						}
					}
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
			}
		}()
		r.t.Cleanup(func() { cancel(); <-done })
	}
}

func (o *one) claims(n int) map[int]partition.Claim {
	out := map[int]partition.Claim{}
	for p := range n {
		if c, ok := o.Held(p); ok {
			out[p] = c
		}
	}
	return out
}

// held is how many each of os holds.
func (r *rig) held(os ...*one) []int {
	var out []int
	for _, o := range os {
		out = append(out, len(o.claims(r.n)))
	}
	return out
}

// until waits for something, and says how long it took.
func (r *rig) until(limit time.Duration, what string, ok func() bool) time.Duration {
	r.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			text := ""
			for _, o := range r.all {
				text += fmt.Sprintf("\n%s: %v %+v", o.id, slices.Sorted(maps.Keys(o.claims(r.n))), o.View())
			}
			r.t.Fatalf("not within %s: %s%s", limit, what, text)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// shares waits until os hold as many partitions each, in whatever order.
func (r *rig) shares(limit time.Duration, want []int, os ...*one) time.Duration {
	r.t.Helper()
	return r.until(limit, fmt.Sprintf("shares of %v", want), func() bool {
		got := r.held(os...)
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

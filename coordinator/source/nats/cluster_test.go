package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

// Three brokers with copies of a queue lose nothing when one after the other is killed, repeat nothing whose end was confirmed,
// and go on with two. Not beside the other tests: an election of brokers is a matter of time.
func TestThreeBrokers(t *testing.T) {
	c := startCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := c.open(ctx)
	defer s.Close(context.Background())
	r := &record{t: t, s: s, published: map[string]bool{}, ended: map[string]bool{}}
	r.publish(ctx, "before", 50)
	for round := range c.servers {
		// A Receive waits while the broker is killed that knows of it, where that one is not dead already.
		r.end(ctx, 30)
		victim := c.leader(ctx, s)
		c.servers[victim].Kill()
		killed := time.Now()
		r.publish(ctx, fmt.Sprint("round-", round), 50)
		published := time.Since(killed)
		r.end(ctx, 30) // two of three are enough
		t.Logf("killed b%d: published after %v, received after %v", victim, published.Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
		c.servers[victim].Start()
		c.current(ctx, s)
	}
	r.end(ctx, len(r.published)-len(r.ended))
	for {
		d, err := s.Depth(ctx)
		if err == nil && d.Ready == 0 && d.InFlight == 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the depth stays %+v, %v", d, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	try, stop := context.WithTimeout(ctx, 3*lease)
	defer stop()
	if ms, _ := s.Receive(try, 1); len(ms) > 0 {
		t.Errorf("%s comes although all was ended", ms[0].ID)
	}
	t.Logf("%d items, %d received again without a confirmed end", len(r.published), r.again)
}

const lease = 2 * time.Second

// cluster is three brokers.
type cluster struct {
	t       *testing.T
	servers []*sourcetest.Server
	url     string
	killed  []int
}

func startCluster(t *testing.T) *cluster {
	c := &cluster{t: t}
	var clients, peers []string
	for range 3 {
		clients = append(clients, sourcetest.Loopback(sourcetest.Port(t)))
		peers = append(peers, sourcetest.Loopback(sourcetest.Port(t)))
	}
	for i, addr := range clients {
		of := slices.Concat([]string{fmt.Sprint("b", i), peers[i]}, peers[:i], peers[i+1:])
		cmd := sourcetest.Role(t, "broker", serverVariable+"="+addr, storeVariable+"="+t.TempDir(), clusterVariable+"="+strings.Join(of, " "))
		c.servers = append(c.servers, sourcetest.StartServer(t, cmd, sourcetest.Listens(addr)))
	}
	c.url = "nats://u:p@" + strings.Join(clients, ",nats://u:p@")
	return c
}

// open opens the queue when they have found each other.
func (c *cluster) open(ctx context.Context) *Source {
	for {
		s, err := Open(ctx, Config{URL: c.url, Replicas: 3, Options: source.Options{Queue: "three", Lease: lease, Prefetch: 50}})
		if err == nil {
			return s
		}
		if ctx.Err() != nil || errors.Is(err, source.ErrConfig) {
			c.t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// leader is the next to be killed: who leads the consumer, or one that was not killed yet.
func (c *cluster) leader(ctx context.Context, s *Source) int {
	next := -1
	for i := range c.servers {
		if !slices.Contains(c.killed, i) {
			next = i
		}
	}
	con, err := s.js.Consumer(ctx, streamName("three"), durable(0))
	if err != nil {
		c.t.Log(err)
	} else if i := slices.Index([]string{"b0", "b1", "b2"}, con.CachedInfo().Cluster.Leader); i >= 0 && !slices.Contains(c.killed, i) {
		next = i
	}
	c.killed = append(c.killed, next)
	return next
}

// current waits until all three have all.
func (c *cluster) current(ctx context.Context, s *Source) {
	for {
		st, err := s.js.Stream(ctx, streamName("three"))
		if err == nil {
			peers := st.CachedInfo().Cluster.Replicas
			n := 0
			for _, p := range peers {
				if p.Current && !p.Offline {
					n++
				}
			}
			if n == 2 {
				return
			}
		}
		if ctx.Err() != nil {
			c.t.Fatalf("the third broker does not come back: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// record is what was published and what was received.
type record struct {
	t                *testing.T
	s                *Source
	published, ended map[string]bool
	again            int
}

// publish repeats the same items until they are confirmed, as the coordinator does.
func (r *record) publish(ctx context.Context, name string, n int) {
	var outs []source.Out
	for i := range n {
		outs = append(outs, source.Out{ID: fmt.Sprintf("%s-%d", name, i), Body: []byte("x")})
		r.published[outs[i].ID] = true
	}
	for {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := r.s.Publish(try, outs...)
		cancel()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			r.t.Fatalf("publish: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// end receives until the end of n more items is confirmed.
func (r *record) end(ctx context.Context, n int) {
	r.t.Helper()
	for want := len(r.ended) + n; len(r.ended) < want; {
		ms, err := r.s.Receive(ctx, min(20, want-len(r.ended)))
		if ctx.Err() != nil {
			r.t.Fatalf("%d of %d items never arrived", len(r.published)-len(r.ended), len(r.published))
		}
		if err != nil {
			r.t.Log(err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		err = r.s.Ack(ctx, ms...)
		for _, m := range ms {
			switch {
			case r.ended[m.ID]:
				r.t.Errorf("%s comes again, delivery %d, after its end was confirmed", m.ID, m.Deliveries)
			case !r.published[m.ID]:
				r.t.Errorf("%s was never published", m.ID)
			case source.ErrorOf(err, m) != nil:
				r.again++
			default:
				r.ended[m.ID] = true
			}
		}
	}
}

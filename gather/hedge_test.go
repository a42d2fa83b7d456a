package gather

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// warm lets the root measure its leaves.
func warm(t testing.TB, r *testRoot) {
	t.Helper()
	eventually(t, "the latency is known", func() bool {
		r.get(t, "/")
		_, ok := r.root.hedger.Delay(r.root.hedger.class("GET /"), "GET")
		return ok
	})
}

func TestHedgeGoesToTheOtherReplica(t *testing.T) {
	slow, fast := newLeaf(t, say("x")), newLeaf(t, say("x"))
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Hedge.Budget, s.Eject.Consecutive = leaves([]*leafServer{slow, fast}), "50%", 0
	})
	warm(t, r)
	var hedged atomic.Int64
	slow.set(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Retinue-Hedge") == "1" {
			t.Error("a hedge goes to the replica that it is to help against")
		}
		hang(w, req)
	})
	r.replica(fast).inflight.Add(100) // so that the slow one is what anybody would choose
	fast.set(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Retinue-Hedge") == "1" {
			hedged.Add(1)
		}
		io.WriteString(w, "fast")
	})
	eventually(t, "a hedge wins", func() bool {
		a := r.get(t, "/")
		if a.status != 200 || a.body != "fast\n" {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return a.header.Get("Retinue-Hedges") == "1/1" && hedged.Load() > 0
	})
	eventually(t, "the losers are cancelled", func() bool { return slow.alive.Load() == 0 })
}

// TestLoserIsCancelledAtOnce: the copy that lost ends while the request still waits for another shard.
func TestLoserIsCancelledAtOnce(t *testing.T) {
	one, two, last := newLeaf(t, say("x")), newLeaf(t, say("x")), newLeaf(t, say("y"))
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Hedge.Budget, s.Eject.Consecutive = leaves([]*leafServer{one, two}, []*leafServer{last}), "50%", 0
	})
	warm(t, r)
	// Of the two replicas the one that is asked first hangs until it is cancelled, and the other shard answers only then:
	// whatever replica is chosen and whatever shard is reached first, the answer stands for the loser's end.
	var asked atomic.Bool
	freed := make(chan struct{})
	loses := func(w http.ResponseWriter, req *http.Request) {
		if asked.Swap(true) {
			io.WriteString(w, "x")
			return
		}
		<-req.Context().Done()
		close(freed)
	}
	one.set(loses)
	two.set(loses)
	last.set(func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-freed:
		case <-req.Context().Done():
		}
		io.WriteString(w, "y")
	})
	if a := r.get(t, "/", "Retinue-Deadline-Ms", "5000"); a.status != 200 {
		t.Fatalf("the request waited for a loser that nobody cancelled: %d %s", a.status, a.body)
	}
}

func TestNoHedge(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		change func(*Settings)
	}{
		"method":  {"POST", func(s *Settings) {}},
		"budget":  {"GET", func(s *Settings) { s.Hedge.Budget, s.Hedge.Quantile = "0%", "0.5" }},
		"minimum": {"GET", func(s *Settings) { s.Hedge.Min = "8s" }},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newLeaf(t, say("x")), newLeaf(t, say("x"))
			r := newTestRoot(t, func(s *Settings) {
				s.Leaf.Static, s.Hedge.Budget = leaves([]*leafServer{a, b}), "50%"
				c.change(s)
			})
			for range 200 {
				r.do(t, c.method, "/", "")
			}
			slowly := func(w http.ResponseWriter, req *http.Request) {
				time.Sleep(60 * time.Millisecond)
				io.WriteString(w, "x")
			}
			a.set(slowly)
			b.set(slowly)
			before := a.calls.Load() + b.calls.Load()
			for range 10 {
				r.do(t, c.method, "/", "")
			}
			if n := a.calls.Load() + b.calls.Load() - before; n != 10 {
				t.Errorf("10 requests became %d calls", n)
			}
		})
	}
}

// TestHedgeBudget is a canary for hedging without a budget: every call is slow, so every call would be hedged.
func TestHedgeBudget(t *testing.T) {
	a, b := newLeaf(t, say("x")), newLeaf(t, say("x"))
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Hedge.Budget, s.Eject.Consecutive = leaves([]*leafServer{a, b}), "3%", 0
		s.Hedge.Quantile = "0.2" // so that slow calls stay slower than the quantile for long
	})
	warm(t, r)
	slowly := func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-time.After(30 * time.Millisecond):
		case <-req.Context().Done():
		}
		io.WriteString(w, "x")
	}
	a.set(slowly)
	b.set(slowly)
	start := time.Now()
	for range 100 {
		r.get(t, "/")
	}
	state := r.root.hedger.budget.State(r.root.clock.Now())
	all := a.calls.Load() + b.calls.Load()
	// The share of all calls, and a reserve for each window that has begun.
	most := 0.03*float64(all) + fewTokens*(1+time.Since(start).Seconds()/budgetWindow)
	if got := float64(state.Spent); got > most+1 || got == 0 || state.Refused == 0 {
		t.Errorf("%g hedges for %d calls with a budget of 3%%, at most %g: %+v", got, all, most, state)
	}
}

func TestNoHedgeAfterPushback(t *testing.T) {
	busy, slow := newLeaf(t, say("x")), newLeaf(t, say("x"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Hedge.Budget = leaves([]*leafServer{busy, slow}), "50%" })
	warm(t, r)
	busy.set(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "10"); w.WriteHeader(503) })
	slow.set(func(w http.ResponseWriter, req *http.Request) {
		time.Sleep(250 * time.Millisecond) // hedged, and overdue
		io.WriteString(w, "x")
	})
	eventually(t, "the busy replica has pushed back", func() bool { r.get(t, "/"); return r.replica(busy).pushback.Load() != 0 })
	before := busy.calls.Load()
	for range 10 {
		r.get(t, "/")
	}
	if n := busy.calls.Load() - before; n != 0 {
		t.Errorf("%d calls to a replica that asked to be left alone", n)
	}
}

func TestFlappingReplicaStaysOutLonger(t *testing.T) {
	bad, good := newLeaf(t, status(500)), newLeaf(t, say("x"))
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Partial.Policy, s.Eject.For = leaves([]*leafServer{bad, good}), "best", "50ms..1h"
	})
	rep := r.replica(bad)
	longest := time.Duration(0)
	eventually(t, "it is ejected for longer and longer", func() bool {
		r.get(t, "/")
		if until := rep.outUntil.Load(); until != 0 {
			longest = max(longest, time.Duration(until)-time.Duration(r.root.clock.Now()))
		}
		return longest > 300*time.Millisecond
	})
}

// TestOneRequestDoesNotTakeTheBudget: when all shards are late at once, a request has few hedges, however large the budget is.
func TestOneRequestDoesNotTakeTheBudget(t *testing.T) {
	const shards = 40
	var all [][]*leafServer
	var slow atomic.Bool
	for range shards {
		var replicas []*leafServer
		for range 2 {
			replicas = append(replicas, newLeaf(t, func(w http.ResponseWriter, req *http.Request) {
				if slow.Load() {
					time.Sleep(300 * time.Millisecond)
				}
				io.WriteString(w, "x")
			}))
		}
		all = append(all, replicas)
	}
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Hedge.Budget, s.Eject.Consecutive = leaves(all...), "100%", 0
	})
	warm(t, r)
	slow.Store(true)
	a := r.get(t, "/", "Retinue-Deadline-Ms", "5000")
	// On a busy machine some are answered first, and those are not counted against the request.
	var sent, won int
	if _, err := fmt.Sscanf(a.header.Get("Retinue-Hedges"), "%d/%d", &sent, &won); a.status != 200 || err != nil || sent < 1 || sent-won > shards/10 {
		t.Errorf("%d, hedges %q, want 1 to %d of %d shards", a.status, a.header.Get("Retinue-Hedges"), shards/10, shards)
	}
}

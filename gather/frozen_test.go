package gather

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
)

// The tests of this file run in bubbles whose time passes when nothing else can go on: a loaded machine makes them slower, but changes
// nothing in them. Only the network is not real: leaves are HTTP servers on pipes.

// pipes is a network inside a bubble.
type pipes struct {
	dial map[string]chan net.Conn
	gone map[string]*atomic.Bool // nobody answers there: a dial runs into its timeout
}

type pipeListener struct {
	addr   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: l.addr, Net: "pipe"} }

// bubbleLeaf is a leaf whose answers take some time, until it freezes.
type bubbleLeaf struct {
	url     string
	takes   atomic.Int64 // for one answer
	rarely  atomic.Int64 // for one of thirty; 0: there are none
	frozen  atomic.Bool
	gone    atomic.Bool // with its machine: it takes no connections either
	calls   atomic.Int64
	waiting atomic.Int64 // calls that it does not answer
}

func (l *bubbleLeaf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.calls.Add(1)
	takes := time.Duration(l.takes.Load())
	if d := l.rarely.Load(); d > 0 && rand.IntN(30) == 0 {
		takes = time.Duration(d)
	}
	select {
	case <-time.After(takes + time.Duration(rand.Int64N(int64(takes)/2+1))):
	case <-r.Context().Done():
		return
	}
	if l.frozen.Load() { // also what came before
		l.waiting.Add(1)
		defer l.waiting.Add(-1)
		<-r.Context().Done()
		return
	}
	io.WriteString(w, "x\n")
}

// bubbleWorld is a root over leaves: [shard][replica].
type bubbleWorld struct {
	root   *Root
	leaves [][]*bubbleLeaf
}

// bubble runs a test of a root with so many shards of two replicas.
func bubble(t *testing.T, shards int, takes time.Duration, change func(*Settings), test func(t *testing.T, w *bubbleWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &bubbleWorld{}
		network := pipes{map[string]chan net.Conn{}, map[string]*atomic.Bool{}}
		s := DefaultSettings()
		for shard := range shards {
			var pair []*bubbleLeaf
			var urls string
			for _, node := range []string{"a", "b"} {
				host := fmt.Sprintf("leaf-%d%s:80", shard, node)
				l := &bubbleLeaf{url: "http://" + host}
				l.takes.Store(int64(takes))
				pair = append(pair, l)
				urls += "," + l.url
				ln := &pipeListener{addr: host, conns: make(chan net.Conn), closed: make(chan struct{})}
				network.dial[host], network.gone[host] = ln.conns, &l.gone
				srv := &http.Server{Handler: l}
				go srv.Serve(ln)
				defer srv.Close()
			}
			w.leaves = append(w.leaves, pair)
			s.Leaf.Static = append(s.Leaf.Static, fmt.Sprintf("%d=%s", shard, urls[1:]))
		}
		change(&s)
		cfg, err := s.Config()
		if err != nil {
			t.Fatal(err)
		}
		if w.root, err = New(cfg, clock.Bubble(), hclog.NewNullLogger()); err != nil {
			t.Fatal(err)
		}
		defer w.root.Close()
		w.root.leaves.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
			to, ok := network.dial[addr]
			if !ok {
				return nil, errors.New("no such leaf: " + addr)
			}
			if network.gone[addr].Load() {
				select {
				case <-time.After(5 * time.Second):
				case <-ctx.Done():
				}
				return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
			}
			ours, theirs := net.Pipe()
			select {
			case to <- theirs:
				return ours, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		test(t, w)
	})
}

// ask sends one request and says what came of it.
func (w *bubbleWorld) ask() (status int, body string, took time.Duration) {
	began := time.Now()
	rec := httptest.NewRecorder()
	w.serve(rec)
	return rec.Code, rec.Body.String(), time.Since(began)
}

func (w *bubbleWorld) serve(rw http.ResponseWriter) {
	w.root.ServeHTTP(rw, &http.Request{Method: "GET", URL: &url.URL{Path: "/q"}, Header: http.Header{}})
}

// clients ask, so many at once, so many requests each, with a pause after each. Their answers are judged, and how long each took is returned.
func (w *bubbleWorld) clients(t *testing.T, clients, requests int, pause time.Duration) (all []time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed := map[string]int{}
	for range clients {
		wg.Go(func() {
			for range requests {
				status, body, took := w.ask()
				mu.Lock()
				all = append(all, took)
				if status != http.StatusOK {
					failed[body]++
				}
				mu.Unlock()
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	for body, n := range failed {
		t.Errorf("%d of %d requests failed: %s", n, len(all), body)
	}
	slices.Sort(all)
	return all
}

func (w *bubbleWorld) calls() (n int64) {
	for _, pair := range w.leaves {
		for _, l := range pair {
			n += l.calls.Load()
		}
	}
	return n
}

func (w *bubbleWorld) freeze(on, gone bool) {
	for _, pair := range w.leaves {
		pair[0].frozen.Store(on)
		pair[0].gone.Store(gone)
	}
}

// TestFrozenReplica: one of the two replicas of every shard stops answering under load, with what it has under way. No request fails,
// none waits for its deadline, and the replicas are left alone and come back.
func TestFrozenReplica(t *testing.T) {
	const deadline = 10 * time.Second
	for name, c := range map[string]struct {
		shards, clients int
		warm            int // requests of each client before
		idle            time.Duration
		change          func(*Settings)
		gone            bool
		most            time.Duration // that a request may take
	}{
		"few shards":                       {shards: 4, clients: 8, warm: 40, most: time.Second},
		"one client":                       {shards: 4, clients: 1, warm: 200, most: time.Second},
		"many shards":                      {shards: 20, clients: 4, warm: 7, most: time.Second},
		"after an idle minute":             {shards: 10, clients: 30, warm: 5, idle: time.Minute, most: time.Second},
		"a root that has measured nothing": {shards: 10, clients: 40, change: func(s *Settings) { s.Retry.Budget = "1%" }, most: deadline * 2 / 3},
		"too few calls for an ejection":    {shards: 30, clients: 2, most: deadline * 2 / 3},
		"their machine is gone":            {shards: 10, clients: 8, warm: 20, gone: true, most: time.Second},
		"without hedging":                  {shards: 10, clients: 8, warm: 40, change: func(s *Settings) { s.Hedge.Budget = "0%" }, most: deadline * 2 / 3},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, c.shards, 4*time.Millisecond, func(s *Settings) {
				s.Deadline.Default, s.Deadline.Max = deadline.String(), deadline.String()
				if c.change != nil {
					c.change(s)
				}
			}, func(t *testing.T, w *bubbleWorld) {
				if c.warm > 0 {
					w.clients(t, c.clients, c.warm, 0)
				}
				time.Sleep(c.idle)
				go func() {
					time.Sleep(time.Millisecond) // with everything under way
					w.freeze(true, c.gone)
				}()
				took := w.clients(t, c.clients, 5, 0)
				if slowest := took[len(took)-1]; slowest > c.most {
					t.Errorf("the slowest of %d requests took %s, want at most %s", len(took), slowest, c.most)
				}
				// For as long as it lasts nobody waits for them but single probes.
				if took = w.clients(t, 2, 20, 600*time.Millisecond); took[len(took)-1] > c.most {
					t.Errorf("later the slowest took %s", took[len(took)-1])
				}
				synctest.Wait()
				for shard, pair := range w.leaves {
					if n := pair[0].waiting.Load(); n != 0 {
						t.Errorf("%d calls still wait for the frozen replica of shard %d", n, shard)
					}
				}
				w.freeze(false, false)
				w.clients(t, 1, 25, 2*time.Second)
				if _, out := w.root.fleet.count(); out != 0 {
					t.Errorf("%d replicas did not come back", out)
				}
			})
		})
	}
}

// TestOutageIsNotMultiplied: nothing answers any more, or everything is late. The load grows by no more than the budgets say.
func TestOutageIsNotMultiplied(t *testing.T) {
	const shards, clients, requests = 10, 20, 8
	for name, hit := range map[string]func(l *bubbleLeaf){
		"nothing answers":    func(l *bubbleLeaf) { l.frozen.Store(true) },
		"everything is late": func(l *bubbleLeaf) { l.takes.Store(int64(600 * time.Millisecond)) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, shards, 4*time.Millisecond, func(s *Settings) { s.Deadline.Default, s.Deadline.Max = "2s", "2s" }, func(t *testing.T, w *bubbleWorld) {
				for range 100 {
					w.ask()
				}
				for _, pair := range w.leaves {
					hit(pair[0])
					hit(pair[1])
				}
				before, began := w.calls(), time.Now()
				inFlight := int64(clients * shards) // when replicas were ejected: sent once more, for each ejection in its time
				var wg sync.WaitGroup
				for range clients {
					wg.Go(func() {
						for range requests {
							w.ask()
						}
					})
				}
				wg.Wait()
				windows := 1 + time.Since(began).Seconds()/budgetWindow
				own := int64(clients * requests * shards)
				extra := w.calls() - before - own
				cfg := &w.root.cfg
				most := (cfg.Retry+cfg.Hedge.Budget)*float64(own) + windows*float64(retryReserve(cfg)+fewTokens) + windows*float64(inFlight)
				t.Logf("%d calls of requests, %d more (at most %.0f) in %s", own, extra, most, time.Since(began))
				if float64(extra) > most || extra > own/2 {
					t.Errorf("an outage makes %d calls of %d, at most %.0f more", own+extra, own, most)
				}
			})
		})
	}
}

func TestPatience(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ leaf, delay, want time.Duration }{
		{500 * ms, 0, 250 * ms},       // nothing is measured, or nothing is hedged
		{500 * ms, 20 * ms, 200 * ms}, // ten times the delay
		{500 * ms, 2 * ms, 100 * ms},  // a pause of a healthy process
		{500 * ms, 40 * ms, 250 * ms},
		{500 * ms, 400 * ms, 400 * ms}, // never before the hedge
		{20 * ms, 2 * ms, 10 * ms},
		{-5 * ms, 0, ms}, // late already
	} {
		if got := patience(c.leaf, c.delay); got != c.want {
			t.Errorf("patience(%s, %s) = %s, want %s", c.leaf, c.delay, got, c.want)
		}
	}
}

// froze is what one freeze did to requests.
type froze struct {
	slow          int           // requests that took longer than any does without a freeze
	last          time.Duration // when the last of them was asked
	back          time.Duration // from when on the p99 of all that followed was within twice that of before
	usual, worst  time.Duration // p99 before; the slowest
	asked, failed int
}

// freezeOnce freezes a replica of every shard, while a request comes every ten milliseconds.
func (w *bubbleWorld) freezeOnce(t *testing.T, takes, frozen time.Duration) (f froze) {
	before := w.clients(t, 1, 200, 10*time.Millisecond)
	f.usual = before[len(before)*99/100]
	w.freeze(true, false)
	type one struct{ at, took time.Duration }
	var all []one
	for began := time.Now(); time.Since(began) < frozen; {
		at := time.Since(began)
		status, _, took := w.ask()
		if status != http.StatusOK {
			f.failed++
		}
		all = append(all, one{at, took})
		if took > takes*3/2+takes/2 { // no leaf takes longer than one and a half
			f.slow, f.last = f.slow+1, at
		}
		f.worst = max(f.worst, took)
		time.Sleep(10 * time.Millisecond)
	}
	f.asked, f.back = len(all), frozen
	above := 0
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].took > 2*f.usual {
			above++
		}
		if above*100 <= len(all)-i {
			f.back = all[i].at
		}
	}
	return f
}

// TestFrozenReplicaIsFoundOutSoon: a replica of every shard freezes while requests come one by one. Those that meet it are slow, by a
// hedge's delay; soon after there are none, and none later either.
func TestFrozenReplicaIsFoundOutSoon(t *testing.T) {
	const takes, frozen, soon = 4 * time.Millisecond, 8 * time.Second, 500 * time.Millisecond
	began := time.Now()
	var all []froze
	for range *freezes {
		bubble(t, 10, takes, func(*Settings) {}, func(t *testing.T, w *bubbleWorld) {
			f := w.freezeOnce(t, takes, frozen)
			all = append(all, f)
			if f.failed > 0 || f.slow == 0 || f.last > soon {
				t.Errorf("%d of %d requests failed, %d were slow, the last one %s after the freeze; want 0, and some until %s", f.failed, f.asked, f.slow, f.last, soon)
			}
		})
	}
	spread := func(of func(froze) time.Duration) string {
		var list []time.Duration
		for _, f := range all {
			list = append(list, of(f))
		}
		slices.Sort(list)
		return fmt.Sprintf("%s, %s, %s", list[len(list)/2].Round(100*time.Microsecond), list[len(list)*9/10].Round(100*time.Microsecond), list[len(list)-1].Round(100*time.Microsecond))
	}
	asked, failed, slow := 0, 0, 0
	for _, f := range all {
		asked, failed, slow = asked+f.asked, failed+f.failed, slow+f.slow
	}
	rows := [][2]string{{"freezes", fmt.Sprint(len(all))}, {"requests while it was frozen", fmt.Sprint(asked)}, {"failed", fmt.Sprint(failed)}, {"slower than any before", fmt.Sprint(slow)},
		{"p99 before: median, p90, largest of the freezes", spread(func(f froze) time.Duration { return f.usual })},
		{"the slowest request: median, p90, largest", spread(func(f froze) time.Duration { return f.worst })},
		{"p99 back within twice its value, after: median, p90, latest", spread(func(f froze) time.Duration { return f.back })},
		{"the last request that was slower than any before, after: median, p90, latest", spread(func(f froze) time.Duration { return f.last })}}
	t.Log(rows)
	report(t, began, "A replica of every shard freezes", fmt.Sprintf("Ten shards with two replicas, each answer after %s to %s, a request every 10 ms and what it takes; one replica of each shard freezes for %s. In a bubble of time (testing/synctest), where a busy machine changes nothing: this is what the root decides, without what a processor adds.",
		takes, takes*3/2, frozen), rows...)
}

// TestProbesAreHedgedSooner: where one call in thirty is slow, and others wait for them, a frozen replica costs about one request that
// time. The next ones know whom they wait for. Which replica is asked is chance, so a single freeze may cost none, or a few.
func TestProbesAreHedgedSooner(t *testing.T) {
	const freezes = 20
	slow := 0
	for range freezes {
		bubble(t, 1, 4*time.Millisecond, func(*Settings) {}, func(t *testing.T, w *bubbleWorld) {
			for _, l := range w.leaves[0] {
				l.rarely.Store(int64(40 * time.Millisecond))
			}
			w.clients(t, 1, 500, 0)
			for _, l := range w.leaves[0] {
				l.rarely.Store(0)
			}
			time.Sleep(budgetWindow * time.Second)
			w.freeze(true, false)
			for range 50 {
				if _, _, took := w.ask(); took > 30*time.Millisecond {
					slow++
				}
			}
			if _, out := w.root.fleet.count(); out != 1 {
				t.Errorf("%d replicas are ejected, want 1", out)
			}
		})
	}
	// With it one costs one at the mean, and without four, so that twenty tell the two apart by more than three standard deviations.
	if slow > 2*freezes {
		t.Errorf("%d requests waited for the frozen replicas of %d freezes, want about one for each", slow, freezes)
	}
}

// TestHedgesThatWinMakeRoom: every call of a request waits for a frozen node. It may have few hedges at once, but more when they help.
func TestHedgesThatWinMakeRoom(t *testing.T) {
	bubble(t, 10, 4*time.Millisecond, func(*Settings) {}, func(t *testing.T, w *bubbleWorld) {
		w.clients(t, 1, 100, 0)
		w.freeze(true, false)
		for _, p := range w.root.fleet.pools {
			p.list()[1].inflight.Add(1000) // so that the others are what anybody would choose
		}
		if status, body, took := w.ask(); status != http.StatusOK || took >= leastPatience {
			t.Errorf("%d after %s, want an answer before calls are overdue: %s", status, took, body)
		}
	})
}

// flushed is a client's side that looks around when an answer is sent off.
type flushed struct {
	*httptest.ResponseRecorder
	look func(body string)
}

func (f flushed) Flush() { f.look(f.Body.String()) }

// TestAnswersComeBeforeCancellations: at the deadline the answer is sent off whole before leaf calls are cancelled, and they are.
func TestAnswersComeBeforeCancellations(t *testing.T) {
	for _, policy := range []string{"fail", "best"} {
		t.Run(policy, func(t *testing.T) {
			bubble(t, 3, 4*time.Millisecond, func(s *Settings) { s.Partial.Policy, s.Retry.Budget = policy, "0%" }, func(t *testing.T, w *bubbleWorld) {
				waiting := func() (n int64) {
					synctest.Wait()
					for _, pair := range w.leaves[1:] {
						n += pair[0].waiting.Load() + pair[1].waiting.Load()
					}
					return n
				}
				for _, pair := range w.leaves[1:] {
					pair[0].frozen.Store(true)
					pair[1].frozen.Store(true)
				}
				looks, want := 0, map[string]string{"fail": "\"cause\":\"timeout\"", "best": "x\n"}[policy]
				w.serve(flushed{httptest.NewRecorder(), func(body string) {
					if looks++; waiting() != 2 || !strings.Contains(body, want) {
						t.Errorf("%d calls wait for the leaves when %q is sent off, want 2 and %q", waiting(), body, want)
					}
				}})
				if looks != 1 || waiting() != 0 {
					t.Errorf("sent off %d times, want once; %d calls still wait", looks, waiting())
				}
			})
		})
	}
}

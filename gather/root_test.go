package gather

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func three(t testing.TB, handlers ...http.HandlerFunc) (list []*leafServer, static []string) {
	var shards [][]*leafServer
	for _, h := range handlers {
		l := newLeaf(t, h)
		list = append(list, l)
		shards = append(shards, []*leafServer{l})
	}
	return list, leaves(shards...)
}

func TestWholeAnswer(t *testing.T) {
	_, static := three(t, say("a\n"), say("b"), status(204))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static = static })
	a := r.get(t, "/q?x=1", "Retinue-Request-Id", "me-1")
	lines := strings.Fields(a.body)
	slices.Sort(lines)
	if a.status != 200 || !slices.Equal(lines, []string{"a", "b"}) {
		t.Fatalf("%d %q", a.status, a.body)
	}
	for name, want := range map[string]string{"Retinue-Coverage": "1", "Retinue-Degraded": "", "Cache-Control": "", "Retinue-Hedges": "0/0", "Retinue-Request-Id": "me-1",
		"Retinue-Shards": "total=3 ok=2 empty=1 partial=0 timeout=0 failed=0 missing=0 skipped=0", "Content-Type": "application/x-ndjson"} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.HasPrefix(a.header.Get("Server-Timing"), "leaves;dur=") {
		t.Errorf("Server-Timing: %q", a.header.Get("Server-Timing"))
	}
}

func TestWhatALeafGets(t *testing.T) {
	var mu sync.Mutex
	got := map[string]*http.Request{}
	bodies := map[string]string{}
	h := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got[r.Header.Get("Retinue-Shard")] = r
		bodies[r.Header.Get("Retinue-Shard")] = string(b)
	}
	_, static := three(t, h, h)
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Leaf.Headers, s.Leaf.Path = static, []string{"X-Tenant"}, "/base"
	})
	a := r.do(t, "POST", "/a%2Fb/c?q=1&r=%20", "hello", "X-Tenant", "blue", "X-Other", "no", "Authorization", "Bearer x", "Retinue-Deadline-Ms", "900",
		"Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Retinue-Hop", "2", "User-Agent", "me")
	if a.status != 200 {
		t.Fatal(a.status, a.body)
	}
	spans := map[string]bool{}
	for _, label := range []string{"0/2", "1/2"} {
		req := got[label]
		if req == nil {
			t.Fatalf("nothing came for %s: %v", label, got)
		}
		if req.Method != "POST" || req.RequestURI != "/base/a%2Fb/c?q=1&r=%20" || bodies[label] != "hello" {
			t.Errorf("%s %s %q", req.Method, req.RequestURI, bodies[label])
		}
		for name, want := range map[string]string{"X-Tenant": "blue", "X-Other": "", "Authorization": "Bearer x", "Retinue-Hop": "3", "Retinue-Hedge": "0", "User-Agent": "me",
			"Retinue-Request-Id": a.header.Get("Retinue-Request-Id"), "Accept-Encoding": ""} {
			if v := req.Header.Get(name); v != want {
				t.Errorf("%s: %q, want %q", name, v, want)
			}
		}
		left, err := ParseDeadline(req.Header.Get("Retinue-Deadline-Ms"))
		if err != nil || left <= 0 || left > 893*time.Millisecond {
			t.Errorf("deadline %s, %v", left, err)
		}
		tp := req.Header.Get("Traceparent")
		if !strings.HasPrefix(tp, "00-0af7651916cd43dd8448eb211c80319c-") || !strings.HasSuffix(tp, "-01") || strings.Contains(tp, "b7ad6b7169203331") || ParseTrace(tp).id != "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("traceparent %q", tp)
		}
		spans[tp] = true
	}
	if len(spans) != 2 {
		t.Errorf("two calls share a span: %v", spans)
	}
}

func TestPolicies(t *testing.T) {
	// Weights 1, 2, 5: shard 2 is 62.5 % of the data.
	for _, c := range []struct {
		policy  string
		prefer  string
		leaves  []http.HandlerFunc
		status  int
		cover   string
		degrade string
	}{
		{"fail", "", []http.HandlerFunc{say("a"), say("b"), say("c")}, 200, "1", ""},
		{"fail", "", []http.HandlerFunc{say("a"), say("b"), status(500)}, 503, "0.375", "failed"},
		{"coverage(0.6)", "", []http.HandlerFunc{status(500), status(500), say("c")}, 200, "0.625", "failed"},
		{"coverage(0.6)", "0.7", []http.HandlerFunc{status(500), status(500), say("c")}, 503, "0.625", "failed"},
		{"coverage(0.6)", "0.1", []http.HandlerFunc{status(500), say("b"), status(500)}, 503, "0.25", "failed"},
		{"quorum(2)", "", []http.HandlerFunc{say("a"), say("b"), status(500)}, 200, "0.375", "failed"},
		{"quorum(2)", "", []http.HandlerFunc{say("a"), status(500), status(500)}, 503, "0.125", "failed"},
		{"quorum(2)", "fail", []http.HandlerFunc{say("a"), say("b"), status(500)}, 503, "0.375", "failed"},
		{"best", "", []http.HandlerFunc{status(500), status(500), status(500)}, 200, "0", "failed"},
		{"best", "1", []http.HandlerFunc{say("a"), say("b"), status(500)}, 503, "0.375", "failed"},
		{"best", "", []http.HandlerFunc{say("a"), share("0.5"), status(204)}, 200, "0.875", "partial"},
		{"fail", "", []http.HandlerFunc{say("a"), share("0.5"), say("c")}, 503, "", "partial"},
		{"best", "", []http.HandlerFunc{say("a"), share("nonsense"), say("c")}, 200, "0.75", "failed"},
		{"fail", "", []http.HandlerFunc{say("a"), status(206), say("c")}, 503, "0.75", "failed"},
		{"fail", "", []http.HandlerFunc{status(404), status(404), status(404)}, 404, "0", "failed"},
		{"best", "1", []http.HandlerFunc{status(404), status(404), status(404)}, 404, "0", "failed"},
		{"best", "", []http.HandlerFunc{hang, say("b"), say("c")}, 200, "0.875", "timeout"},
		{"fail", "", []http.HandlerFunc{hang, say("b"), say("c")}, 504, "", "timeout"},
	} {
		t.Run(fmt.Sprint(c.policy, c.prefer, c.status, c.cover), func(t *testing.T) {
			_, static := three(t, c.leaves...)
			r := newTestRoot(t, func(s *Settings) {
				s.Leaf.Static, s.Leaf.Weights, s.Partial.Policy = static, []string{"0=1;1=2", "2=5"}, c.policy
			})
			headers := []string{"Retinue-Deadline-Ms", "10000"}
			if strings.Contains(c.degrade, "timeout") {
				headers[1] = "300"
			}
			if c.prefer != "" {
				headers = append(headers, "Prefer", "retinue-partial="+c.prefer)
			}
			a := r.get(t, "/", headers...)
			if a.status != c.status {
				t.Fatalf("%d %s %v", a.status, a.body, a.header)
			}
			if c.status == 200 {
				if got := a.header.Get("Retinue-Coverage"); got != c.cover {
					t.Errorf("coverage %s, want %s (%s)", got, c.cover, a.header.Get("Retinue-Shards"))
				}
				if got := a.header.Get("Retinue-Degraded"); got != c.degrade {
					t.Errorf("degraded %q", got)
				}
			} else {
				p := a.problem(t)
				if p.Status != c.status || p.ID == "" || len(p.Shards) == 0 || a.header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("%s", a.body)
				}
			}
			if noStore := a.header.Get("Cache-Control") == "no-store"; noStore != (c.degrade != "") {
				t.Errorf("Cache-Control %q", a.header.Get("Cache-Control"))
			}
		})
	}
}

// share answers for a part of a shard.
func share(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retinue-Coverage", s)
		io.WriteString(w, "part\n")
	}
}

func TestMissingShard(t *testing.T) {
	_, static := three(t, say("a"), say("b"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Leaf.Shards = static, 4 })
	a := r.get(t, "/")
	p := a.problem(t)
	if a.status != 503 || p.Cause != "missing" || *p.Coverage > 0.5 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if ready := r.get(t, "/-/readyz"); ready.status != 503 {
		t.Errorf("ready with a missing shard: %s", ready.body)
	}
	if healthy := r.get(t, "/-/healthz"); healthy.status != 200 {
		t.Errorf("not healthy: %s", healthy.body)
	}
}

func TestRetryOnAnotherReplica(t *testing.T) {
	for name, broken := range map[string]http.HandlerFunc{"503": status(503), "429": status(429), "reset": func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }} {
		t.Run(name, func(t *testing.T) {
			bad, good := newLeaf(t, broken), newLeaf(t, say("good"))
			r := newTestRoot(t, func(s *Settings) { s.Leaf.Static = leaves([]*leafServer{bad, good}) })
			for range 20 {
				if a := r.get(t, "/"); a.status != 200 || a.body != "good\n" {
					t.Fatalf("%d %s", a.status, a.body)
				}
			}
			if bad.calls.Load() == 0 {
				t.Error("the bad replica was never tried")
			}
			if a := r.do(t, "POST", "/", "write"); a.status != 200 && bad.calls.Load() > 0 && a.status != 503 {
				t.Errorf("%d", a.status)
			}
		})
	}
}

func TestAWriteIsNotSentTwice(t *testing.T) {
	bad, good := newLeaf(t, status(503)), newLeaf(t, say("good"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Eject.Consecutive = leaves([]*leafServer{bad, good}), 0 })
	for range 30 {
		r.do(t, "POST", "/", "write")
	}
	if got := bad.calls.Load() + good.calls.Load(); got != 30 {
		t.Errorf("30 writes became %d calls", got)
	}
}

func TestClientAbortCancelsLeaves(t *testing.T) {
	l, static := three(t, hang, hang, say("c"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static = static })
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", r.URL, nil)
	done := make(chan error, 1)
	go func() { _, err := r.Client().Do(req); done <- err }()
	eventually(t, "leaves are asked", func() bool { return l[0].alive.Load() == 1 && l[1].alive.Load() == 1 })
	cancel()
	<-done
	start := time.Now()
	eventually(t, "leaves see the cancellation", func() bool { return l[0].alive.Load() == 0 && l[1].alive.Load() == 0 })
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("leaves worked on for %s", took)
	}
	eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 && r.root.busy.Load() == 0 })
}

func TestDeadlineCancelsLeaves(t *testing.T) {
	l, static := three(t, hang, say("b"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static = static })
	if a := r.get(t, "/", "Retinue-Deadline-Ms", "100"); a.status != 504 || a.problem(t).Cause != "timeout" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	eventually(t, "the leaf sees the cancellation", func() bool { return l[0].alive.Load() == 0 })
}

func TestEarlyReturn(t *testing.T) {
	l, static := three(t, say("a"), say("b"), hang)
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Partial.Policy, s.Partial.WaitAfter = static, "quorum(2)", "0..0" })
	start := time.Now()
	a := r.get(t, "/", "Retinue-Deadline-Ms", "19000")
	if a.status != 200 || a.header.Get("Retinue-Degraded") != "timeout" || time.Since(start) > 10*time.Second {
		t.Fatalf("%d %s after %s", a.status, a.header.Get("Retinue-Degraded"), time.Since(start))
	}
	eventually(t, "the slow leaf is cancelled", func() bool { return l[2].alive.Load() == 0 })
}

func TestLoopsEnd(t *testing.T) {
	var self string
	l := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), "GET", self, nil)
		req.Header = r.Header.Clone()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
	})
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.MaxHops = leaves([]*leafServer{l}), 4 })
	self = r.URL
	if a := r.get(t, "/"); a.status != 503 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := l.calls.Load(); n != 4 {
		t.Errorf("%d calls for at most 4 hops", n)
	}
}

func TestLimits(t *testing.T) {
	_, static := three(t, say(strings.Repeat("x", 2000)))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Limits.LeafResponse, s.Limits.Request = static, "1000B", "100B" })
	if a := r.get(t, "/"); a.status != 503 || !strings.Contains(a.body, "larger than the limit") {
		t.Errorf("a leaf's body above the limit: %d %s", a.status, a.body)
	}
	if a := r.do(t, "POST", "/", strings.Repeat("x", 101)); a.status != 413 {
		t.Errorf("a request above the limit: %d %s", a.status, a.body)
	}
	req, _ := http.NewRequest("POST", r.URL, io.MultiReader(strings.NewReader(strings.Repeat("x", 101)))) // chunked
	resp, err := r.Client().Do(req)
	if err != nil || resp.StatusCode != 413 {
		t.Errorf("a chunked request above the limit: %v %v", resp, err)
	}
	eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 })
}

func TestOverload(t *testing.T) {
	_, static := three(t, hang)
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Limits.Concurrent = static, 1 })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", r.URL, nil)
	go r.Client().Do(req)
	eventually(t, "a request is under way", func() bool { return r.root.busy.Load() == 1 })
	if a := r.get(t, "/"); a.status != 503 || a.header.Get("Retry-After") != "1" || a.problem(t).Cause != "overloaded" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestTreeMultipliesCoverage(t *testing.T) {
	_, left := three(t, say("a"), say("b"), say("c"), status(500)) // 0.75 of its data
	_, right := three(t, say("d"), say("e"))
	child := func(static []string) *leafServer {
		r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Partial.Policy = static, "best" })
		return &leafServer{Server: r.Server}
	}
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Partial.Policy, s.Leaf.Weights = leaves([]*leafServer{child(left)}, []*leafServer{child(right)}), "best", []string{"0=4", "1=2"}
	})
	a := r.get(t, "/")
	if got := a.header.Get("Retinue-Coverage"); got != "0.833333" || a.header.Get("Retinue-Degraded") != "partial" { // (4*0.75+2)/6
		t.Errorf("coverage %s, %s", got, a.header.Get("Retinue-Shards"))
	}
	if got := len(strings.Fields(a.body)); got != 5 {
		t.Errorf("%d lines", got)
	}
}

func TestRouting(t *testing.T) {
	l, static := three(t, say("0"), say("1"), say("2"), say("3"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Route.ShardBy = static, "query:user" })
	for _, key := range []string{"ann", "bob", "carol", "dave"} {
		a := r.get(t, "/?user="+key)
		if want := fmt.Sprint(ShardOf(key, 4), "\n"); a.body != want || a.shards(t).Total != 1 {
			t.Errorf("%s went to %q, want %q", key, a.body, want)
		}
	}
	if a := r.get(t, "/"); a.shards(t).Total != 4 {
		t.Errorf("a read without a key: %v", a.header)
	}
	before := l[0].calls.Load()
	if a := r.do(t, "PUT", "/", "x"); a.status != 400 || l[0].calls.Load() != before {
		t.Errorf("a write without a key: %d", a.status)
	}
	if a := r.do(t, "PUT", "/?user=ann", "x"); a.status != 200 {
		t.Errorf("a write with a key: %d", a.status)
	}
}

func TestRouteContainer(t *testing.T) {
	_, static := three(t, say("0"), say("1"), say("2"))
	router := newLeaf(t, sayJSON(`{"shards":[2,0,2]}`))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Route.URL, s.Merge.URL = static, router.URL+"/route", "json-array" })
	if a := r.get(t, "/"); a.body != "[0,2]\n" || a.shards(t).Total != 2 {
		t.Errorf("%q %v", a.body, a.header)
	}
	router.set(sayJSON(`{"shards":[]}`))
	if a := r.get(t, "/"); a.body != "[]\n" || a.status != 200 || a.header.Get("Retinue-Coverage") != "1" {
		t.Errorf("%d %q", a.status, a.body)
	}
	router.set(sayJSON(`{"shards":[3]}`))
	if a := r.get(t, "/"); a.status != 502 || a.problem(t).Cause != "route_failed" {
		t.Errorf("%d %q", a.status, a.body)
	}
	router.set(status(500))
	if a := r.get(t, "/"); a.status != 502 {
		t.Errorf("%d %q", a.status, a.body)
	}
}

func TestBadHeaders(t *testing.T) {
	_, static := three(t, say("0"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static = static })
	for name, value := range map[string]string{"Retinue-Deadline-Ms": "soon", "Prefer": "retinue-partial=2", "Retinue-Hop": "-1"} {
		if a := r.get(t, "/", name, value); a.status != 400 || a.problem(t).Cause != "bad_request" {
			t.Errorf("%s: %s: %d %s", name, value, a.status, a.body)
		}
	}
	if a := r.get(t, "/", "Retinue-Request-Id", "a b"); a.status != 200 || len(a.header.Get("Retinue-Request-Id")) != 16 {
		t.Errorf("a bad identifier is replaced: %v", a.header)
	}
}

func TestHead(t *testing.T) {
	_, static := three(t, sayJSON(`{"n":1}`), sayJSON(`{"n":2}`))
	for _, merge := range []string{"concat-ndjson", "sum", "json-array", "first"} {
		r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL = static, merge })
		if a := r.do(t, "HEAD", "/", ""); a.status != 200 || a.header.Get("Retinue-Coverage") != "1" {
			t.Errorf("%s: %d %v", merge, a.status, a.header)
		}
	}
}

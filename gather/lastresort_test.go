package gather

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
)

// used are the names of a shard's replicas, with their checks where they are a last resort.
func used(f *fleet, shard int) string {
	m := f.pools[shard].members()
	var names []string
	for _, r := range m.replicas {
		names = append(names, strings.TrimSpace(r.name+" "+m.check(r)))
	}
	return strings.Join(names, ", ")
}

func TestLastResort(t *testing.T) {
	cfg := Config{Shards: 1, Service: "x"}
	f := newFleet(&cfg)
	in := func(name, check string) instance {
		return instance{key: name, name: name, url: "http://" + name + ":1", check: check}
	}
	for i, step := range []struct {
		at      time.Duration
		catalog []instance
		want    string
		again   time.Duration
	}{
		{0, []instance{in("a", "passing"), in("b", "critical")}, "a", 0},
		{time.Second, []instance{in("a", "warning"), in("b", "critical")}, "a warning, b critical", 0},
		{2 * time.Second, []instance{in("a", "maintenance"), in("b", "critical")}, "b critical", 0},
		{3 * time.Second, []instance{in("a", "maintenance"), in("b", "maintenance")}, "", 0},
		{4 * time.Second, []instance{in("b", "passing")}, "b", 0}, // a was in maintenance: it is not kept
		{5 * time.Second, nil, "b deregistered", keepFor},
		{6 * time.Second, []instance{in("c", "critical")}, "c critical, b deregistered", keepFor - time.Second},
		{6500 * time.Millisecond, []instance{in("c", "passing")}, "c", keepFor - 1500*time.Millisecond},
		{6600 * time.Millisecond, []instance{in("b", "passing"), in("c", "passing")}, "b, c", 0}, // b is back
		{7 * time.Second, nil, "b deregistered, c deregistered", keepFor},
		{9 * time.Second, nil, "", 0},
	} {
		if again := f.update(step.catalog, at(step.at)); used(f, 0) != step.want || again != step.again {
			t.Errorf("step %d: uses %q, want %q; again after %s, want %s", i, used(f, 0), step.want, again, step.again)
		}
	}
}

// TestUselessLastResort: a last resort that does not answer is ejected, also the last one; then the shard is missing, until a probe.
func TestUselessLastResort(t *testing.T) {
	p := &pool{cfg: ejectConfig()}
	r := &replica{key: "a"}
	p.set([]*replica{r}, "critical")
	for range p.cfg.Consecutive {
		if got, _ := p.pick(at(0), primary, nil, 1); got != r {
			t.Fatalf("picked %v", got)
		}
		p.bad(r, at(0))
	}
	for _, why := range []purpose{primary, retry, hedge} {
		if got, _ := p.pick(at(0), why, nil, 1); got != nil {
			t.Errorf("a %s is sent to a last resort that was of no use", why)
		}
	}
	if got, _ := p.pick(clock.Instant(r.outUntil.Load()), primary, nil, 1); got != r {
		t.Error("no probe after its time")
	}
	p.set([]*replica{r})
	if got, _ := p.pick(at(0), primary, nil, 1); got != r {
		t.Error("its check passes, and it is the only one, but it is not asked")
	}
}

func TestLeavesWhoseChecksFail(t *testing.T) {
	w := newCatalogWorld(t, consultest.Start(t), 1)
	l := newLeaf(t, say("0"))
	w.register("zero", l, map[string]string{"shard": "0"})
	eventually(t, "the shard is served", func() bool { return w.get(t, "/-/readyz").status == 200 })
	if err := w.client.Agent().UpdateTTL("check-zero", "", api.HealthCritical); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the root knows", func() bool { return len(w.root.fleet.lastResort()) == 1 })
	for range 50 {
		if a := w.get(t, "/", "Retinue-Explain", "1", "Retinue-Request-Id", "asked"); a.status != 200 || a.header.Get("Retinue-Coverage") != "1" {
			t.Fatalf("the only leaf answers, whatever its check says: %d %s", a.status, a.body)
		}
	}
	if call := w.root.timelines.find("asked").Calls[0]; call.Check != api.HealthCritical {
		t.Errorf("the timeline says %+v", call)
	}
	if s := w.root.State().Leaves[0]; !s.LastResort || s.Replicas[0].Check != api.HealthCritical {
		t.Errorf("the state says %+v", s)
	}
	text := httptest.NewRecorder()
	w.root.Admin().ServeHTTP(text, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`retinue_gather_shards_last_resort{root="gather"} 1`, `retinue_gather_last_resort_calls_total{root="gather"} 50`} {
		if !strings.Contains(text.Body.String(), want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}

	// One that passes takes over at once, and the last resort is not asked any more.
	other := newLeaf(t, say("0"))
	w.register("one", other, map[string]string{"shard": "0"})
	eventually(t, "the other is known", func() bool { return w.replica(other) != nil && w.replica(l) == nil })
	before := l.calls.Load()
	for range 20 {
		w.get(t, "/")
	}
	if got := l.calls.Load() - before; got != 0 {
		t.Errorf("%d calls went to a leaf whose check fails", got)
	}
	// What leaves the catalog is kept for a moment, and no longer.
	for _, id := range []string{"zero", "one"} {
		if err := w.client.Agent().ServiceDeregister(id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "they are forgotten", func() bool { return w.get(t, "/").shards(t).Missing == 1 })
}

// fakeConsul answers health queries: any server with what it knows, the leader with the truth.
type fakeConsul struct {
	mu     sync.Mutex
	index  map[string]uint64   // by "any" and "leader"
	leaves map[string][]string // URLs
	asked  int
}

func (f *fakeConsul) set(who string, index uint64, urls ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index[who], f.leaves[who] = index, urls
}

func (f *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who := "leader"
	if r.URL.Query().Has("stale") {
		who = "any"
	}
	wait, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) { // a long poll, short for a test
		f.mu.Lock()
		news := f.index[who] != wait
		f.mu.Unlock()
		if news {
			break
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	entries := []api.ServiceEntry{}
	for i, u := range f.leaves[who] {
		parsed, _ := url.Parse(u)
		host, port, _ := net.SplitHostPort(parsed.Host)
		n, _ := strconv.Atoi(port)
		entries = append(entries, api.ServiceEntry{Node: &api.Node{Node: "n"}, Service: &api.AgentService{ID: fmt.Sprint(i), Address: host, Port: n, Meta: map[string]string{"shard": "0"}}})
	}
	f.asked++
	w.Header().Set("X-Consul-Index", fmt.Sprint(f.index[who]))
	json.NewEncoder(w).Encode(entries)
}

// TestCatalogGoesBack: a server that lags behind does not take leaves away; the leader may.
func TestCatalogGoesBack(t *testing.T) {
	fake := &fakeConsul{index: map[string]uint64{}, leaves: map[string][]string{}}
	srv := httptest.NewServer(fake)
	defer srv.Close()
	l, other := newLeaf(t, say("0")), newLeaf(t, say("0"))
	fake.set("any", 100, l.URL)
	fake.set("leader", 100, l.URL)
	client, err := consulkit.New(consulkit.Config{Address: strings.TrimPrefix(srv.URL, "http://"), MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Service, s.Leaf.Shards = "leaf", 1 })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.root.Watch(ctx, client) })
	defer wg.Wait()
	defer cancel()
	eventually(t, "the leaf is known", func() bool { return r.replica(l) != nil })

	fake.set("any", 50) // restarted, and not caught up: it knows of no leaf
	asked := func() int { fake.mu.Lock(); defer fake.mu.Unlock(); return fake.asked }
	for before := asked(); asked() < before+6; time.Sleep(time.Millisecond) {
		if r.replica(l) == nil || len(r.root.fleet.lastResort()) > 0 {
			t.Fatal("a server that lags behind took a leaf away")
		}
	}
	fake.set("leader", 60, other.URL) // restored from an old snapshot: this is the truth now
	fake.set("any", 60, other.URL)
	eventually(t, "what the leader says counts", func() bool { return r.replica(other) != nil && r.replica(l) == nil })
	eventually(t, "the index is the new one", func() bool { return r.root.State().Catalog.Index == 60 })
	if slices.ContainsFunc(r.root.State().Leaves, func(s ShardView) bool { return s.LastResort }) {
		t.Error("a passing leaf is a last resort")
	}
}

package gather

import (
	"context"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"

	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
)

// catalogWorld is a root that follows a real Consul.
type catalogWorld struct {
	*testRoot
	t      *testing.T
	client *consulkit.Client
}

func newCatalogWorld(t *testing.T, agent *consultest.Agent, shards int) *catalogWorld {
	t.Helper()
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Service, s.Leaf.Shards, s.Merge.URL = "leaf", shards, "json-array" })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.root.Watch(ctx, client) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return &catalogWorld{r, t, client}
}

func (w *catalogWorld) register(id string, l *leafServer, meta map[string]string, tags ...string) {
	w.t.Helper()
	u, err := url.Parse(l.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		w.t.Fatal(err)
	}
	reg := &api.AgentServiceRegistration{ID: id, Name: "leaf", Address: host, Port: n, Meta: meta, Tags: tags,
		Check: &api.AgentServiceCheck{CheckID: "check-" + id, TTL: "1h", Status: api.HealthPassing}}
	if err := w.client.Agent().ServiceRegister(reg); err != nil {
		w.t.Fatal(err)
	}
}

func TestLeavesFromConsul(t *testing.T) {
	agent := consultest.Start(t)
	w := newCatalogWorld(t, agent, 2)
	eventually(t, "the catalog was read", func() bool { return w.root.fleet.known.Load() })
	if a := w.get(t, "/"); a.status != 503 || a.shards(t).Missing != 2 {
		t.Fatalf("nothing is registered: %d %s", a.status, a.body)
	}
	zero, one, other := newLeaf(t, say("0")), newLeaf(t, say("1")), newLeaf(t, say("1"))
	w.register("zero", zero, map[string]string{"shard": "0", "weight": "30", "replica": "leaf-0a"})
	w.register("one", one, nil, "shard=1", "weight=10", "other")
	w.register("lost", other, map[string]string{"shard": "2"})
	w.register("plain", other, nil)
	eventually(t, "both shards are served", func() bool { return w.get(t, "/-/readyz").status == 200 })
	if a := w.get(t, "/"); a.status != 200 || a.body != "[0,1]\n" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	eventually(t, "useless instances are shown", func() bool { return len(w.root.State().Catalog.Unusable) == 2 })
	rep := w.replica(zero)
	if rep.name != "leaf-0a" || rep.node == "" || rep.shard != 0 || w.root.fleet.pools[0].weighs() != 30 {
		t.Errorf("%s on %s, weight %g", rep.name, rep.node, w.root.fleet.pools[0].weighs())
	}

	// A second replica, and the first one's check fails: the shard is served by the other.
	w.register("one-b", other, map[string]string{"shard": "1", "weight": "10"})
	eventually(t, "the second replica is known", func() bool { return w.replica(other) != nil })
	if err := w.client.Agent().UpdateTTL("check-one", "", api.HealthCritical); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the failing one is not used any more", func() bool { return w.replica(one) == nil })
	if a := w.get(t, "/"); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	// The last instance of a shard goes: the shard is missing, with the weight it had.
	if err := w.client.Agent().ServiceDeregister("zero"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "shard 0 is missing", func() bool { return w.get(t, "/").status == 503 })
	if a := w.get(t, "/"); a.shards(t).Missing != 1 || a.problem(t).Cause != "missing" {
		t.Errorf("%s", a.body)
	}
	if got := w.root.fleet.pools[0].weighs(); got != 30 {
		t.Errorf("the missing shard weighs %g", got)
	}
}

func TestConsulGone(t *testing.T) {
	agent := consultest.Start(t)
	w := newCatalogWorld(t, agent, 1)
	l := newLeaf(t, say("0"))
	w.register("zero", l, map[string]string{"shard": "0"})
	eventually(t, "the shard is served", func() bool { return w.get(t, "/-/readyz").status == 200 })
	agent.Kill()
	eventually(t, "the root notices", func() bool { return w.root.State().Catalog.Error != "" })
	for range 50 {
		if a := w.get(t, "/"); a.status != 200 || a.body != "[0]\n" {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if ready := w.get(t, "/-/readyz"); ready.status != 200 {
		t.Errorf("not ready without Consul: %s", ready.body)
	}
}

func TestNotReadyBeforeTheCatalog(t *testing.T) {
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Service, s.Leaf.Shards = "leaf", 1 })
	if a := r.get(t, "/"); a.status != 503 || a.problem(t).Cause != "not_ready" || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

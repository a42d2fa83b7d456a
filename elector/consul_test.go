package elector

import (
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
)

func kvPair(key, value string) *api.KVPair { return &api.KVPair{Key: key, Value: []byte(value)} }

func TestLowestTTL(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`Unexpected response code: 500 (Invalid Session TTL '2000000000', must be between [10s=24h0m0s])`: 10 * time.Second,
		`Invalid Session TTL '1', must be between [1m30s=24h0m0s]`:                                        90 * time.Second,
		`Invalid Session TTL '1', must be between [500ms=24h0m0s]`:                                        500 * time.Millisecond,
		`Permission denied`: 0,
	} {
		got, ok := lowestTTL(errText(text))
		if got != want || ok != (want > 0) {
			t.Errorf("lowestTTL(%s) = %s, %v", text, got, ok)
		}
	}
}

type errText string

func (e errText) Error() string { return string(e) }

// A cluster with the stock minimum of 10 s gives a longer session; the application's lease stays what it was.
func TestConsulRefusesAShortTTL(t *testing.T) {
	agent := consultest.Start(t, `session_ttl_min = "10s"`)
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{App: "app", ID: "a", Elections: []string{"leader"}, Lease: 2 * time.Second, Revocation: Safe}
	s := NewConsulStore(client, cfg, clock.Boot())
	session, err := s.Open(t.Context(), SessionSpec{Name: "a", TTL: cfg.Lease, LockDelay: cfg.lockDelay()})
	if err != nil {
		t.Fatal(err)
	}
	if session.TTL != 10*time.Second || session.Warning == "" || cfg.profile(session) != MinimumTTL {
		t.Errorf("%+v", session)
	}
	entry, _, err := client.Session().Info(session.ID, nil)
	if err != nil || entry.TTL != "10s" || entry.LockDelay != 2*time.Second || len(entry.NodeChecks) != 0 || entry.Node != VirtualNode || entry.Behavior != "release" {
		t.Errorf("%+v, %v", entry, err)
	}
}

// The API library would turn a lock-delay of 0 into 15 s, and one of 500 ms as a number into something else again.
func TestConsulLockDelay(t *testing.T) {
	agent := consultest.Start(t)
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{App: "app", ID: "a", Elections: []string{"leader"}, Lease: 2 * time.Second}
	for _, delay := range []time.Duration{0, 500 * time.Millisecond, time.Second, time.Minute} {
		s := NewConsulStore(client, cfg, clock.Boot())
		session, err := s.Open(t.Context(), SessionSpec{Name: delay.String(), TTL: cfg.Lease, LockDelay: delay})
		if err != nil {
			t.Fatal(err)
		}
		if entry, _, err := client.Session().Info(session.ID, nil); err != nil || entry.LockDelay != delay {
			t.Errorf("lock-delay %s: %+v, %v", delay, entry, err)
		}
	}
}

// The catalog tells who leads, and the check follows the session.
func TestConsulCatalog(t *testing.T) {
	agent := consultest.Start(t)
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{App: "orders", ID: "a@h", Address: "10.1.2.3:8080", Elections: []string{"leader"}, Lease: 2 * time.Second, Revocation: Safe}
	s := NewConsulStore(client, cfg, clock.Boot())
	session, err := s.Open(t.Context(), SessionSpec{Name: "x", TTL: cfg.Lease})
	if err != nil {
		t.Fatal(err)
	}
	instance := func() *api.ServiceEntry {
		t.Helper()
		all, _, err := client.Health().Service("orders-elector", "", false, nil)
		if err != nil || len(all) != 1 {
			t.Fatalf("%d instances, %v", len(all), err)
		}
		return all[0]
	}
	if in := instance(); in.Checks.AggregatedStatus() != api.HealthPassing || len(in.Service.Tags) != 0 || in.Service.Port != 8080 || in.Node.Node != VirtualNode {
		t.Errorf("%+v %+v", in.Service, in.Checks)
	}
	lock := Op{Verb: VerbLock, Election: "leader", Value: []byte("{}")}
	if r, err := s.Commit(t.Context(), Batch{Session: session.ID, Ops: []Op{lock}, Leads: []string{"leader"}}); err != nil || !r.Applied {
		t.Fatal(r, err)
	}
	if in := instance(); !slices.Equal(in.Service.Tags, []string{"leads-leader"}) || in.Service.Address != "10.1.2.3" {
		t.Errorf("%+v", in.Service)
	}
	if _, err := client.Session().Destroy(session.ID, nil); err != nil {
		t.Fatal(err)
	}
	if in := instance(); in.Checks.AggregatedStatus() != api.HealthCritical {
		t.Errorf("the check outlived its session: %+v", in.Checks)
	}
	if err := s.Close(t.Context(), session.ID); err != nil {
		t.Error(err)
	}
	if all, _, err := client.Health().Service("orders-elector", "", false, nil); err != nil || len(all) != 0 {
		t.Errorf("%d instances left, %v", len(all), err)
	}
}

// Electors of two applications may have the same name: neither takes the other's instance away.
func TestConsulCatalogOfTwoApplications(t *testing.T) {
	agent := consultest.Start(t)
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	open := func(app string) (*ConsulStore, Session) {
		cfg := Config{App: app, ID: "a@h", Elections: []string{"leader"}, Lease: 2 * time.Second, Revocation: Safe}
		s := NewConsulStore(client, cfg, clock.Boot())
		session, err := s.Open(t.Context(), SessionSpec{Name: app, TTL: cfg.Lease})
		if err != nil {
			t.Fatal(err)
		}
		return s, session
	}
	orders, ours := open("orders")
	open("reports")
	count := func(app string) int {
		t.Helper()
		all, _, err := client.Health().Service(app+"-elector", "", true, nil)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if count("orders") != 1 || count("reports") != 1 {
		t.Errorf("%d and %d instances", count("orders"), count("reports"))
	}
	if err := orders.Close(t.Context(), ours.ID); err != nil {
		t.Fatal(err)
	}
	if count("orders") != 0 || count("reports") != 1 {
		t.Errorf("%d and %d instances after the end of one", count("orders"), count("reports"))
	}
}

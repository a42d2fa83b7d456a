package broker

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// A broker that was closed has its messages when it comes back, and asks who comes.
func TestStartAgain(t *testing.T) {
	c := Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", User: "u", Password: "p"}
	b, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	js := dial(t, b, nats.UserInfo("u", "p"))
	if _, err := js.AddStream(&nats.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish("s", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect("nats://" + b.Addr()); err == nil {
		t.Error("a client without a password was let in")
	}
	b.Close()
	select {
	case <-b.Done():
	case <-time.After(10 * time.Second):
		t.Error("a closed broker is not done")
	}
	b, err = Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	info, err := dial(t, b, nats.UserInfo("u", "p")).StreamInfo("S")
	if err != nil || info.State.Msgs != 1 {
		t.Errorf("after the restart: %+v, %v", info, err)
	}
}

func dial(t *testing.T, b *Broker, o ...nats.Option) nats.JetStreamContext {
	t.Helper()
	nc, err := nats.Connect("nats://"+b.Addr(), o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]Config{
		"no folder":   {Listen: "127.0.0.1:0"},
		"no port":     {Dir: t.TempDir(), Listen: "127.0.0.1"},
		"durability":  {Dir: t.TempDir(), Listen: "127.0.0.1:0", Durability: "often"},
		"no name":     {Dir: t.TempDir(), Listen: "127.0.0.1:0", Cluster: "127.0.0.1:0", Routes: []string{"a:1"}},
		"wrong route": {Dir: t.TempDir(), Listen: "127.0.0.1:0", Cluster: "nowhere", Name: "a", Routes: []string{"a:1"}},
	} {
		if b, err := Start(t.Context(), c); err == nil {
			b.Close()
			t.Errorf("%s: started", name)
		}
	}
}

// Each durability is the server's own setting for it.
func TestDurability(t *testing.T) {
	for d, want := range map[Durability]struct {
		always   bool
		interval time.Duration
	}{"": {always: true}, Always: {always: true}, Interval: {interval: 100 * time.Millisecond}, Process: {}} {
		o, err := Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Durability: d}.options()
		if err != nil || o.SyncAlways != want.always || o.SyncInterval != want.interval {
			t.Errorf("%q: always %v, interval %v, %v", d, o.SyncAlways, o.SyncInterval, err)
		}
	}
}

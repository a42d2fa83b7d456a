package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// three are brokers that find each other by a file, as a job's allocations do.
type three struct {
	t     *testing.T
	file  string
	peers [3]string
	dirs  [3]string
	up    [3]*Broker
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (b *three) list(of ...string) {
	b.t.Helper()
	if err := os.WriteFile(b.file+".new", []byte(strings.Join(of, "\n")+"\n"), 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(b.file+".new", b.file); err != nil {
		b.t.Fatal(err)
	}
}

func (b *three) start(ctx context.Context, i int) (*Broker, error) {
	return Start(ctx, Config{Dir: b.dirs[i], Listen: "127.0.0.1:0", User: "u", Password: "p", Durability: Process,
		Name: fmt.Sprint("b", i), Cluster: b.peers[i], RoutesFile: b.file})
}

// Three brokers are one when all their addresses are in the file, and again when one of them has moved.
func TestRoutesFile(t *testing.T) {
	b := &three{t: t, file: filepath.Join(t.TempDir(), "routes")}
	for i := range b.peers {
		b.peers[i], b.dirs[i] = freeAddress(t), t.TempDir()
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	b.list(b.peers[0], b.peers[1]) // its own and one other
	if early, err := b.start(short, 0); !errors.Is(err, context.DeadlineExceeded) {
		if err == nil {
			early.Close()
		}
		t.Fatalf("a new one starts before all are known: %v", err)
	}
	b.list(b.peers[:]...)
	for i := range b.up {
		var err error
		if b.up[i], err = b.start(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		defer func() { b.up[i].Close() }()
	}
	js := b.stream()
	if _, err := js.Publish("s", []byte("x")); err != nil {
		t.Fatal(err)
	}

	b.up[2].Close()
	b.peers[2] = freeAddress(t)
	b.list(b.peers[1], b.peers[2]) // the first one is gone for a moment: who has been one of three starts
	var err error
	if b.up[2], err = b.start(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	b.list(b.peers[:]...)
	b.up[0].Close() // the other two have to do it
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = js.Publish("s", []byte("y"), nats.AckWait(2*time.Second)); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("two of three do not go on: %v", err)
		}
	}
	b.dirs[0] = t.TempDir() // on another node: it gets its copy from the others, and is one of the two that are enough then
	if b.up[0], err = b.start(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		info, err := js.StreamInfo("S")
		if err == nil && !slices.ContainsFunc(info.Cluster.Replicas, func(p *nats.PeerInfo) bool { return !p.Current || p.Offline }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("an empty broker gets no copy: %+v, %v", info, err)
		}
	}
	b.up[2].Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		info, err := js.StreamInfo("S")
		if err == nil && info.Cluster.Leader != "" && info.State.Msgs >= 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with a broker that was empty: %+v, %v", info, err)
		}
	}
}

// stream makes a stream with three copies as soon as three brokers are one.
func (b *three) stream() nats.JetStreamContext {
	b.t.Helper()
	js := dial(b.t, b.up[1], nats.UserInfo("u", "p"), nats.MaxReconnects(-1))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := js.AddStream(&nats.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
		if err == nil {
			return js
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("three brokers do not become one: %v", err)
		}
	}
}

// The file's own address is left out, and what is no address is said.
func TestRoutesAreRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "routes")
	for text, want := range map[string][]string{
		"":                                     nil,
		"10.0.0.2:6222\n\n10.0.0.1:6222\n":     {"10.0.0.2:6222"},
		"10.0.0.9:1\n10.0.0.3:6\n10.0.0.3:6\n": {"10.0.0.3:6"},
		"10.0.0.3:6 10.0.0.2:6":                {"10.0.0.2:6", "10.0.0.3:6"},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := (Config{Cluster: "10.0.0.1:6222", Advertise: "10.0.0.9:1", RoutesFile: file}).routes()
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	if err := os.WriteFile(file, []byte("<no value>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Config{RoutesFile: file}).routes(); err == nil {
		t.Error("anything is an address")
	}
}

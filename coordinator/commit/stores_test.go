package commit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"retinue/coordinator/blob"
	"retinue/coordinator/blob/blobtest"
	"retinue/coordinator/item"
	"retinue/coordinator/source/sourcetest"
	"retinue/internal/hint"
)

// testKV holds what every store promises beyond what testPoint sees of it.
func testKV(t *testing.T, kv KV) {
	t.Helper()
	ctx := t.Context()
	want := []string{"x/s/a", "x/s/b.c", "x/s/d%2F", "x/s/e@f:g~1+=", "x/s/" + item.FileName(strings.Repeat("ü", 60))}
	for _, key := range append(slices.Clone(want), "x/sother/a", "y/s/a") {
		if got, err := kv.Create(ctx, key, []byte("1 "+key)); err != nil || string(got) != "1 "+key {
			t.Fatalf("create %s: %q, %v", key, got, err)
		}
		if got, err := kv.Create(ctx, key, []byte("2")); err != nil || string(got) != "1 "+key {
			t.Errorf("create %s again: %q, %v", key, got, err)
		}
	}
	list := func() []string {
		keys := []string{}
		if err := kv.Each(ctx, "x/s/", func(key string) error { keys = append(keys, key); return nil }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(keys)
		return keys
	}
	slices.Sort(want)
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	stop := errors.New("stop")
	if err := kv.Each(ctx, "x/s/", func(string) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	if err := kv.Each(ctx, "none/s/", func(key string) error { return errors.New(key) }); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	if err := kv.Delete(ctx, "x/s/a", []byte("another")); err != nil {
		t.Error(err)
	}
	if got, err := kv.Get(ctx, "x/s/a"); err != nil || string(got) != "1 x/s/a" {
		t.Errorf("another value was deleted: %q, %v", got, err)
	}
	for range 2 {
		if err := kv.Delete(ctx, "x/s/a", []byte("1 x/s/a")); err != nil {
			t.Error(err)
		}
	}
	if got, err := kv.Get(ctx, "x/s/a"); err != nil || got != nil {
		t.Errorf("deleted: %q, %v", got, err)
	}
	if got := list(); slices.Contains(got, "x/s/a") || len(got) != len(want)-1 {
		t.Errorf("after the deletion: %q", got)
	}
	// What was deleted can be created again: it is forgotten.
	if got, err := kv.Create(ctx, "x/s/a", []byte("3")); err != nil || string(got) != "3" {
		t.Errorf("again: %q, %v", got, err)
	}
	large := make([]byte, MaxRecord)
	if got, err := kv.Create(ctx, "x/large", large); err != nil || len(got) != MaxRecord {
		t.Errorf("the largest record: %d bytes, %v", len(got), err)
	}
}

// survives kills the server with SIGKILL between commits; what was committed stays committed.
func survives(t *testing.T, srv *sourcetest.Server, p Point) {
	t.Helper()
	for n := range 3 {
		id := fmt.Sprint("k", n)
		if won, err := p.Commit(t.Context(), record(id, "one", item.Done), ""); err != nil || won.Attempt != "one" {
			t.Fatalf("%+v, %v", won, err)
		}
		srv.Kill()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := p.Commit(ctx, record(id+"x", "one", item.Done), ""); err == nil {
			t.Error("committed without a server")
		}
		cancel()
		srv.Start()
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			won, err := p.Commit(ctx, record(id, "two", item.Done), "")
			cancel()
			if err == nil {
				if won.Attempt != "one" {
					t.Errorf("after the kill: %+v", won)
				}
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
}

func TestRedis(t *testing.T) {
	program := sourcetest.Need(t, "redis-server")
	port := sourcetest.Port(t)
	db := redis.NewClient(&redis.Options{Addr: sourcetest.Loopback(port), Protocol: 2, DisableIdentity: true})
	defer db.Close()
	srv := sourcetest.StartServer(t, sourcetest.Command{Name: "redis-server", Path: program, Args: []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", t.TempDir(),
		"--appendonly", "yes", "--appendfsync", "always", "--save", ""}}, func(ctx context.Context) error { return db.Ping(ctx).Err() })
	kv := Redis{db, "queue:{r*}:"}
	testPoint(t, Journal{kv})
	testForget(t, Journal{kv})
	testKV(t, kv)
	survives(t, srv, Journal{kv})
}

func TestNATS(t *testing.T) {
	port := sourcetest.Port(t)
	address := "nats://" + sourcetest.Loopback(port)
	srv := sourcetest.StartServer(t, sourcetest.Command{Name: "nats-server", Path: sourcetest.Need(t, "nats-server"), Args: []string{"-a", "127.0.0.1", "-p", strconv.Itoa(port), "-js", "-sd", t.TempDir()}},
		func(context.Context) error {
			nc, err := natsgo.Connect(address)
			if err == nil {
				nc.Close()
			}
			return err
		})
	connects := 0
	kv := &NATS{Bucket: "retinue-t", Connect: func(context.Context) (*natsgo.Conn, error) {
		if connects++; connects == 1 {
			return nil, errors.New("not yet") // a broker that starts later
		}
		nc, err := natsgo.Connect(address, natsgo.MaxReconnects(-1), natsgo.ReconnectWait(50*time.Millisecond), natsgo.ReconnectBufSize(-1))
		if err == nil {
			t.Cleanup(nc.Close)
		}
		return nc, err
	}}
	if _, err := kv.Get(t.Context(), "a"); err == nil {
		t.Error("no error")
	}
	testPoint(t, Journal{kv})
	testForget(t, Journal{kv})
	testKV(t, kv)
	survives(t, srv, Journal{kv})
}

// A key survives its way through a subject.
func FuzzSubject(f *testing.F) {
	f.Add("commit/s/a.b%2F@c")
	f.Fuzz(func(t *testing.T, key string) {
		n := &NATS{Bucket: "b"}
		if got, ok := n.key(n.subject(key)); !ok || got != key {
			t.Errorf("%q became %q", key, got)
		}
		n.key(key)
		n.key("$KV.b." + key)
	})
}

func TestBucket(t *testing.T) {
	store := blobtest.Start(t)
	b := Bucket{Client: blob.NewClient(store.Environment(), nil), Base: &url.URL{Scheme: "s3", Host: "b", Path: "/records"}}
	if err := b.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	testPoint(t, Journal{b})
	testForget(t, Journal{b})
	testForget(t, Artifacts{Point: Journal{Bucket{b.Client, &url.URL{Scheme: "s3", Host: "b", Path: "/records2"}}}, Client: b.Client, Base: &url.URL{Scheme: "s3", Host: "b", Path: "/out"}})
	testKV(t, b)
	store.Gate(func(w http.ResponseWriter, r *http.Request) bool {
		blobtest.Refuse(w, 500, "InternalError")
		return true
	})
	if _, err := (Journal{b}).Commit(t.Context(), record("x", "one", item.Done), ""); err == nil {
		t.Error("committed without a store")
	}
	if err := b.Probe(t.Context()); err == nil {
		t.Error("it passed")
	}
}

// A store that ignores If-None-Match is found out at the start.
func TestProbeRefuses(t *testing.T) {
	store := blobtest.Start(t)
	store.Gate(func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("If-None-Match"); return false })
	b := Bucket{Client: blob.NewClient(store.Environment(), nil), Base: &url.URL{Scheme: "s3", Host: "b", Path: "/records"}}
	err := b.Probe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "If-None-Match") || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
	left := 0
	store.Gate(nil)
	if err := b.Client.Each(t.Context(), b.Base, func(string) error { left++; return nil }); err != nil || left != 0 {
		t.Errorf("%d left, %v", left, err)
	}
}

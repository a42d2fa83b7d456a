package gather

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
)

// leafServer is a leaf whose behaviour a test sets.
type leafServer struct {
	*httptest.Server
	calls   atomic.Int64
	alive   atomic.Int64 // requests under way
	handler atomic.Pointer[http.HandlerFunc]
}

func newLeaf(t testing.TB, h http.HandlerFunc) *leafServer {
	l := &leafServer{}
	l.set(h)
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.calls.Add(1)
		l.alive.Add(1)
		defer l.alive.Add(-1)
		(*l.handler.Load())(w, r)
	}))
	t.Cleanup(func() { l.CloseClientConnections(); l.Close() })
	return l
}

func (l *leafServer) set(h http.HandlerFunc) { l.handler.Store(&h) }

// say answers with a body.
func say(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

func sayJSON(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, body)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// hang answers nothing until the client is gone.
func hang(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// leaves makes the --leaf settings of servers: one list of replicas for each shard.
func leaves(shards ...[]*leafServer) []string {
	var list []string
	for i, replicas := range shards {
		var urls []string
		for _, l := range replicas {
			urls = append(urls, l.URL)
		}
		list = append(list, fmt.Sprintf("%d=%s", i, strings.Join(urls, ",")))
	}
	return list
}

// testRoot serves a root with these settings.
type testRoot struct {
	*httptest.Server
	root *Root
}

func newTestRoot(t testing.TB, change func(*Settings)) *testRoot {
	t.Helper()
	s := DefaultSettings()
	s.Deadline.Default, s.Deadline.Max = "10s", "20s" // a loaded machine is no reason to fail
	change(&s)
	cfg, err := s.Config()
	if err != nil {
		t.Fatal(err)
	}
	root, err := New(cfg, clock.Boot(), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(root)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close(); root.Close() })
	return &testRoot{srv, root}
}

// replica finds what the root knows of a leaf.
func (r *testRoot) replica(l *leafServer) *replica {
	for _, p := range r.root.fleet.pools {
		for _, rep := range p.list() {
			if rep.base.String() == l.URL {
				return rep
			}
		}
	}
	return nil
}

type answered struct {
	status int
	body   string
	header http.Header
	http   *http.Response
}

func (a answered) shards(t testing.TB) Coverage {
	t.Helper()
	c, err := ParseShards(a.header.Get("Retinue-Shards"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (r *testRoot) get(t testing.TB, path string, headers ...string) answered {
	t.Helper()
	return r.do(t, "GET", path, "", headers...)
}

func (r *testRoot) do(t testing.TB, method, path, body string, headers ...string) answered {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, r.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := r.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{resp.StatusCode, string(b), resp.Header, resp}
}

func (a answered) problem(t testing.TB) Problem {
	t.Helper()
	var p Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%q: %v", a.body, err)
	}
	return p
}

// eventually waits for something that happens soon.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

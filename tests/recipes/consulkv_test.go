package recipes_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/tests/harness"
)

// fenced runs the Consul recipe against the election "fence".
type fenced struct {
	t      *testing.T
	consul *consul
	a, b   *harness.ElectorClient
}

const fenceKey = "retinue/elections/" + app + "/fence"

// become makes a candidate of an elector lead, once the one before has resigned.
func (f *fenced) become(of *harness.ElectorClient, id string) uint64 {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 30*time.Second)
	defer cancel()
	g, err := of.Become(ctx, "fence", id, 30*time.Second)
	if err != nil {
		f.t.Fatal(err)
	}
	return g.Token
}

func (f *fenced) resign(of *harness.ElectorClient, token uint64) {
	f.t.Helper()
	if _, err := of.Resign(f.t.Context(), "fence", token); err != nil {
		f.t.Fatal(err)
	}
}

// set runs the recipe and returns its exit status.
func (f *fenced) set(addr string, token uint64, value string) int {
	f.t.Helper()
	out, status := script(f.t, fmt.Sprintf("fencing/set-consul.sh %d %s orders/data %q", token, fenceKey, value), "CONSUL_HTTP_ADDR="+addr)
	if status != 0 {
		f.t.Logf("token %d: %s", token, strings.TrimSpace(out))
	}
	return status
}

func (f *fenced) want(value string) {
	f.t.Helper()
	pair, _, err := f.consul.kv.Get("orders/data", &consulapi.QueryOptions{RequireConsistent: true})
	if err != nil || pair == nil || string(pair.Value) != value {
		f.t.Errorf("the value is %+v, want %q (%v)", pair, value, err)
	}
}

func newFenced(t *testing.T) *fenced {
	need(t, "bash", "curl", "jq")
	electors := theElectors.Get(t)
	return &fenced{t, theConsul.Get(t), harness.NewElectorClient(electors[0].unix), harness.NewElectorClient(electors[1].unix)}
}

func TestConsulKV(t *testing.T) {
	f := newFenced(t)
	addr := f.consul.addr
	first := f.become(f.a, "one")
	for _, value := range []string{"set", `with "quotes" and ünicode`} {
		if status := f.set(addr, first, value); status != 0 {
			t.Errorf("the leader's write: exit status %d", status)
		}
		f.want(value)
	}
	f.set(addr, first, "one")

	f.resign(f.a, first)
	if status := f.set(addr, first, "late"); status != 3 {
		t.Errorf("with nobody leading: exit status %d", status)
	}
	// The same elector, and so the same session: only the token differs.
	second := f.become(f.a, "two")
	if status := f.set(addr, first, "late"); status != 3 {
		t.Errorf("after a new leadership under the same session: exit status %d", status)
	}
	f.want("one") // the new leader has not written yet, and the late write is refused all the same
	f.resign(f.a, second)
	third := f.become(f.b, "three")
	if status := f.set("http://"+addr, second, "late"); status != 3 {
		t.Errorf("after a new leader elsewhere: exit status %d", status)
	}
	if status := f.set("http://"+addr, third, "three"); status != 0 {
		t.Errorf("the new leader's write: exit status %d", status)
	}
	f.want("three")

	// Somebody edits the record by hand: the lock is untouched, and the elector repairs the record.
	if _, err := f.consul.kv.Put(&consulapi.KVPair{Key: fenceKey, Value: []byte("edited")}, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "the leader can write again", func(context.Context) error {
		if status := f.set(addr, third, "three again"); status != 0 {
			return fmt.Errorf("exit status %d", status)
		}
		return nil
	})
	f.want("three again")
	f.resign(f.b, third)
	if status := f.set("127.0.0.1:1", third, "late"); status == 0 || status == 3 {
		t.Errorf("exit status %d where no Consul answers", status)
	}
}

// TestConsulKVOvertaken changes the leader between the recipe's look at the lock and its write.
func TestConsulKVOvertaken(t *testing.T) {
	f := newFenced(t)
	for name, next := range map[string]*harness.ElectorClient{"by its own elector": f.a, "by another": f.b} {
		t.Run(name, func(t *testing.T) {
			token := f.become(f.a, "old")
			if status := f.set(f.consul.addr, token, "old"); status != 0 {
				t.Fatalf("exit status %d", status)
			}
			var once sync.Once
			var successor uint64
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v1/txn" {
					once.Do(func() {
						f.resign(f.a, token)
						successor = f.become(next, "new")
					})
				}
				httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: f.consul.addr}).ServeHTTP(w, r)
			}))
			defer proxy.Close()
			if status := f.set(proxy.URL, token, "late"); status != 3 {
				t.Errorf("exit status %d", status)
			}
			f.want("old")
			f.resign(next, successor)
		})
	}
}

func TestConsulKVCommands(t *testing.T) {
	f := newFenced(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	g, err := f.a.Become(ctx, "leader", "page", 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	mustScript(t, commands(t, "fencing.md", "Consul KV"), "CONSUL_HTTP_ADDR="+f.consul.addr, fmt.Sprint("TOKEN=", g.Token))
	pair, _, err := f.consul.kv.Get("orders/state", nil)
	if err != nil || pair == nil || string(pair.Value) != "ready" {
		t.Errorf("%+v, %v", pair, err)
	}
	if _, err := f.a.Resign(ctx, "leader", g.Token); err != nil {
		t.Error(err)
	}
}

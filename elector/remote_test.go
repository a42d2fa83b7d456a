package elector

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"retinue/internal/consulkit/consultest"
	"retinue/internal/hint"
)

// A request names a leadership. It ends that one, through the application, and no other.
func TestRequestedStepdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{"id":"x"}`)
		defer a.tether(g.Token)()
		next := b.campaign(`{"id":"y"}`)
		f.watch(100 * time.Millisecond)
		key := kvRoot + "app/" + requestFolder + "leader"
		for _, harmless := range []string{"{", `{"token":0}`, fmt.Sprintf(`{"token":%d}`, g.Token-1), `{"to":"b"}`} {
			f.c.put(key, harmless)
			f.watch(100 * time.Millisecond)
			if v := a.view(); v.Stepdown || v.Role(a.el.clock.Now()) != Leader {
				t.Fatalf("%s ended a leadership: %+v", harmless, v)
			}
		}
		f.c.put(key, string(encode(Request{Token: g.Token, To: "b"})))
		f.watch(100 * time.Millisecond)
		if v := a.view(); !v.Stepdown || v.Role(a.el.clock.Now()) != Leader {
			t.Fatalf("the application is not asked, or was not: %+v", v)
		}
		if status, body := a.post("/resign", `{"token":`+utoa(g.Token)+`}`); status != http.StatusOK {
			t.Fatalf("resign: %d %s", status, body)
		}
		ng := <-next
		defer b.tether(ng.Token)()
		f.watch(3 * time.Second) // the request is still there
		if v := b.view(); v.Holder != "y" || v.Stepdown || ng.Token <= g.Token {
			t.Errorf("after the hand-over: %+v", v)
		}
	})
}

// The record tells who led before: those who resigned, those who died, in order, and not for ever.
func TestHistory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		first := a.become(`{"id":"x"}`)
		f.watch(300 * time.Millisecond)
		a.post("/resign", `{"token":`+utoa(first.Token)+`}`)
		second := b.become(`{"id":"y"}`)
		f.watch(300 * time.Millisecond)
		f.c.invalidate(f.c.holder(Key("app", "leader")))
		f.watch(5 * time.Second)
		third := a.become(`{"id":"z"}`)
		history := decodeRecord(f.c.entry(Key("app", "leader")).Value).History
		if len(history) != 2 {
			t.Fatalf("%d leaderships are over: %+v", len(history), history)
		}
		for i, want := range []Tenure{{Leader: "x", Token: first.Token, Term: 1, Reason: "resigned"}, {Leader: "y", Token: second.Token, Term: 2, Reason: "lock_lost"}} {
			got := history[i]
			if got.Leader != want.Leader || got.Token != want.Token || got.Term != want.Term || got.Reason != want.Reason || !got.Until.After(got.Since) {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
		for range 2 * keepTenures {
			a.post("/resign", `{"token":`+utoa(third.Token)+`}`)
			third = a.become(`{"id":"z"}`)
		}
		history = decodeRecord(f.c.entry(Key("app", "leader")).Value).History
		if len(history) != keepTenures || history[keepTenures-1].Term != third.Term-1 {
			t.Errorf("%d kept, the last of term %d; now term %d", len(history), history[len(history)-1].Term, third.Term)
		}
	})
}

func TestRealAsk(t *testing.T) {
	agent := consultest.Start(t)
	a, b := newSidecar(t, agent, realConfig("a"), ""), newSidecar(t, agent, realConfig("b"), "")
	config := consul.DefaultConfig()
	config.Address = agent.Addr
	client, err := consul.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := Ask(ctx, client, "app", "leader", "", "test"); err == nil || hint.Of(err) == "" {
		t.Errorf("nobody has ever led: %v", err)
	}
	g := a.become()
	events, closeHold := a.hold(g.Token)
	defer closeHold()
	if _, _, err := Ask(ctx, client, "app", "leader", "nobody", "test"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("handed over to nobody: %v", err)
	}
	resigned := make(chan struct{})
	go func() {
		defer close(resigned)
		for e := range events {
			if e == "stepdown" {
				a.do(http.MethodPost, "leader/resign", fmt.Sprintf(`{"token":%d}`, g.Token), nil)
			}
		}
	}()
	next := make(chan Grant, 1)
	go func() { next <- b.become() }()
	await(t, "both are in the race", func() bool { return len(a.el.feed.view("leader").Candidates) == 2 })
	before, after, err := Ask(ctx, client, "app", "leader", "b", "test")
	if err != nil {
		t.Fatal(err)
	}
	ng := <-next
	<-resigned // the stream ends with the leadership
	if before.Leader.Token != g.Token || after.Leader.Token != ng.Token || after.Leader.Elector != "b" {
		t.Errorf("before %+v, after %+v, granted %d", before.Leader, after.Leader, ng.Token)
	}
	pair, _, err := client.KV().Get(kvRoot+"app/"+requestFolder+"leader", nil)
	if err != nil || pair != nil {
		t.Errorf("the request is left behind: %v %v", pair, err)
	}
	if raw, _ := json.Marshal(after.History); len(after.History) != 1 || after.History[0].Reason != "resigned" {
		t.Errorf("history %s", raw)
	}
}

// An operator whose Consul does not answer is told so soon, whether it hangs at the first read or at the wish.
func TestRealAskOfASilentConsul(t *testing.T) {
	defer func(d time.Duration) { promptly = d }(promptly)
	promptly = 300 * time.Millisecond
	agent := consultest.Start(t)
	a := newSidecar(t, agent, realConfig("a"), "")
	g := a.become()
	_, closeHold := a.hold(g.Token)
	defer closeHold()
	target := &url.URL{Scheme: "http", Host: agent.Addr}
	for _, silent := range []string{http.MethodGet, http.MethodPut} {
		released := make(chan struct{})
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == silent {
				select {
				case <-released:
				case <-r.Context().Done():
				}
				return
			}
			httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
		}))
		config := consul.DefaultConfig()
		config.Address = proxy.Listener.Addr().String()
		client, err := consul.NewClient(config)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, _, err = Ask(ctx, client, "app", "leader", "", "test")
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "no answer of Consul within") || !strings.Contains(hint.Of(err), "list-peers") {
			t.Errorf("%s hangs: %v", silent, err)
		}
		cancel()
		close(released)
		proxy.Close()
	}
}

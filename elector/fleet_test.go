package elector

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
)

// skewClock runs at another rate than the bubble's time, as the clock of another machine does.
type skewClock struct {
	start time.Time
	rate  float64
}

func (c skewClock) Now() clock.Instant {
	return clock.Instant(float64(time.Since(c.start))*c.rate) + clock.Instant(time.Hour)
}

// leapClock is the clock of a machine so busy that time passes between any two readings, once leap is set.
type leapClock struct {
	clock.Clock
	leap, ahead atomic.Int64
}

func (c *leapClock) Now() clock.Instant {
	return c.Clock.Now().Add(time.Duration(c.ahead.Add(c.leap.Load())))
}

// fleet is a number of electors over one model Consul, inside a synctest bubble, and a witness who watches all of them.
type fleet struct {
	t     *testing.T
	c     *modelConsul
	start time.Time // the machines' boot
	nodes []*node

	mu      sync.Mutex
	tokens  map[string]uint64 // highest token seen in office, by election
	terms   int
	overlap []string
}

type node struct {
	f     *fleet
	el    *Elector
	store *modelStore
	h     http.Handler
	stop  context.CancelFunc
	kill  context.CancelFunc
	ended chan struct{}
}

// fleetConfig is one elector's configuration in a test.
type fleetConfig struct {
	Config
	rate  float64     // of its clock; 0 means 1
	clock clock.Clock // instead
	state *StateFile
}

func testConfig(id string) fleetConfig {
	return fleetConfig{Config: Config{App: "app", ID: id, Elections: []string{"leader"}, Lease: 2 * time.Second, Revocation: Safe}}
}

func newFleet(t *testing.T, configs ...fleetConfig) *fleet {
	f := &fleet{t: t, c: newModelConsul(), start: time.Now(), tokens: map[string]uint64{}}
	for _, cfg := range configs {
		f.add(cfg)
	}
	return f
}

func (f *fleet) add(cfg fleetConfig) *node {
	f.t.Helper()
	n := f.launch(cfg)
	f.nodes = append(f.nodes, n)
	return n
}

// launch starts an elector that the fleet does not look after.
func (f *fleet) launch(cfg fleetConfig) *node {
	f.t.Helper()
	if cfg.rate == 0 {
		cfg.rate = 1
	}
	n := &node{f: f, store: newModelStore(f.c, cfg.Config), ended: make(chan struct{})}
	if cfg.clock == nil {
		cfg.clock = skewClock{f.start, cfg.rate}
	}
	el, err := New(cfg.Config, n.store, cfg.clock, hclog.NewNullLogger(), cfg.state)
	if err != nil {
		f.t.Fatal(err)
	}
	n.el, n.h = el, el.Handler()
	soft, stop := context.WithCancel(context.Background())
	hard, kill := context.WithCancel(context.Background())
	n.stop, n.kill = stop, kill
	go func() { defer close(n.ended); n.el.Run(soft, hard) }()
	return n
}

// close ends every elector, so that the bubble can end.
func (f *fleet) close() {
	for _, n := range f.nodes {
		n.kill()
		<-n.ended
	}
	f.c.mu.Lock()
	for _, s := range f.c.sessions {
		s.timer.Stop()
	}
	f.c.mu.Unlock()
	if len(f.overlap) > 0 {
		f.t.Errorf("two leaders at once, %d times; first: %s", len(f.overlap), f.overlap[0])
	}
}

// watch notes, every millisecond of the bubble, who leads by the clock.
func (f *fleet) watch(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		f.look()
		time.Sleep(time.Millisecond)
	}
}

func (f *fleet) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	leads := map[string]string{}
	for _, n := range f.nodes {
		for _, name := range n.el.cfg.Elections {
			v := n.el.feed.view(name)
			if v.Role(n.el.clock.Now()) != Leader {
				continue
			}
			if other := leads[name]; other != "" {
				f.overlap = append(f.overlap, fmt.Sprintf("%s by %s and %s at %s", name, other, n.el.cfg.ID, time.Now().Format("05.000")))
			}
			leads[name] = n.el.cfg.ID
			if v.Token < f.tokens[name] {
				f.overlap = append(f.overlap, fmt.Sprintf("%s: token %d after %d", name, v.Token, f.tokens[name]))
			}
			if v.Token > f.tokens[name] {
				f.terms++
			}
			f.tokens[name] = max(f.tokens[name], v.Token)
		}
	}
}

// takeOver locks the election for somebody else, in the first millisecond that Consul allows.
func (f *fleet) takeOver() {
	f.t.Helper()
	rival := newModelStore(f.c, testConfig("rival").Config)
	session, err := rival.Open(context.Background(), SessionSpec{TTL: time.Minute})
	if err != nil {
		f.t.Fatal(err)
	}
	for {
		seen := f.c.entry(Key("app", "leader")).Modify
		r, err := rival.Commit(context.Background(), Batch{Session: session.ID, Ops: []Op{{Verb: VerbLock, Election: "leader", KeyIndex: seen}}})
		if err != nil {
			f.t.Fatal(err)
		}
		if r.Applied {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// request makes one HTTP request and returns status and body.
func (n *node) request(ctx context.Context, method, path, body string) (int, []byte) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "http://localhost/v1/elections/leader"+path, strings.NewReader(body)).WithContext(ctx)
	n.h.ServeHTTP(w, r)
	return w.Code, w.Body.Bytes()
}

func (n *node) post(path, body string) (int, []byte) {
	return n.request(context.Background(), http.MethodPost, path, body)
}

// become campaigns until it leads.
func (n *node) become(body string) Grant {
	n.f.t.Helper()
	status, data := n.post("/become", body)
	var g Grant
	if err := json.Unmarshal(data, &g); status != http.StatusOK || err != nil || g.Role != Leader || g.Token == 0 {
		n.f.t.Fatalf("become on %s: %d %s", n.el.cfg.ID, status, data)
	}
	return g
}

// campaign campaigns in the background; the channel gets the grant.
func (n *node) campaign(body string) <-chan Grant {
	out := make(chan Grant, 1)
	go func() {
		status, data := n.post("/become", body)
		var g Grant
		if status == http.StatusOK && json.Unmarshal(data, &g) == nil {
			out <- g
		}
		close(out)
	}()
	return out
}

func (n *node) renew(token uint64) (int, Grant) {
	status, data := n.post("/renew", fmt.Sprintf(`{"token":%d}`, token))
	var g Grant
	_ = json.Unmarshal(data, &g) // a refusal has none of its fields
	return status, g
}

// tether keeps the leadership alive without renewals; closing it is the application's death.
func (n *node) tether(token uint64) (closeTether func()) {
	n.f.t.Helper()
	if r, err := n.el.ask(context.Background(), evTether{election: "leader", token: token}); err != nil || r.refusal != nil {
		n.f.t.Fatalf("tether: %v %+v", err, r.refusal)
	}
	return func() {
		n.el.ask(context.Background(), evTether{election: "leader", token: token, closed: true})
	}
}

func (n *node) view() *View { return n.el.feed.view("leader") }
func (n *node) role() Role  { return n.view().Role(n.el.clock.Now()) }

// types lists the events of the election since index.
func (n *node) types(index uint64) (types []EventType) {
	events, _, _ := n.el.feed.since(index, "leader")
	for _, ev := range events {
		types = append(types, ev.Type)
	}
	return types
}

func decode(data []byte, into any) bool { return json.Unmarshal(data, into) == nil }

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }

func bubble(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, run)
}

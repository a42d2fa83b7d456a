package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
	"retinue/internal/hint"
	"retinue/internal/listen"
	"retinue/internal/taskapi"
)

// fakeNomad serves a job's count on a Unix socket as the task API does, and refuses what Nomad would refuse.
type fakeNomad struct {
	mu      sync.Mutex
	count   int
	running int // -1: all that there are
	index   uint64
	refuse  string // with 400
	deny    bool
	stopped bool
	down    bool
	counts  []int    // that were set
	said    []string // the messages with them
}

const secret = "a-workload-identity"

func (n *fakeNomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	running := n.running
	if running < 0 {
		running = n.count
	}
	fail := func(code int, message string) { http.Error(w, message, code) }
	switch {
	case n.down:
		panic(http.ErrAbortHandler)
	case r.Header.Get("X-Nomad-Token") != secret, n.deny:
		fail(http.StatusForbidden, "Permission denied")
	case r.URL.Path == "/v1/jobs" && strings.HasPrefix(r.URL.Query().Get("prefix"), "jobs/"):
		json.NewEncoder(w).Encode([]map[string]any{{"ID": "jobs/thumbs-2", "JobModifyIndex": 1}, {"ID": "jobs/thumbs", "JobModifyIndex": n.index, "ModifyIndex": n.index + 3}})
	case r.URL.Query().Get("namespace") != "space" || r.URL.Path != "/v1/job/jobs%2Fthumbs/scale" && r.URL.Path != "/v1/job/jobs/thumbs/scale":
		fail(http.StatusNotFound, "job not found")
	case r.Method == http.MethodGet:
		json.NewEncoder(w).Encode(map[string]any{"JobModifyIndex": n.index + 3, "JobStopped": n.stopped, "TaskGroups": map[string]any{"worker": map[string]int{"Desired": n.count, "Placed": n.count, "Running": running}}})
	default:
		var req struct {
			Count          *int
			Target         map[string]string
			Message        string
			JobModifyIndex uint64
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Count == nil || req.Target["Group"] != "worker" {
			fail(http.StatusBadRequest, "bad request")
			return
		}
		switch {
		case n.refuse != "":
			fail(http.StatusBadRequest, n.refuse)
		case req.JobModifyIndex != n.index:
			fail(http.StatusInternalServerError, fmt.Sprintf("Enforcing job modify index %d: job exists with conflicting job modify index: %d", req.JobModifyIndex, n.index))
		default:
			n.count = *req.Count
			n.index++
			n.counts, n.said = append(n.counts, n.count), append(n.said, req.Message)
			w.Write([]byte("{}"))
		}
	}
}

func (n *fakeNomad) set(change func(*fakeNomad)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

func (n *fakeNomad) history() []int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.counts)
}

// rig is what scalers of one queue share.
type rig struct {
	t      *testing.T
	nomad  *fakeNomad
	consul *consultest.Agent
	broker *memory.Broker
	api    *taskapi.Client
	place  Place
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, nomad: &fakeNomad{index: 7, running: -1}, consul: consultest.Start(t), broker: memory.New(), place: Place{Prefix: "retinue/queues/thumbs/", Queue: "thumbs"}}
	dir := t.TempDir()
	l, err := listen.Listen(listen.Addr{Network: "unix", Path: filepath.Join(dir, "api.sock")}, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(r.nomad)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	if err := os.WriteFile(filepath.Join(dir, "nomad_token"), []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"NOMAD_SECRETS_DIR": dir, "NOMAD_NAMESPACE": "space"}
	if r.api, err = taskapi.New(taskapi.Config{}, func(name string) string { return env[name] }); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) client() *consulkit.Client {
	r.t.Helper()
	client, err := consulkit.New(consulkit.Config{Address: r.consul.Addr})
	if err != nil {
		r.t.Fatal(err)
	}
	return client
}

// scaler starts one. stop ends it as SIGTERM does.
func (r *rig) scaler(id string) (s *Scaler, stop func()) {
	r.t.Helper()
	queue, err := r.broker.Open(source.Options{Queue: "thumbs", Lease: time.Minute})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := rules()
	cfg.ID, cfg.Queue, cfg.Job, cfg.Max = id, "thumbs", "jobs/thumbs", 8
	cfg.Target, cfg.Cooldown, cfg.Interval = 250*time.Millisecond, 300*time.Millisecond, 50*time.Millisecond // each item is a worker's
	s, err = New(cfg, Parts{Queue: queue, Cluster: Nomad{r.api}, Consul: r.client(), Place: r.place, Clock: clock.Boot(), Log: hclog.NewNullLogger()})
	if err != nil {
		r.t.Fatal(err)
	}
	s.seat.ttl = time.Second
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	r.t.Cleanup(stop)
	return s, stop
}

func (r *rig) publish(n int) {
	r.t.Helper()
	queue, err := r.broker.Open(source.Options{Queue: "thumbs"})
	if err != nil {
		r.t.Fatal(err)
	}
	var outs []source.Out
	for range n {
		outs = append(outs, source.Out{ID: source.NewID(), Body: []byte("x")})
	}
	if err := queue.Publish(r.t.Context(), outs...); err != nil { // all at once: each step of a scaler sees all
		r.t.Fatal(err)
	}
}

// finish takes n items and acknowledges them.
func (r *rig) finish(n int) {
	r.t.Helper()
	queue, err := r.broker.Open(source.Options{Queue: "thumbs"})
	if err != nil {
		r.t.Fatal(err)
	}
	for n > 0 {
		ms, err := queue.Receive(r.t.Context(), n)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := queue.Ack(r.t.Context(), ms...); err != nil {
			r.t.Fatal(err)
		}
		n -= len(ms)
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func (r *rig) count() int {
	r.nomad.mu.Lock()
	defer r.nomad.mu.Unlock()
	return r.nomad.count
}

// From none to as many as the work asks for, in steps, and back to none.
func TestToManyAndBackToNone(t *testing.T) {
	r := newRig(t)
	s, _ := r.scaler("a")
	eventually(t, "it leads", func() bool { return s.Status().Leader == "a" && s.Status().Decision != nil })
	r.publish(100)
	eventually(t, "the maximum", func() bool { return r.count() == 8 })
	before, ups := 0, r.nomad.history()
	for _, step := range ups {
		if step > max(1, 2*before) || step <= before {
			t.Errorf("steps %v", ups)
		}
		before = step
	}
	eventually(t, "it has noted that", func() bool { st := s.Status(); return st.Last != nil && st.Last.To == 8 && st.Decision.Seen.Count == 8 })
	if st := s.Status(); st.Changes.Up != uint64(len(ups)) || !strings.Contains(st.Last.Why, "in flight) of 1s each") {
		t.Errorf("%+v, %+v", st.Changes, st.Last)
	}
	r.finish(100)
	eventually(t, "none", func() bool { return r.count() == 0 })
	r.nomad.set(func(n *fakeNomad) {
		for i, said := range n.said {
			if !strings.HasPrefix(said, "retinue: ") || !strings.Contains(said, "slots a worker") {
				t.Errorf("Nomad is told %q at change %d", said, i)
			}
		}
	})
}

// What a coordinator reports is the time of an item, and reaches the decision; a dead one's report is removed in time.
func TestReportsCount(t *testing.T) {
	r := newRig(t)
	load := Load{ID: "w1", Index: 0, Items: 100, BusyS: 1}
	ctx, cancel := context.WithCancel(t.Context())
	var reporting sync.WaitGroup
	rep := Reporter{Client: r.client(), Place: r.place, Load: func(context.Context) (Load, error) { return load, nil }, Log: hclog.NewNullLogger(), Clock: clock.Boot()}
	reporting.Go(func() { rep.Run(ctx) })
	s, _ := r.scaler("a")
	r.publish(100)
	eventually(t, "what was measured counts", func() bool {
		d := s.Status().Decision
		return d != nil && d.ServiceFrom == FromMeasured && d.ServiceS == 0.01 && d.Wanted == 1
	})
	cancel()
	reporting.Wait()
	eventually(t, "the report is gone, and what was measured stays", func() bool {
		d := s.Status().Decision
		return len(d.Seen.Loads) == 0 && d.ServiceFrom == FromMeasured
	})
	// One that was killed leaves its report. The clock of the reader decides.
	data, _ := json.Marshal(load)
	if _, err := r.client().KV().Put(&api.KVPair{Key: r.place.load("dead"), Value: data}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client().KV().Put(&api.KVPair{Key: r.place.load("junk"), Value: []byte("no report")}, nil); err != nil {
		t.Fatal(err)
	}
	now := &hands{at: start}
	read := &reports{client: r.client(), place: r.place, clock: now}
	if loads, err := read.read(t.Context()); len(loads) != 1 || err == nil {
		t.Errorf("%v, %v: one that can be read, and a complaint about the other", loads, err)
	}
	now.at = now.at.Add(reportStale)
	if loads, _ := read.read(t.Context()); len(loads) != 0 {
		t.Errorf("a dead coordinator is believed: %v", loads)
	}
	if left, _, err := r.client().KV().Keys(r.place.loads(), "", nil); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Coordinators have a rate together: those that have items share it, and one that has none yet may have a part of what is left to such.
func TestShares(t *testing.T) {
	idle, busy := Load{ID: "own"}, Load{ID: "own", Running: 1}
	a, b, c := Load{ID: "a", Running: 2}, Load{ID: "b", InHand: 1}, Load{ID: "c"}
	for _, x := range []struct {
		own    Load
		others []Load
		want   float64
	}{{busy, nil, 1}, {idle, nil, 1}, {busy, []Load{busy}, 1}, {busy, []Load{idle, a, b, c}, 1.0 / 3}, {idle, []Load{a, b, c}, 0.25}, {idle, []Load{c}, 0.5}, {busy, []Load{c}, 1}} {
		if got := share(x.others, x.own); got != x.want {
			t.Errorf("%v beside %v: %v, want %v", x.own, x.others, got, x.want)
		}
	}
}

// Three coordinators at a real Consul: each learns of the others, of those that have become idle, of one that was stopped; and while Consul is away
// the last share stays.
func TestSharesAreTold(t *testing.T) {
	r := newRig(t)
	type coordinator struct {
		running, share atomic.Int64 // share in thousandths
		stop           func()
	}
	begin := func(id string, running int64) *coordinator {
		c := &coordinator{}
		c.running.Store(running)
		ctx, cancel := context.WithCancel(t.Context())
		var reporting sync.WaitGroup
		c.stop = func() { cancel(); reporting.Wait() }
		t.Cleanup(c.stop)
		rep := Reporter{Client: r.client(), Place: r.place, Log: hclog.NewNullLogger(), Clock: clock.Boot(),
			Load:  func(context.Context) (Load, error) { return Load{ID: id, Running: int(c.running.Load())}, nil },
			Share: func(part float64) { c.share.Store(int64(part * 1000)) }}
		reporting.Go(func() { rep.Run(ctx) })
		return c
	}
	all := []*coordinator{begin("a", 1)}
	shares := func(what string, want ...int64) {
		t.Helper()
		eventually(t, what, func() bool {
			for i, c := range all {
				if c.share.Load() != want[i] {
					return false
				}
			}
			return true
		})
	}
	shares("one has all", 1000)
	all = append(all, begin("b", 2), begin("c", 3))
	shares("three have a third each", 333, 333, 333)
	all[1].running.Store(0)
	shares("one that has nothing to do leaves its part to the others", 500, 333, 500)
	if err := r.consul.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	all[0].running.Store(0)
	time.Sleep(2 * shareEvery)
	if got := all[0].share.Load(); got != 500 {
		t.Errorf("while Consul is away: %d thousandths", got)
	}
	if err := r.consul.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	shares("and it is asked again", 333, 333, 1000)
	all[0].stop()
	all[1].stop()
	all = all[2:]
	shares("who is left has all", 1000)
}

type hands struct{ at clock.Instant }

func (h *hands) Now() clock.Instant { return h.at }

// Each thing that can stand in the way has a name and a way out, and is over by itself once it is away.
func TestWhatStandsInTheWay(t *testing.T) {
	r := newRig(t)
	s, _ := r.scaler("a")
	trouble := func(what, hint string) {
		t.Helper()
		eventually(t, "trouble: "+what, func() bool {
			st := s.Status()
			return strings.Contains(st.Trouble, what) && strings.Contains(st.Hint, hint)
		})
	}
	well := func() {
		t.Helper()
		eventually(t, "no trouble", func() bool { return s.Status().Trouble == "" })
	}
	eventually(t, "it leads", func() bool { return s.Status().Leader == "a" && s.Status().Decision != nil })

	r.nomad.set(func(n *fakeNomad) { n.refuse = "job scaling blocked due to active deployment" })
	r.publish(1)
	trouble("deployment", "max_parallel = 0")
	eventually(t, "it was tried twice", func() bool { return s.Status().Changes.Blocked >= 2 })
	r.nomad.set(func(n *fakeNomad) { n.refuse = "" })
	eventually(t, "one", func() bool { return r.count() == 1 })
	well()

	r.nomad.set(func(n *fakeNomad) { n.deny = true })
	trouble("403", "retinue acl")
	r.nomad.set(func(n *fakeNomad) { n.deny, n.down = false, true })
	trouble("reach Nomad", "agent")
	r.nomad.set(func(n *fakeNomad) { n.down, n.stopped = false, true })
	trouble("stopped", "nomad job run")
	r.nomad.set(func(n *fakeNomad) { n.stopped = false })
	well()

	r.broker.Stop()
	trouble("how much there is to do is not known", "")
	if r.count() != 1 {
		t.Errorf("%d without knowing", r.count())
	}
	r.broker.Start()
	well()
	if text := s.Status().Explain(time.Now()); strings.Contains(text, secret) {
		t.Error("the token is in what people see")
	}
}

// Somebody else changed the job between look and change: the change does nothing, and is made anew from what is there now.
func TestALateChangeDoesNothing(t *testing.T) {
	r := newRig(t)
	n := Nomad{r.api}
	g, err := n.Group(t.Context(), "jobs/thumbs", "worker")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Scale(t.Context(), "jobs/thumbs", "worker", 3, g.Index, "first"); err != nil {
		t.Fatal(err)
	}
	if err := n.Scale(t.Context(), "jobs/thumbs", "worker", 5, g.Index, "late"); err != errChanged || r.count() != 3 {
		t.Errorf("%v, count %d", err, r.count())
	}
	for _, missing := range [][2]string{{"jobs/thumbs", "other"}, {"jobs/others", "worker"}} {
		if _, err := n.Group(t.Context(), missing[0], missing[1]); err == nil || hint.Of(err) == "" {
			t.Errorf("%v: %v", missing, err)
		}
	}
}

// Of three scalers one leads. When it stops the next one leads soon, when it dies or loses its session in the time of a lease; and
// what was measured is not forgotten.
func TestOneLeads(t *testing.T) {
	r := newRig(t)
	var all []*Scaler
	var stops []func()
	for _, id := range []string{"a", "b", "c"} {
		s, stop := r.scaler(id)
		all, stops = append(all, s), append(stops, stop)
	}
	leading := func(among []*Scaler) (who int) {
		who = -1
		for i, s := range among {
			if st := s.Status(); st.Leader == st.Scaler {
				if who >= 0 {
					t.Fatalf("%s and %s lead", among[who].cfg.ID, st.Scaler)
				}
				who = i
			}
		}
		return who
	}
	eventually(t, "one leads", func() bool { return leading(all) >= 0 })
	first := leading(all)
	name := all[first].cfg.ID
	eventually(t, "all know it, and its decision", func() bool {
		for _, s := range all {
			if st := s.Status(); st.Leader != name || st.Decision == nil {
				return false
			}
		}
		return true
	})
	load, _ := json.Marshal(Load{ID: "w", Items: 10, BusyS: 5})
	if _, err := r.client().KV().Put(&api.KVPair{Key: r.place.load("w"), Value: load}, nil); err != nil {
		t.Fatal(err)
	}
	r.publish(3)
	eventually(t, "measured", func() bool {
		d := all[first].Status().Decision
		return d.ServiceFrom == FromMeasured && d.ServiceS == 0.5
	})
	if _, err := r.client().KV().Delete(r.place.load("w"), nil); err != nil {
		t.Fatal(err)
	}
	stops[first]()
	rest := slices.Delete(slices.Clone(all), first, first+1)
	eventually(t, "the next one leads", func() bool { return leading(rest) >= 0 && rest[leading(rest)].Status().Decision != nil })
	second := rest[leading(rest)]
	if d := second.Status().Decision; d.ServiceFrom == FromAssumed {
		t.Errorf("what was measured is forgotten: %+v", d)
	}
	// Its session ends under it, as after a pause: it sees that, and does not lead on.
	sessions, _, err := r.client().Session().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions {
		if strings.Contains(s.Name, "scaler "+second.cfg.ID+" ") {
			if s.Node != VirtualNode {
				t.Errorf("the session is of node %s", s.Node)
			}
			if _, err := r.client().Session().Destroy(s.ID, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "one leads again", func() bool { return leading(rest) >= 0 })
	r.finish(3)
	eventually(t, "and works", func() bool { return r.count() == 0 })
}

// Without Consul nobody leads for longer than a lease, and nothing is changed; afterwards it goes on.
func TestConsulAway(t *testing.T) {
	r := newRig(t)
	s, _ := r.scaler("a")
	eventually(t, "it leads", func() bool { return s.Status().Leader == "a" && s.Status().Decision != nil })
	if err := r.consul.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody leads", func() bool { return s.Status().Leader == "" && s.Status().Trouble != "" })
	r.publish(5)
	before := len(r.nomad.history())
	eventually(t, "some steps", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.parts.Clock.Now().Sub(s.at) < time.Second })
	if len(r.nomad.history()) != before {
		t.Error("one that does not lead scales")
	}
	if err := r.consul.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it works again", func() bool { return r.count() > 0 && s.Status().Leader == "a" })
}

// The HTTP interface says what the status says, and Prometheus too.
func TestInterface(t *testing.T) {
	r := newRig(t)
	s, _ := r.scaler("a")
	r.publish(4)
	eventually(t, "a worker", func() bool { return r.count() > 0 && s.Status().Trouble == "" })
	addr := listen.Addr{Network: "unix", Path: filepath.Join(t.TempDir(), "s")}
	l, err := listen.Listen(addr, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { listen.Serve(ctx, l, Handler(s), 0) })
	defer serving.Wait()
	defer cancel()
	all, err := Ask(t.Context(), addr.String())
	if err != nil || len(all) != 1 || all[0].Leader != "a" || all[0].Last == nil || all[0].Rules.Max != 8 {
		t.Errorf("%+v, %v", all, err)
	}
	client, base := listen.Client(addr)
	for path, want := range map[string]string{"/metrics": `retinue_scaler_changes_total{queue="thumbs",group="worker",result="up"}`, "/healthz": `"ok":true`, "/readyz": `"ok":true`} {
		resp, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d, %v, lacks %s\n%s", path, resp.StatusCode, err, want, body)
		}
	}
	if _, err := Ask(t.Context(), "unix:///nowhere/s"); err == nil {
		t.Error("somebody answers nowhere")
	}
}

package scattergather_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/gather"
	"retinue/tests/harness"
)

// These tests kill and stop real processes: a root, leaves, a merge and a Consul agent on loopback, without Nomad. Each is one or
// more rows of the fault table in gather/README.md.

const (
	faultShards   = 3
	faultReplicas = 2
	faultDeadline = 3 * time.Second
)

// processes is a root with leaves that it finds in Consul.
type processes struct {
	t      *testing.T
	consul *harness.Process
	api    *consulapi.Client
	addr   string // Consul's
	root   *harness.Process
	at     *search // the root as a client sees it
	admin  *gather.Client
	leaves [faultShards][faultReplicas]*harness.Process
	want   []string // the right answer
}

func startProcesses(t *testing.T) *processes {
	t.Helper()
	w := &processes{t: t, want: lines(t, single(t).ask("job"))}
	w.startConsul()
	for shard := range faultShards {
		for replica := range faultReplicas {
			listen := "127.0.0.1:" + freePort(t)
			name := fmt.Sprintf("leaf-%d%c", shard, 'a'+replica)
			w.leaves[shard][replica] = harness.Start(t, harness.Spec{Name: name, Path: harness.RetinueBinary(t), Args: []string{"demo-app", "scatter-gather"},
				Env: []string{fmt.Sprintf("RETINUE_SHARD=%d", shard), fmt.Sprintf("RETINUE_SHARDS=%d", faultShards), "RETINUE_LISTEN=" + listen}})
			w.register(name, shard, listen)
		}
	}
	listen, dir := "127.0.0.1:"+freePort(t), harness.Dir(t, "root")
	admin := "unix://" + filepath.Join(dir, "gather.sock")
	w.root = harness.Start(t, harness.Spec{Name: "root", Path: harness.RetinueBinary(t), Env: []string{"CONSUL_HTTP_ADDR=" + w.addr},
		Args: []string{"gather", "--service", "leaf", "--shards", strconv.Itoa(faultShards), "--merge", "json-array", "--listen", listen, "--admin", admin,
			"--deadline", faultDeadline.String(), "--deadline-max", faultDeadline.String(), "--eject-for", "1s..4s"}})
	w.at = &search{t: t, root: listen, Job: &harness.Job{ID: "faults"}}
	var err error
	if w.admin, err = gather.NewClient(admin); err != nil {
		t.Fatal(err)
	}
	w.at.until(http.StatusOK, "1")
	return w
}

// startConsul runs a server that keeps what it knows on disk, as agents in production do.
func (w *processes) startConsul() {
	w.t.Helper()
	dir, port := harness.Dir(w.t, "consul"), freePort(w.t)
	w.addr = "127.0.0.1:" + port
	w.consul = harness.Start(w.t, harness.Spec{Name: "consul", Path: harness.ConsulBinary(w.t), Args: []string{"agent", "-server", "-bootstrap-expect=1", "-data-dir=" + dir,
		"-node=faults", "-bind=127.0.0.1", "-http-port=" + port, "-server-port=" + freePort(w.t), "-serf-lan-port=" + freePort(w.t), "-serf-wan-port=" + freePort(w.t),
		"-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-log-level=warn", "-hcl=performance { raft_multiplier = 1 }", "-hcl=disable_update_check = true"}})
	var err error
	if w.api, err = consulapi.NewClient(&consulapi.Config{Address: w.addr}); err != nil {
		w.t.Fatal(err)
	}
	w.consulAnswers()
}

func (w *processes) consulAnswers() {
	w.t.Helper()
	harness.Eventually(w.t, time.Minute, "Consul commits a write", func(context.Context) error {
		_, err := w.api.KV().Put(&consulapi.KVPair{Key: "ready"}, nil)
		return err
	})
}

func (w *processes) register(name string, shard int, listen string) {
	w.t.Helper()
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.api.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{ID: name, Name: "leaf", Address: host, Port: n,
		Meta: map[string]string{"shard": strconv.Itoa(shard), "replica": name}})
	if err != nil {
		w.t.Fatal(err)
	}
}

// state is what the root says of a leaf: in, out or probe.
func (w *processes) state(ctx context.Context, leaf string) (string, error) {
	v, err := w.admin.State(ctx)
	for _, shard := range v.Leaves {
		for _, r := range shard.Replicas {
			if r.Name == leaf {
				return r.State, nil
			}
		}
	}
	return "", err
}

func (w *processes) untilLeafIs(leaf, want string) {
	w.t.Helper()
	harness.Eventually(w.t, 30*time.Second, leaf+" is "+want, func(ctx context.Context) error {
		got, err := w.state(ctx, leaf)
		if err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

// asked is a request and what became of it.
type asked struct {
	began time.Time
	took  time.Duration
	err   string // "" for the right answer
}

// load asks all the time, from several clients, until stop is called, which returns what became of it.
func (w *processes) load() (stop func() []asked) {
	var mu sync.Mutex
	var all []asked
	ctx, cancel := context.WithCancel(w.t.Context())
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				one := asked{began: time.Now()}
				a, err := w.at.try(context.WithoutCancel(ctx), "job")
				one.took = time.Since(one.began)
				switch {
				case err != nil:
					one.err = err.Error()
				case a.status != http.StatusOK || a.coverage() != "1":
					one.err = fmt.Sprintf("%d, coverage %s: %s", a.status, a.coverage(), a.body)
				case !slices.Equal(lines(w.t, a), w.want):
					one.err = "WRONG: " + a.body
				}
				mu.Lock()
				all = append(all, one)
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
	return func() []asked { cancel(); clients.Wait(); return all }
}

// p99 of those that began in a span of time.
func p99(all []asked, from, to time.Time) time.Duration {
	var took []time.Duration
	for _, a := range all {
		if a.began.After(from) && a.began.Before(to) {
			took = append(took, a.took)
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}

func (w *processes) noneFailed(what string, all []asked) {
	w.t.Helper()
	failed := 0
	for _, a := range all {
		if a.err != "" {
			failed++
			w.t.Errorf("%s: %s", what, a.err)
		}
	}
	w.t.Logf("%s: %d requests, %d failed", what, len(all), failed)
	if len(all) == 0 {
		w.t.Errorf("%s: nothing was asked", what)
	}
}

func pause(d time.Duration) { <-time.After(d) } // load goes on meanwhile

func TestFaultsOfLeaves(t *testing.T) {
	w := startProcesses(t)
	t.Run("frozen", func(t *testing.T) {
		stop := w.load()
		pause(3 * time.Second)
		frozen := time.Now()
		w.leaves[0][0].Pause()
		w.untilLeafIs("leaf-0a", "out")
		t.Logf("left alone after %s", time.Since(frozen).Round(time.Millisecond))
		pause(max(0, 4*time.Second-time.Since(frozen)))
		thawed := time.Now()
		w.leaves[0][0].Resume()
		w.untilLeafIs("leaf-0a", "in")
		all := stop()
		w.noneFailed("a leaf is frozen", all)
		usual, after := p99(all, all[0].began.Add(time.Second), frozen), p99(all, frozen.Add(time.Second), thawed)
		t.Logf("p99 %s, from the second second of the freeze on %s", usual, after)
		if after >= faultDeadline/2 {
			t.Errorf("p99 is %s a second after the freeze: requests wait for the frozen leaf", after)
		}
	})
	t.Run("killed", func(t *testing.T) {
		stop := w.load()
		pause(time.Second)
		w.leaves[1][1].Kill() // nobody tells Consul
		w.untilLeafIs("leaf-1b", "out")
		pause(time.Second)
		w.leaves[1][1].Run()
		w.untilLeafIs("leaf-1b", "in")
		w.noneFailed("a leaf is killed", stop())
	})
	t.Run("a whole shard killed", func(t *testing.T) {
		for _, leaf := range w.leaves[2] {
			leaf.Kill()
		}
		if a := w.at.ask("job"); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, `"shard":2`) {
			t.Errorf("without a shard: %d %s", a.status, a.body)
		}
		for _, leaf := range w.leaves[2] {
			leaf.Run()
		}
		w.at.until(http.StatusOK, "1")
	})
}

func TestFaultsOfConsul(t *testing.T) {
	w := startProcesses(t)
	stop := w.load()
	pause(500 * time.Millisecond)
	w.consul.Kill()
	catalog := func(what string, ok func(c gather.CatalogState) bool) {
		harness.Eventually(t, 30*time.Second, what, func(ctx context.Context) error {
			v, err := w.admin.State(ctx)
			if err == nil && (v.Catalog == nil || !ok(*v.Catalog)) {
				err = fmt.Errorf("%+v", v.Catalog)
			}
			return err
		})
	}
	catalog("the root says that Consul is gone", func(c gather.CatalogState) bool { return c.Error != "" })
	pause(2 * time.Second)
	w.consul.Run()
	w.consulAnswers()
	catalog("the catalog answers again", func(c gather.CatalogState) bool { return c.Error == "" })
	w.register("leaf-new", 0, "127.0.0.1:"+freePort(t)) // nobody listens there
	harness.Eventually(t, 30*time.Second, "a leaf that came later is known", func(ctx context.Context) error {
		got, err := w.state(ctx, "leaf-new")
		if err == nil && got == "" {
			err = fmt.Errorf("it is not")
		}
		return err
	})
	w.noneFailed("Consul is killed and comes back", stop())
}

func TestFaultsOfTheRoot(t *testing.T) {
	w := startProcesses(t)
	t.Run("killed", func(t *testing.T) {
		stop := w.load()
		pause(500 * time.Millisecond)
		w.root.Kill()
		pause(200 * time.Millisecond)
		began := time.Now()
		w.root.Run()
		w.at.until(http.StatusOK, "1")
		t.Logf("answers %s after its start", time.Since(began).Round(time.Millisecond))
		broken := 0
		for _, a := range stop() {
			if a.err != "" {
				broken++
			}
			if strings.Contains(a.err, "WRONG") || strings.Contains(a.err, "200, coverage") {
				t.Errorf("an answer of a root that was killed: %s", a.err)
			}
		}
		if broken == 0 {
			t.Error("no client noticed: the root was not killed under load")
		}
	})
	t.Run("stopped", func(t *testing.T) {
		w.root.Pause()
		standsStill(t, w.root)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := w.at.try(ctx, "job"); err == nil {
			t.Error("a root that is stopped answers")
		}
		later := make(chan string, 1)
		go func() {
			a, err := w.at.try(context.WithoutCancel(t.Context()), "job")
			later <- fmt.Sprintf("%d %s %v", a.status, a.coverage(), err)
		}()
		pause(500 * time.Millisecond)
		w.root.Resume()
		if got := <-later; got != "200 1 <nil>" {
			t.Errorf("what was asked while it was stopped: %s", got)
		}
		stop := w.load()
		pause(time.Second)
		w.noneFailed("the root goes on", stop())
	})
}

// standsStill waits until every thread of a paused process has stopped: the signal takes its time on a busy machine.
func standsStill(t *testing.T, p *harness.Process) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the process stands still", func(context.Context) error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			if err == nil && !strings.Contains(string(stat), ") T ") {
				return fmt.Errorf("%s", stat)
			}
		}
		return err
	})
}

// slowLeaf is a leaf that answers when it is told to, and counts who waits.
type slowLeaf struct {
	*httptest.Server
	waiting chan struct{} // one for each request that came
	gone    chan struct{} // one for each that was given up
	release chan struct{} // has one that holds be answered
}

func startSlowLeaf(t *testing.T) *slowLeaf {
	l := &slowLeaf{waiting: make(chan struct{}, 16), gone: make(chan struct{}, 16), release: make(chan struct{})}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query().Get("q")
		if q == "hold" {
			l.waiting <- struct{}{}
			select {
			case <-l.release:
			case <-r.Context().Done():
			}
		}
		if q != "wait" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"hits":[{"id":"a","score":1}]}`)
			return
		}
		l.waiting <- struct{}{}
		<-r.Context().Done()
		l.gone <- struct{}{}
	}))
	t.Cleanup(l.Close)
	return l
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("never happened: %s", what)
	}
}

func startRoot(t *testing.T, args ...string) (*harness.Process, *search) {
	t.Helper()
	return startRootBy(t, nil, args...)
}

// noDisk runs a program for which every byte written to a file is one too many: Go ends with SIGXFSZ then.
var noDisk = []string{"sh", "-c", `ulimit -f 0 && exec "$0" "$@" 2>/dev/null`}

// startRootBy starts a root by way of another program.
func startRootBy(t *testing.T, by []string, args ...string) (*harness.Process, *search) {
	t.Helper()
	listen := "127.0.0.1:" + freePort(t)
	line := append(append(slices.Clone(by), harness.RetinueBinary(t), "gather", "--listen", listen, "--admin", "unix://"+filepath.Join(harness.Dir(t, "root"), "gather.sock")), args...)
	p := harness.Start(t, harness.Spec{Name: "root", Path: line[0], Args: line[1:]})
	s := &search{t: t, root: listen, Job: &harness.Job{ID: "faults"}}
	harness.Eventually(t, 20*time.Second, "the root is ready", func(ctx context.Context) error {
		ready, said, err := readiness(ctx, listen)
		if err == nil && !ready {
			err = fmt.Errorf("%s", said)
		}
		return err
	})
	return p, s
}

// What leaves see of a root that is killed, and clients of one that stood still beyond a deadline, or was told to end.
func TestRequestsUnderWay(t *testing.T) {
	leaf := startSlowLeaf(t)
	root, s := startRoot(t, "--leaf", "0="+leaf.URL, "--deadline", "2s")
	got := make(chan string, 1)
	ask := func() {
		a, err := s.try(context.WithoutCancel(t.Context()), "wait")
		got <- fmt.Sprintf("%d %v %s", a.status, err, a.body)
	}
	go ask()
	within(t, "the leaf is asked", leaf.waiting)
	root.Pause()
	pause(2500 * time.Millisecond) // longer than the deadline
	root.Resume()
	if a := <-got; !strings.HasPrefix(a, "504 <nil>") || !strings.Contains(a, `"timeout"`) {
		t.Errorf("a request whose deadline passed while the root stood still: %s", a)
	}
	within(t, "the leaf is given up", leaf.gone)

	go ask()
	within(t, "the leaf is asked", leaf.waiting)
	root.Kill()
	within(t, "the leaf sees the closed connection of a root that was killed", leaf.gone)
	if a := <-got; strings.HasPrefix(a, "200") {
		t.Errorf("a client of the killed root: %s", a)
	}
	next, other := startRootBy(t, noDisk, "--leaf", "0="+leaf.URL, "--deadline", "20s", "--deadline-max", "20s")
	if a := other.ask("x"); a.status != http.StatusOK {
		t.Errorf("another root, without a disk: %d %s", a.status, a.body)
	}
	go func() {
		a, err := other.try(context.WithoutCancel(t.Context()), "hold")
		got <- fmt.Sprintf("%d %v %s", a.status, err, a.body)
	}()
	within(t, "the leaf is asked", leaf.waiting)
	next.Signal(syscall.SIGTERM)
	harness.Eventually(t, 10*time.Second, "the root takes no new connections", func(context.Context) error {
		c, err := net.Dial("tcp", other.root)
		if err != nil {
			return nil
		}
		c.Close()
		return fmt.Errorf("it does")
	})
	leaf.release <- struct{}{}
	if a := <-got; !strings.HasPrefix(a, "200 <nil>") {
		t.Errorf("what was under way when the root was told to end: %s", a)
	}
	if err := next.WaitExit(10 * time.Second); err != nil {
		t.Errorf("the root ended with %v", err)
	}
}

// A merge that is killed costs the requests of its time, and nothing else.
func TestFaultsOfTheMerge(t *testing.T) {
	harness.Need(t, harness.Program("python3", true))
	leaf := startSlowLeaf(t)
	listen := "127.0.0.1:" + freePort(t)
	merge := harness.Start(t, harness.Spec{Name: "merge", Path: "python3", Args: []string{filepath.Join(harness.RepoRoot(t), "gather", "example", "merge", "merge.py"), listen}})
	_, s := startRoot(t, "--leaf", "0="+leaf.URL, "--merge", "http://"+listen+"/", "--deadline", "15s", "--deadline-max", "15s")
	s.until(http.StatusOK, "1")
	got := make(chan answer, 1)
	began := time.Now()
	go func() {
		a, _ := s.try(context.WithoutCancel(t.Context()), "wait")
		got <- a
	}()
	within(t, "the leaf is asked", leaf.waiting)
	merge.Kill()
	within(t, "the leaf is given up", leaf.gone)
	a := <-got
	var problem gather.Problem
	if err := json.Unmarshal([]byte(a.body), &problem); err != nil || a.status != http.StatusBadGateway || problem.Cause != "merge_failed" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("after %s: the root waited for its deadline", took)
	}
	if a := s.ask("x"); a.status != http.StatusBadGateway {
		t.Errorf("without a merge: %d %s", a.status, a.body)
	}
	merge.Run()
	if a := s.until(http.StatusOK, "1"); len(decode(t, a).Hits) != 1 {
		t.Errorf("with the merge again: %s", a.body)
	}
}

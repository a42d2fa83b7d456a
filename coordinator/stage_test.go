package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// workerFunc is a worker in this process, one item a call.
type workerFunc func(ctx context.Context, task *item.Task) worker.Verdict

func (f workerFunc) Call(ctx context.Context, tasks []*item.Task) []worker.Verdict {
	out := make([]worker.Verdict, len(tasks))
	for i, t := range tasks {
		out[i] = f(ctx, t)
	}
	return out
}
func (workerFunc) Discard(*worker.Output) {}
func (workerFunc) Close() error           { return nil }

// memoryKV is a journal in this process. fail, when set, decides over requests.
type memoryKV struct {
	mu      sync.Mutex
	values  map[string][]byte
	creates int
	fail    func() error
}

func (k *memoryKV) Create(_ context.Context, key string, value []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		if err := k.fail(); err != nil {
			return nil, err
		}
	}
	if k.values == nil {
		k.values = map[string][]byte{}
	}
	if _, ok := k.values[key]; !ok {
		k.values[key] = value
		k.creates++
	}
	return k.values[key], nil
}

func (k *memoryKV) Get(_ context.Context, key string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.values[key], nil
}

// stage is one coordinator at work over a broker in memory, behind a real HTTP server.
type stage struct {
	*Coordinator
	broker *memory.Broker
	srv    *httptest.Server
	stop   context.CancelFunc
	hard   context.CancelFunc
	ended  chan error
}

func startStage(t *testing.T, broker *memory.Broker, cfg Config, point commit.Point, w worker.Worker) *stage {
	t.Helper()
	return startStageAt(t, clock.Boot(), broker, cfg, point, w)
}

func startStageAt(t *testing.T, at clock.Clock, broker *memory.Broker, cfg Config, point commit.Point, w worker.Worker) *stage {
	t.Helper()
	c, err := New(cfg, Parts{Open: func(o source.Options) (source.Source, error) { return broker.Open(o) }, Point: point, Worker: w, Clock: at, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	hardCtx, hard := context.WithCancel(context.Background())
	s := &stage{Coordinator: c, broker: broker, stop: stop, hard: hard, ended: make(chan error, 1)}
	go func() { s.ended <- c.Run(ctx, hardCtx) }()
	s.srv = httptest.NewServer(c.Handler())
	t.Cleanup(func() {
		s.stop()
		s.hard()
		s.srv.CloseClientConnections()
		s.srv.Close()
		<-s.Coordinator.ended
	})
	return s
}

func quick() Config {
	cfg := testConfig()
	cfg.Lease = 2 * time.Second
	cfg.Retry, cfg.CrashRetry = Backoff{time.Millisecond, 5 * time.Millisecond}, Backoff{time.Millisecond, 5 * time.Millisecond}
	cfg.NotReady, cfg.Infra = Backoff{time.Millisecond, 20 * time.Millisecond}, Backoff{time.Millisecond, 20 * time.Millisecond}
	return cfg
}

func (s *stage) call(t *testing.T, method, path, body string, header ...string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequest(method, s.srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if json.Unmarshal(data, &out) != nil && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		t.Errorf("%s %s: not JSON: %s", method, path, data)
	}
	return resp.StatusCode, out
}

// upper is a worker that fails for bodies that say so.
func upper(_ context.Context, task *item.Task) worker.Verdict {
	switch body := string(task.Body); {
	case body == "bad":
		return worker.Verdict{Kind: worker.Dead, Reason: "exit code 65", Stderr: "no such picture"}
	case strings.HasPrefix(body, "flaky") && task.N < 3:
		return worker.Verdict{Kind: worker.Retry, Reason: "exit code 1"}
	default:
		return worker.Verdict{Kind: worker.Ack, Output: &worker.Output{Result: []byte(strings.ToUpper(body)), Next: []item.Message{{Body: []byte(strings.ToUpper(body))}}}}
	}
}

func TestResultsByWaiting(t *testing.T) {
	kv := &memoryKV{}
	s := startStage(t, memory.New(), quick(), commit.Journal{KV: kv}, workerFunc(upper))
	status, got := s.call(t, "POST", "/v1/queues/q/items?wait=10s", "flaky one", "Idempotency-Key", "k1", "Content-Type", "text/plain")
	if status != 200 || got["state"] != "done" || got["result"] != "FLAKY ONE" || got["attempt"] != 3.0 {
		t.Fatalf("%d %v", status, got)
	}
	// The same key again: the same result, and nothing is executed.
	status, got = s.call(t, "POST", "/v1/queues/q/items?wait=10s", "something else", "Idempotency-Key", "k1")
	if status != 200 || got["result"] != "FLAKY ONE" {
		t.Errorf("repeated: %d %v", status, got)
	}
	if status, got = s.call(t, "POST", "/v1/queues/q/items", "x", "Idempotency-Key", "k1"); status != 200 || got["repeated"] != true {
		t.Errorf("repeated without wait: %d %v", status, got)
	}
	if status, got = s.call(t, "GET", "/v1/items/k1", ""); status != 200 || got["state"] != "done" {
		t.Errorf("item: %d %v", status, got)
	}
	if ids := s.broker.Items("next"); len(ids) != 1 || ids[0] != "k1/q/0" {
		t.Errorf("next stage: %v", ids)
	}
}

func TestDeadLetters(t *testing.T) {
	cfg := quick()
	cfg.Alloc = "a11oc"
	s := startStage(t, memory.New(), cfg, commit.Journal{KV: &memoryKV{}}, workerFunc(upper))
	for _, id := range []string{"a", "b", "c"} {
		if status, got := s.call(t, "POST", "/v1/queues/q/items?wait=10s", "bad", "Idempotency-Key", id, "Item-Tenant", "x"); status != 200 || got["state"] != "dead" || got["class"] != "refused" {
			t.Fatalf("%d %v", status, got)
		}
	}
	_, got := s.call(t, "GET", "/v1/queues/q/dead", "")
	letters := got["dead"].([]any)
	if len(letters) != 3 {
		t.Fatalf("%v", got)
	}
	first := letters[0].(map[string]any)
	attempt := first["attempts"].([]any)[0].(map[string]any)
	if first["id"] != "a" || first["reason"] != "exit code 65" || first["body"] != "bad" || attempt["stderr"] != "no such picture" || attempt["node"] != "n" || attempt["alloc"] != "a11oc" {
		t.Errorf("%v", first)
	}
	// Tried again with another body, it has a record of its own.
	if status, got := s.call(t, "POST", "/v1/queues/q/dead/retry", `{"ids":["b"],"edit":{"body":"good","headers":{"Item-Tenant":""}}}`); status != 200 || got["changed"] != 1.0 {
		t.Fatalf("retry: %d %v", status, got)
	}
	if status, got := s.call(t, "GET", "/v1/items/b~r1?wait=10s", ""); status != 200 || got["state"] != "done" || got["result"] != "GOOD" {
		t.Errorf("replay: %d %v", status, got)
	}
	if _, got := s.call(t, "GET", "/v1/items/b", ""); got["state"] != "done" {
		t.Errorf("the item itself: %v", got)
	}
	if status, got := s.call(t, "POST", "/v1/queues/q/dead/purge", `{"all":true}`); status != 200 || got["changed"] != 2.0 {
		t.Errorf("purge: %d %v", status, got)
	}
	if ids := s.broker.Items("q-dead"); len(ids) != 0 {
		t.Errorf("left: %v", ids)
	}
}

// A worker gets its item's key whether or not anything goes by it here.
func TestKeysReachWorkers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no order":         {func(*Config) {}, "k"},
		"by the message":   {func(c *Config) { c.Keys = true }, "k"},
		"by a header":      {func(c *Config) { c.Keys, c.Key = true, "Item-Tenant" }, "t"},
		"by one not there": {func(c *Config) { c.Keys, c.Key = true, "Item-Other" }, "k"},
	} {
		cfg := quick()
		c.change(&cfg)
		s := startStage(t, memory.New(), cfg, commit.Journal{KV: &memoryKV{}}, workerFunc(func(_ context.Context, task *item.Task) worker.Verdict {
			return worker.Verdict{Kind: worker.Ack, Output: &worker.Output{Result: []byte(task.Key), ResultType: "text/plain"}}
		}))
		if _, got := s.call(t, "POST", "/v1/queues/q/items?wait=30s", "x", "Idempotency-Key", "a", "Retinue-Key", "k", "Item-Tenant", "t"); got["result"] != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestCancelOfWhatNobodyHas(t *testing.T) {
	ran := make(chan string, 10)
	s := startStage(t, memory.New(), quick(), commit.Journal{KV: &memoryKV{}}, workerFunc(func(_ context.Context, task *item.Task) worker.Verdict {
		ran <- task.ID
		return worker.Verdict{Kind: worker.Ack}
	}))
	s.call(t, "POST", "/v1/queues/q:pause", "")
	if status, _ := s.call(t, "POST", "/v1/queues/q/items", "x", "Idempotency-Key", "a"); status != 202 {
		t.Fatalf("%d", status)
	}
	s.call(t, "POST", "/v1/queues/q/items", "x", "Idempotency-Key", "b")
	if status, got := s.call(t, "DELETE", "/v1/items/a", ""); status != 200 || got["state"] != "cancelled" {
		t.Fatalf("%d %v", status, got)
	}
	s.call(t, "POST", "/v1/queues/q:resume", "")
	if status, got := s.call(t, "GET", "/v1/items/b?wait=10s", ""); status != 200 || got["state"] != "done" {
		t.Fatalf("%d %v", status, got)
	}
	if status, got := s.call(t, "DELETE", "/v1/items/b", ""); status != 409 || got["state"] != "done" {
		t.Errorf("cancel of what is done: %d %v", status, got)
	}
	s.stop()
	<-s.ended
	for len(ran) > 0 {
		// A commit point that costs something is not asked before a first attempt: a may have run, and counted for nothing.
		if id := <-ran; id == "a" {
			t.Log("the cancelled item ran; its output was thrown away")
		}
	}
	if rec, err := s.parts.Point.Read(t.Context(), "q", "a"); err != nil || rec.State != item.Cancelled {
		t.Errorf("%+v %v", rec, err)
	}
	if ids := s.broker.Items("q"); len(ids) != 0 {
		t.Errorf("left in the queue: %v", ids)
	}
}

func TestDelayAndBulk(t *testing.T) {
	s := startStage(t, memory.New(), quick(), nil, workerFunc(upper))
	start := time.Now()
	if status, got := s.call(t, "POST", "/v1/queues/q/items?wait=10s", "x", "Retinue-Delay", "300ms"); status != 200 || got["state"] != "done" {
		t.Fatalf("%d %v", status, got)
	}
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("delivered after %s", took)
	}
	lines := `{"id":"l1","body":"a","key":"K"}` + "\n\n" + `{"id":"l2","body_base64":"/w==","headers":{"a":"b"}}` + "\n"
	if status, got := s.call(t, "POST", "/v1/queues/q/items", lines, "Content-Type", "application/x-ndjson"); status != 202 || got["accepted"] != 2.0 {
		t.Errorf("%d %v", status, got)
	}
}

func TestBadRequests(t *testing.T) {
	s := startStage(t, memory.New(), quick(), nil, workerFunc(upper))
	for _, c := range []struct {
		method, path, body string
		header             []string
		status             int
		code               string
	}{
		{"GET", "/v1/nothing", "", nil, 404, "not_found"},
		{"GET", "/v1/queues/other/stats", "", nil, 404, "unknown_queue"},
		{"POST", "/v1/queues/q:stop", "", nil, 404, "not_found"},
		{"POST", "/v1/queues/q:resume?key=x", "", nil, 404, "not_parked"},
		{"POST", "/v1/queues/q/items?wait=soon", "x", nil, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", "x", []string{"Retinue-Priority", "high"}, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", "x", []string{"Retinue-Delay", "-1s"}, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", "x", []string{"Idempotency-Key", "a b"}, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", "x", []string{"Idempotency-Key", "a~r1"}, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", "", []string{"Content-Type", "application/x-ndjson"}, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", "{", []string{"Content-Type", "application/x-ndjson"}, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", `{"bdy":"x"}`, []string{"Content-Type", "application/x-ndjson"}, 400, "bad_request"},
		{"POST", "/v1/queues/q/items?wait=1s", "{}\n{}", []string{"Content-Type", "application/x-ndjson"}, 400, "bad_request"},
		{"GET", "/v1/queues/q/items?limit=0", "", nil, 400, "bad_request"},
		{"GET", "/v1/items/nobody", "", nil, 404, "unknown_item"},
		{"DELETE", "/v1/items/nobody", "", nil, 404, "unknown_item"},
		{"POST", "/v1/items/x/done", "", nil, 409, "not_pending"},
		{"POST", "/v1/items/x/dance", "", nil, 404, "not_found"},
		{"POST", "/v1/items/x/fail", "{", nil, 400, "bad_request"},
		{"POST", "/v1/items/x/done", "", []string{"Retinue-Fence", "x"}, 400, "bad_request"},
		{"POST", "/v1/items/x/extend", "", nil, 409, "not_pending"},
		{"POST", "/v1/queues/q/dead/retry", "{}", nil, 400, "bad_request"},
		{"POST", "/v1/queues/q/dead/purge", "nonsense", nil, 400, "bad_request"},
		{"POST", "/v1/queues/q/items", "x", []string{"Sec-Fetch-Site", "cross-site"}, 403, "cross_origin"},
	} {
		status, got := s.call(t, c.method, c.path, c.body, c.header...)
		if status != c.status || got["error"] != c.code || got["message"] == "" {
			t.Errorf("%s %s %q: %d %v, want %d %s", c.method, c.path, c.body, status, got, c.status, c.code)
		}
	}
}

// A coordinator that ends gives back what it has not finished, and what it finished stays done.
func TestStopOverHTTP(t *testing.T) {
	release := make(chan struct{})
	started := make(chan string, 10)
	s := startStage(t, memory.New(), quick(), nil, workerFunc(func(ctx context.Context, task *item.Task) worker.Verdict {
		started <- task.ID
		select {
		case <-release:
			return worker.Verdict{Kind: worker.Ack}
		case <-ctx.Done():
			return worker.Verdict{Kind: worker.Stopped, Reason: "stopped"}
		}
	}))
	for _, id := range []string{"1", "2", "3", "4", "5"} {
		s.call(t, "POST", "/v1/queues/q/items", "x", "Idempotency-Key", id)
	}
	for range 4 {
		<-started
	}
	s.stop()
	close(release)
	if err := <-s.ended; err != nil {
		t.Fatal(err)
	}
	if ids := s.broker.Items("q"); len(ids) != 1 || ids[0] != "5" {
		t.Errorf("left: %v", ids)
	}
}

// slowly is the boot clock on a machine so busy that time passes between any two readings.
type slowly struct{}

func (slowly) Now() clock.Instant {
	time.Sleep(25 * time.Millisecond) // more than any delay of quick
	return clock.Boot().Now()
}

// The broker goes away and comes back; nothing is lost, nothing is executed again. On a busy machine, too, where what was left for
// later is due before anybody has looked: it must not be passed over.
func TestBrokerOutage(t *testing.T) {
	t.Run("idle", func(t *testing.T) { testBrokerOutage(t, clock.Boot(), "1", "2", "3") })
	t.Run("busy", func(t *testing.T) { testBrokerOutage(t, slowly{}, "1") }) // the steps of others would wake it
}

func testBrokerOutage(t *testing.T, at clock.Clock, ids ...string) {
	var mu sync.Mutex
	runs := map[string]int{}
	hold := make(chan struct{})
	cfg := quick()
	cfg.Lease = time.Hour // so that no extension wakes the stage
	s := startStageAt(t, at, memory.New(), cfg, commit.Journal{KV: &memoryKV{}}, workerFunc(func(_ context.Context, task *item.Task) worker.Verdict {
		mu.Lock()
		runs[task.ID]++
		mu.Unlock()
		<-hold
		return worker.Verdict{Kind: worker.Ack, Output: &worker.Output{Next: []item.Message{{Body: []byte("x")}}}}
	}))
	for _, id := range ids {
		s.call(t, "POST", "/v1/queues/q/items", "x", "Idempotency-Key", id)
	}
	for {
		st, err := s.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Running == len(ids) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.broker.Stop()
	close(hold)
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		st, _ := s.Stats(t.Context())
		if st.Totals.Failed[item.Infra] > 3 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("nobody tries again: %+v", st)
		}
	}
	s.broker.Start()
	for _, id := range ids {
		if status, got := s.call(t, "GET", "/v1/items/"+id+"?wait=10s", ""); status != 200 || got["state"] != "done" {
			t.Errorf("%d %v", status, got)
		}
	}
	s.stop()
	<-s.ended
	if len(s.broker.Items("q")) != 0 || len(s.broker.Items("next")) != len(ids) {
		t.Errorf("left %v, next %v", s.broker.Items("q"), s.broker.Items("next"))
	}
	for id, n := range runs {
		if n != 1 {
			t.Errorf("%s ran %d times", id, n)
		}
	}
}

func (k *memoryKV) Each(_ context.Context, prefix string, see func(key string) error) error {
	k.mu.Lock()
	keys := slices.Sorted(maps.Keys(k.values))
	k.mu.Unlock()
	for _, key := range keys {
		if strings.HasPrefix(key, prefix) {
			if err := see(key); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *memoryKV) Delete(_ context.Context, key string, value []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if bytes.Equal(k.values[key], value) {
		delete(k.values, key)
	}
	return nil
}

// A question that comes before the first step does not keep the stage from beginning.
func TestAskedBeforeTheStart(t *testing.T) {
	broker := memory.New()
	for range 20 { // the moment is short
		c, err := New(quick(), Parts{Open: func(o source.Options) (source.Source, error) { return broker.Open(o) }, Worker: workerFunc(upper), Clock: clock.Boot(), Log: hclog.NewNullLogger()})
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan error, 1)
		go func() { _, err := c.Stats(context.Background()); asked <- err }()
		for len(c.inbox) == 0 {
			time.Sleep(time.Millisecond)
		}
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx, context.Background()) }()
		if err := <-asked; err != nil {
			t.Error(err)
		}
		if err := c.source.Publish(t.Context(), source.Out{ID: source.NewID()}); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if st, err := c.Stats(t.Context()); err == nil && st.Totals.Ended[item.Done] == 1 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("it has not begun")
			}
		}
		stop()
		<-ended
	}
}

// Where the order of items counts they are not asked for abreast: they would overtake each other before anybody could order them.
func TestAbreastWhereOrderDoesNotCount(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		slots   int
		keys    bool
		abreast bool
	}{{4, false, true}, {4, true, false}, {1, false, false}} {
		cfg := quick()
		cfg.Slots, cfg.Keys = c.slots, c.keys
		var asked source.Options
		broker := memory.New()
		if _, err := New(cfg, Parts{Open: func(o source.Options) (source.Source, error) { asked = o; return broker.Open(o) }, Worker: workerFunc(upper), Clock: clock.Boot(), Log: hclog.NewNullLogger()}); err != nil {
			t.Fatal(err)
		}
		if asked.Abreast != c.abreast {
			t.Errorf("%+v: abreast %v", c, asked.Abreast)
		}
	}
}

package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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

func gathering() Config {
	cfg := quick()
	cfg.Queue, cfg.Dead, cfg.To, cfg.Gather = "parts", "parts-dead", "", "album"
	return cfg
}

func splitting() Config {
	cfg := quick()
	cfg.To, cfg.Split = "parts", true
	return cfg
}

func collecting() Config {
	cfg := quick()
	cfg.Queue, cfg.Dead, cfg.To = "album", "album-dead", ""
	return cfg
}

// words splits a body into a message for each word.
func words(_ context.Context, task *item.Task) worker.Verdict {
	out := &worker.Output{}
	for _, w := range strings.Fields(string(task.Body)) {
		out.Next = append(out.Next, item.Message{Body: []byte(w)})
	}
	return worker.Verdict{Kind: worker.Ack, Output: out}
}

// shout is upper without messages.
func shout(_ context.Context, task *item.Task) worker.Verdict {
	v := upper(context.Background(), task)
	if v.Output != nil {
		v.Output.Next = nil
	}
	return v
}

// inbox keeps what a stage gets.
type inbox struct {
	mu  sync.Mutex
	got map[string]Gathered
	n   int
}

func (b *inbox) worker(t *testing.T) workerFunc {
	return func(_ context.Context, task *item.Task) worker.Verdict {
		var g Gathered
		if err := json.Unmarshal(task.Body, &g); err != nil {
			t.Error(err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.got == nil {
			b.got = map[string]Gathered{}
		}
		b.n++
		b.got[task.ID] = g
		return worker.Verdict{Kind: worker.Ack}
	}
}

// Fan-out and fan-in over three stages, the middle one with three coordinators.
func TestSplitAndGather(t *testing.T) {
	for name, point := range map[string]commit.Point{"journal": commit.Journal{KV: &memoryKV{}}, "rename": commit.Rename{Dir: t.TempDir()}} {
		t.Run(name, func(t *testing.T) {
			var box inbox
			broker := memory.New()
			first := startStage(t, broker, splitting(), point, workerFunc(words))
			for range 3 {
				startStage(t, broker, gathering(), point, workerFunc(shout))
			}
			last := startStage(t, broker, collecting(), point, box.worker(t))
			var text []string
			for i := range 40 {
				text = append(text, fmt.Sprint("w", i))
			}
			for _, id := range []string{"x", "y"} {
				first.call(t, "POST", "/v1/queues/q/items", strings.Join(text, " "), "Idempotency-Key", id)
			}
			for _, id := range []string{"x", "y"} {
				if _, got := last.call(t, "GET", "/v1/items/"+id+"/q/parts/all?wait=60s", ""); got["state"] != "done" {
					t.Fatalf("%v", got)
				}
			}
			box.mu.Lock()
			defer box.mu.Unlock()
			if box.n != 2 || len(box.got) != 2 {
				t.Errorf("%d executions of %d items", box.n, len(box.got))
			}
			g := box.got["x/q/parts/all"]
			if g.Size != 40 || len(g.Parts) != 40 || g.Group != "x/q" || g.Stage != "parts" {
				t.Errorf("%+v", g)
			}
			for i, p := range g.Parts {
				if p.Part != i || p.Item != fmt.Sprint("x/q/", i) || string(p.Result) != fmt.Sprintf("%q", fmt.Sprint("W", i)) {
					t.Errorf("%d: %+v %s", i, p, p.Result)
				}
			}
		})
	}
}

// partFor publishes one part by hand.
func (s *stage) partFor(t *testing.T, id, body string, headers map[string]string) {
	t.Helper()
	line, err := json.Marshal(Line{ID: id, Body: &body, Headers: headers})
	if err != nil {
		t.Fatal(err)
	}
	if status, got := s.call(t, "POST", "/v1/queues/parts/items", string(line), "Content-Type", "application/x-ndjson"); status != 202 {
		t.Fatalf("%d %v", status, got)
	}
}

// settled waits until everything that follows from the items of a queue is done: they have been acknowledged.
func settled(t *testing.T, broker *memory.Broker, queue string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(broker.Items(queue)) > 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left: %v", broker.Items(queue))
		}
	}
}

// The count comes with the last part, or from a person; a dead part holds its group up until it is tried again, and is the same part then.
func TestGroupSizes(t *testing.T) {
	broker, p := memory.New(), commit.Journal{KV: &memoryKV{}}
	s := startStage(t, broker, gathering(), p, workerFunc(shout))
	album := func() int { return len(broker.Items("album")) }
	end := func(id, state string) {
		t.Helper()
		if _, got := s.call(t, "GET", "/v1/items/"+id+"?wait=60s", ""); got["state"] != state {
			t.Fatalf("%v", got)
		}
		settled(t, broker, "parts")
	}
	member := func(size string) map[string]string {
		h := map[string]string{"Group-Id": "g 1"}
		if size != "" {
			h["group-size"] = size
		}
		return h
	}
	s.partFor(t, "a", "a", member(""))
	s.partFor(t, "b", "bad", member(""))
	end("a", "done")
	end("b", "dead")
	s.partFor(t, "c", "c", member("3")) // the marker
	end("c", "done")
	if _, got := s.call(t, "GET", "/v1/queues/parts/groups", ""); album() != 0 || !reflect.DeepEqual(got["groups"], []any{map[string]any{"group": "g%201", "size": 3.0, "parts": 2.0}}) {
		t.Errorf("%d, %v", album(), got)
	}
	s.call(t, "POST", "/v1/queues/parts/dead/retry", `{"ids":["b"],"edit":{"body":"good"}}`)
	end("b~r1", "done")
	if ids := broker.Items("album"); len(ids) != 1 || !strings.HasSuffix(ids[0], "/parts/all") {
		t.Errorf("%v", ids)
	}
	// Nobody said how many; then one never comes.
	for _, id := range []string{"d", "e"} {
		s.partFor(t, id, id, map[string]string{"Group-Id": "open"})
		end(id, "done")
	}
	if status, got := s.call(t, "POST", "/v1/queues/parts/groups/close", `{"group":"open","size":3}`); status != 200 || got["sent"] != nil || album() != 1 {
		t.Errorf("%d %v", status, got)
	}
	if status, got := s.call(t, "POST", "/v1/queues/parts/groups/close", `{"group":"open","size":2}`); status != 200 || got["sent"] == nil || album() != 2 {
		t.Errorf("%d %v", status, got)
	}
	// A part that comes too late adds no second item.
	s.partFor(t, "f", "f", map[string]string{"Group-Id": "open"})
	end("f", "done")
	if album() != 2 {
		t.Errorf("%v", broker.Items("album"))
	}
	for id, h := range map[string]map[string]string{"m": {"Group-Id": "g", "Group-Size": "many"}, "n": {"Group-Id": "g", "Group-Size": "1001"}, "o": {"Group-Size": "3"}, "p": {"Group-Id": "g", "Group-Part": "-1"}} {
		s.partFor(t, id, "x", h)
		if _, got := s.call(t, "GET", "/v1/items/"+id+"?wait=60s", ""); got["state"] != "dead" || got["class"] != "invalid" || !strings.Contains(fmt.Sprint(got["reason"]), "Group-") {
			t.Errorf("%v: %v", h, got)
		}
	}
	for _, bad := range []string{"{}", "nonsense", `{"group":"g","size":0}`, `{"group":"g","size":1001}`} {
		if status, got := s.call(t, "POST", "/v1/queues/parts/groups/close", bad); status != 400 {
			t.Errorf("%s: %d %v", bad, status, got)
		}
	}
}

// hopeless is a queue that nothing can be published to.
type hopeless struct{ source.Source }

func (hopeless) Publish(context.Context, ...source.Out) error { return source.ErrUnavailable }

// The coordinator is killed between the commit of the last part and the publication of the group's item, and between that and its mark. Whoever
// gets the part again goes on; nothing is executed again, and there is one item.
func TestKilledBeforeFanIn(t *testing.T) {
	for name, sabotage := range map[string]func(kv *memoryKV, queue string, src source.Source) source.Source{
		"before the publication": func(_ *memoryKV, queue string, src source.Source) source.Source {
			if queue == "album" {
				return hopeless{src}
			}
			return src
		},
		"before the mark": func(kv *memoryKV, queue string, src source.Source) source.Source {
			if queue == "album" {
				return marked{src, kv}
			}
			return src
		},
	} {
		t.Run(name, func(t *testing.T) {
			broker, kv := memory.New(), &memoryKV{}
			p := commit.Journal{KV: kv}
			var runs ran
			count := func(ctx context.Context, task *item.Task) worker.Verdict { return runs.worker()(ctx, task) }
			c, err := New(gathering(), Parts{Open: func(o source.Options) (source.Source, error) {
				src, err := broker.Open(o)
				return sabotage(kv, o.Queue, src), err
			}, Point: p, Worker: workerFunc(count), Clock: clock.Boot(), Log: hclog.NewNullLogger()})
			if err != nil {
				t.Fatal(err)
			}
			hard, kill := context.WithCancel(context.Background())
			defer kill()
			ended := make(chan error, 1)
			go func() { ended <- c.Run(context.Background(), hard) }()
			src, err := broker.Open(source.Options{Queue: "parts"})
			if err != nil {
				t.Fatal(err)
			}
			headers := map[string]string{"Group-Id": "g", "Group-Size": "2"}
			if err := src.Publish(t.Context(), source.Out{ID: "a", Headers: headers}, source.Out{ID: "b", Headers: headers}); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
				if st, err := c.Stats(t.Context()); err == nil && st.Totals.Failed[item.Infra] >= 3 { // it tries again and again
					break
				}
				if time.Now().After(end) {
					t.Fatal("the publication did not fail")
				}
			}
			kill()
			<-ended
			kv.mu.Lock()
			kv.fail = nil
			kv.mu.Unlock()
			var box inbox
			startStage(t, broker, gathering(), p, workerFunc(count))
			last := startStage(t, broker, collecting(), p, box.worker(t))
			if _, got := last.call(t, "GET", "/v1/items/g/parts/all?wait=60s", ""); got["state"] != "done" {
				t.Fatalf("%v", got)
			}
			settled(t, broker, "parts")
			box.mu.Lock()
			defer box.mu.Unlock()
			runs.mu.Lock()
			defer runs.mu.Unlock()
			if box.n != 1 || len(box.got["g/parts/all"].Parts) != 2 || runs.n["a"] != 1 || runs.n["b"] != 1 {
				t.Errorf("%d gathered, %+v, runs %v", box.n, box.got, runs.n)
			}
		})
	}
}

// marked lets a publication through, and then nothing more reaches the commit point.
type marked struct {
	source.Source
	kv *memoryKV
}

func (m marked) Publish(ctx context.Context, outs ...source.Out) error {
	err := m.Source.Publish(ctx, outs...)
	m.kv.mu.Lock()
	defer m.kv.mu.Unlock()
	m.kv.fail = func() error { return errors.New("killed") }
	return err
}

// The records of a group that waits stay, however old; those of one that is over go, and then the group.
func TestForgetGroups(t *testing.T) {
	cfg := gathering()
	cfg.Keep = 7 * 24 * time.Hour
	kv, broker := &memoryKV{}, memory.New()
	s := startStage(t, broker, cfg, commit.Journal{KV: kv}, workerFunc(shout))
	s.partFor(t, "a", "a", map[string]string{"Group-Id": "waits", "Group-Size": "2"})
	s.partFor(t, "b", "b", map[string]string{"Group-Id": "over", "Group-Size": "1"})
	for _, id := range []string{"a", "b"} {
		s.call(t, "GET", "/v1/items/"+id+"?wait=60s", "")
	}
	settled(t, broker, "parts")
	if n, err := s.Coordinator.forget(t.Context(), time.Now().Add(week), time.Hour); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	views, err := s.groups().list(t.Context())
	if err != nil || len(views) != 1 || views[0].Group != "waits" || views[0].Parts != 1 {
		t.Errorf("%+v, %v", views, err)
	}
	if rec, err := s.parts.Point.Read(t.Context(), "parts", "a"); err != nil || rec == nil || rec.Group != "waits" {
		t.Errorf("%+v, %v", rec, err)
	}
}

// A group of the largest size fits into a message.
func TestLargestGroup(t *testing.T) {
	g := &Gathered{Group: strings.Repeat("g", 300), Stage: "parts", Size: maxParts}
	id := strings.Repeat("i", 200)
	for i := range maxParts {
		rec := item.Record{State: item.Done, Result: []byte(strings.Repeat("9", maxPartResult)), Files: []item.File{{Name: strings.Repeat("f", 255)}}}
		g.Parts = append(g.Parts, membership{"g", 0, i}.part(id, rec))
	}
	out, err := g.message()
	if err != nil || len(out.Body) > 512<<10 {
		t.Errorf("%d bytes, %v", len(out.Body), err)
	}
	if err := (source.Options{Classes: 1}).Check(out); err != nil {
		t.Error(err)
	}
}

// Which group a message to the next stage is part of.
func TestGroupHeaders(t *testing.T) {
	of := func(change func(*Config), headers map[string]string, next ...item.Message) map[string]string {
		cfg := testConfig()
		change(&cfg)
		m := newMachine(cfg, time.Now, func(d time.Duration) time.Duration { return d })
		it := &held{id: "x"}
		it.env.Headers = headers
		return m.groupHeaders(it, next, 0)
	}
	mine := map[string]string{"Group-Id": "g", "Group-Size": "2", "Group-Part": "1"}
	for name, c := range map[string]struct{ got, want map[string]string }{
		"handed on":        {of(func(*Config) {}, mine, item.Message{Headers: map[string]string{"a": "b"}}), map[string]string{"Group-Id": "g", "Group-Size": "2", "Group-Part": "1", "a": "b"}},
		"two of one":       {of(func(*Config) {}, mine, item.Message{}, item.Message{}), nil},
		"gathered here":    {of(func(c *Config) { c.Gather = "album" }, mine, item.Message{}), nil},
		"a new one":        {of(func(c *Config) { c.Split = true }, mine, item.Message{}, item.Message{}), map[string]string{"Group-Id": "x/q", "Group-Size": "2", "Group-Part": "0"}},
		"the worker's own": {of(func(c *Config) { c.Split = true }, mine, item.Message{Headers: map[string]string{"group-id": "w"}}), map[string]string{"group-id": "w"}},
		"none":             {of(func(*Config) {}, nil, item.Message{}), nil},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
}

func FuzzMemberOf(f *testing.F) {
	f.Add("g", "3", "1")
	f.Fuzz(func(t *testing.T, id, size, part string) {
		m, err := memberOf(map[string]string{"group-id": id, "GROUP-SIZE": size, HeaderGroupPart: part})
		if err == nil && m != nil && (m.group == "" || m.size < 0 || m.size > maxParts || m.n < 0) {
			t.Errorf("%+v", m)
		}
	})
}

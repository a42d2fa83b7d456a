package coordinator

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/blob"
	"retinue/coordinator/blob/blobtest"
	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/coordinator/worker"
)

func keeping() Config {
	cfg := quick()
	cfg.Keep = 7 * 24 * time.Hour
	return cfg
}

const week = 7*24*time.Hour + time.Minute

// A record is forgotten when it is old enough and nothing that it protects from is left; then its item is a new one.
func TestForget(t *testing.T) {
	kv := &memoryKV{}
	s := startStage(t, memory.New(), keeping(), commit.Journal{KV: kv}, workerFunc(upper))
	s.call(t, "POST", "/v1/queues/q/items?wait=30s", "a", "Idempotency-Key", "a")
	every := sweepEvery(s.cfg)
	forget := func(now time.Time) (int, error) {
		t.Helper()
		return s.Coordinator.forget(t.Context(), now, every)
	}
	if n, err := forget(time.Now()); n != 0 || err != nil {
		t.Errorf("young: %d, %v", n, err)
	}
	if n, err := forget(time.Now().Add(6 * 24 * time.Hour)); n != 0 || err != nil {
		t.Errorf("six days: %d, %v", n, err)
	}
	later := time.Now().Add(week)
	if n, err := forget(later); n != 1 || err != nil {
		t.Errorf("a week: %d, %v", n, err)
	}
	if status, got := s.call(t, "GET", "/v1/items/a", ""); status != 404 {
		t.Errorf("%d %v", status, got)
	}
	if n, err := forget(later); n != 0 || err != nil { // its turn is over
		t.Errorf("again: %d, %v", n, err)
	}
	// The commit point is away.
	s.call(t, "POST", "/v1/queues/q/items?wait=30s", "b", "Idempotency-Key", "b")
	kv.mu.Lock()
	kv.fail = func() error { return errors.New("away") }
	kv.mu.Unlock()
	if n, err := forget(time.Now().Add(2 * week)); n != 0 || err == nil {
		t.Errorf("without a store: %d, %v", n, err)
	}
}

// A dead letter goes when it is old enough, and no other one with it.
func TestForgetDeadLetters(t *testing.T) {
	cfg := quick()
	cfg.DeadKeep = 30 * 24 * time.Hour
	s := startStage(t, memory.New(), cfg, commit.Journal{KV: &memoryKV{}}, workerFunc(upper))
	die := func(id string) time.Time {
		s.call(t, "POST", "/v1/queues/q/items?wait=30s", "bad", "Idempotency-Key", id)
		time.Sleep(20 * time.Millisecond)
		return time.Now()
	}
	first, second := die("a"), die("b")
	for _, c := range []struct {
		at   time.Time
		left int
	}{{time.Now(), 2}, {first.Add(cfg.DeadKeep - time.Hour), 2}, {first.Add(cfg.DeadKeep), 1}, {first.Add(cfg.DeadKeep), 1}, {second.Add(cfg.DeadKeep), 0}} {
		n, err := s.forgetDead(t.Context(), c.at)
		if left := len(s.broker.Items("q-dead")); err != nil || left != c.left {
			t.Errorf("at %s: %d removed, %d left, want %d; %v", c.at, n, left, c.left, err)
		}
	}
	if _, got := s.call(t, "GET", "/v1/items/a", ""); got["state"] != "dead" {
		t.Errorf("its record went with it: %v", got)
	}
}

// deep is a queue that says what a test says.
type deep struct {
	source.Source
	depth source.Depth
	err   error
}

func (d deep) Depth(context.Context) (source.Depth, error) { return d.depth, d.err }

// Nothing is forgotten while something waits that is older, or the broker cannot tell.
func TestForgetsNothingThatCanComeBack(t *testing.T) {
	for name, c := range map[string]struct {
		depth source.Depth
		err   error
		state item.State
		want  int
	}{
		"empty":                   {source.Depth{Oldest: -1}, nil, item.Done, 1},
		"young":                   {source.Depth{Ready: 5, Oldest: time.Hour}, nil, item.Done, 1},
		"old":                     {source.Depth{Ready: 5, Oldest: week}, nil, item.Done, 0},
		"not told":                {source.Depth{Ready: 5, Oldest: -1}, nil, item.Done, 0},
		"no count":                {source.Depth{Ready: -1, Oldest: -1}, nil, item.Done, 0},
		"away":                    {source.Depth{}, source.ErrUnavailable, item.Done, 0},
		"dead":                    {source.Depth{Delayed: 1}, nil, item.Dead, 1},
		"cancelled, none delayed": {source.Depth{Ready: 1}, nil, item.Cancelled, 1},
		"cancelled, one delayed":  {source.Depth{Ready: 1, Delayed: 1}, nil, item.Cancelled, 0},
	} {
		for _, queue := range []string{"q", "next", "apart"} {
			if queue == "next" && c.state == item.Cancelled {
				continue
			}
			kv := &memoryKV{}
			p := commit.Journal{KV: kv}
			cfg := keeping()
			cfg.Divert = "apart"
			s := startStage(t, memory.New(), cfg, p, workerFunc(upper))
			if _, err := p.Commit(t.Context(), item.Record{ID: "a", Stage: "q", State: c.state, Attempt: "x", Ended: time.Now()}, ""); err != nil {
				t.Fatal(err)
			}
			src, err := s.open(queue)
			if err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			s.queues[queue] = deep{src, c.depth, c.err}
			s.mu.Unlock()
			if n, err := s.Coordinator.forget(t.Context(), time.Now().Add(week), time.Hour); n != c.want || (err != nil) != (c.want == 0 && c.state != item.Cancelled) {
				t.Errorf("%s at %s: %d, %v", name, queue, n, err)
			}
		}
	}
}

// Killed between the files and the record: the next one ends it, and no record is left without its files for ever.
func TestForgetKilledBetween(t *testing.T) {
	store, kv := blobtest.Start(t), &memoryKV{}
	a := commit.Artifacts{Point: commit.Journal{KV: stubborn{kv, new(int)}}, Client: blob.NewClient(store.Environment(), nil), Base: &url.URL{Scheme: "s3", Host: "b", Path: "/out"}}
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	rec := item.Record{ID: "i/1", Stage: "q", State: item.Done, Attempt: "one", Files: []item.File{{Name: "f", Size: 1}}}
	if _, err := a.Commit(t.Context(), rec, out); err != nil {
		t.Fatal(err)
	}
	// An upload of an attempt that died before its record.
	if err := a.Client.Put(t.Context(), a.Place("q", "i/1", "zero").JoinPath("f"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	all := func(item.Record) (bool, error) { return true, nil }
	if n, err := a.Forget(t.Context(), "q", time.Now(), all); n != 0 || err == nil {
		t.Errorf("the kill: %d, %v", n, err)
	}
	if rec, err := a.Read(t.Context(), "q", "i/1"); err != nil || rec == nil {
		t.Errorf("%v, %v", rec, err)
	}
	if n, err := a.Forget(t.Context(), "q", time.Now(), all); n != 1 || err != nil {
		t.Errorf("after it: %d, %v", n, err)
	}
	if err := a.Client.Each(t.Context(), &url.URL{Scheme: "s3", Host: "b", Path: "/out/"}, func(key string) error { return errors.New(key) }); err != nil {
		t.Errorf("left: %v", err)
	}
}

// stubborn is a journal whose first deletion dies.
type stubborn struct {
	*memoryKV
	tried *int
}

func (s stubborn) Delete(ctx context.Context, key string, value []byte) error {
	if *s.tried++; *s.tried == 1 {
		return errors.New("killed")
	}
	return s.memoryKV.Delete(ctx, key, value)
}

// The keeper itself, on a clock of its own speed.
func TestKeeper(t *testing.T) {
	cfg := keeping()
	if every := sweepEvery(cfg); every != time.Hour {
		t.Errorf("a week: every %s", every)
	}
	cfg.Keep = time.Hour
	if every := sweepEvery(cfg); every != 150*time.Second {
		t.Errorf("an hour: every %s", every)
	}
	cfg.Lease = time.Hour
	if every := sweepEvery(cfg); every != 3*time.Hour {
		t.Errorf("with a long lease: every %s", every)
	}
	dir := t.TempDir()
	p := commit.Rename{Dir: dir}
	s := startStage(t, memory.New(), keeping(), p, workerFunc(func(context.Context, *item.Task) worker.Verdict { return worker.Verdict{Kind: worker.Ack} }))
	s.call(t, "POST", "/v1/queues/q/items?wait=30s", "a", "Idempotency-Key", "a")
	if n, err := s.Coordinator.forget(t.Context(), time.Now().Add(-time.Hour), time.Hour); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	names, err := os.ReadDir(filepath.Join(dir, "q"))
	if err != nil || len(names) != 2 || !strings.HasPrefix(names[0].Name(), ".turn-") {
		t.Errorf("%v, %v", names, err)
	}
}

package coordinator

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/coordinator/worker"
)

func TestDivert(t *testing.T) {
	diverts := func(c *Config) { c.Divert, c.DivertOver, c.MaxRuntime = "apart", 10, time.Minute }
	s := newScript(t, diverts)
	big, exact, linked := msg("big", "", 0), msg("exact", "", 0), msg("linked", "", 0)
	big.Body, exact.Body = make([]byte, 11), make([]byte, 10)
	linked.Headers = (&item.Envelope{ID: "linked", Input: &item.Reference{URL: "s3://b/x", Size: 11}}).Seal("linked")
	s.receive(big, exact, linked, msg("slow", "", 0), msg("frail", "", 0), msg("bad", "", 0))
	s.expect("what is too large is not started", s.running(), "exact slow frail bad")
	s.expect("it goes to the other queue, unharmed", s.left(), "publish apart big~0d, publish apart linked~0d, ack big, ack linked")
	if out := s.queue["apart"][0]; len(out.Body) != 11 {
		t.Errorf("%+v", out)
	}
	s.log = nil
	s.answer("exact", ack())
	s.answer("bad", verdict(worker.Dead))
	s.answer("slow", verdict(worker.TimedOut))
	s.answer("frail", verdict(worker.Crashed))
	s.wait(time.Second)
	s.expect("one crash is tried again here", s.running(), "frail")
	s.answer("frail", verdict(worker.Crashed))
	s.expect("the second is not", s.left(), "ack exact, publish q-dead bad~dead, ack bad, publish apart slow~1d, ack slow, publish apart frail~2d, ack frail")
	frail, err := item.Open("frail~2d", s.queue["apart"][3].Headers)
	if err != nil || frail.ID != "frail" || counted(frail.History) != 2 || s.m.totals.Diverted != 4 {
		t.Errorf("%+v, %v, %+v", frail, err, s.m.totals)
	}

	// Where they go, they are the same items, and what happened to them counts.
	other := newScript(t, func(c *Config) { c.Queue, c.Stage, c.Record = "apart", "q", true })
	there := msg("frail~2d", "", 0)
	there.Headers = s.queue["apart"][3].Headers
	other.receive(there)
	other.answer("frail", verdict(worker.Crashed))
	if rec := other.ended["frail"]; rec.Stage != "q" || rec.State != item.Dead || rec.Class != item.Quarantine || len(rec.Attempts) != 3 {
		t.Errorf("%+v", rec)
	}
	there = msg("big~0d", "", 0)
	there.Headers = s.queue["apart"][0].Headers
	other.receive(there)
	out := message("x", "")
	other.answer("big", worker.Verdict{Kind: worker.Ack, Output: &out})
	if rec := other.ended["big"]; rec.Stage != "q" || rec.State != item.Done {
		t.Errorf("%+v", rec)
	}
	if next := other.queue["next"]; len(next) != 1 || next[0].ID != "big/q/0" {
		t.Errorf("%+v", next)
	}
}

// TestModelDiverts: what one kind of worker cannot do is done by another, once, whatever happens.
func TestModelDiverts(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for seed := range rounds {
		cfg, apart := testConfig(), testConfig()
		cfg.Divert, cfg.DivertOver, cfg.MaxRuntime = "q-apart", 50, 20*time.Second
		apart.Queue, apart.Stage = "q-apart", "q"
		cfg.Check = seed%2 == 0
		m := newModel(t, uint64(seed), 2, cfg, apart, apart)
		if seed%4 < 2 {
			m.seen = map[string]bool{}
		}
		m.fill(500, long, large, frail, flaky, broken, poison, wrong)
		m.faults = true
		m.after(0, m.mischief)
		m.after(5*time.Minute, func() { m.faults = false })
		m.run(24 * time.Hour)
		m.check()
		for id, rec := range m.records {
			if kind := m.items[id]; kind == poison && rec.Class != item.Quarantine {
				t.Errorf("%s (%s) is %s", id, kind, rec.Class)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// Coordinators of two queues work for one stage: an item ends once, whichever of them had it.
func TestTwoQueuesOneStage(t *testing.T) {
	kv, broker := &memoryKV{}, memory.New()
	var runs atomic.Int32
	by := func(who string) workerFunc {
		return func(_ context.Context, task *item.Task) worker.Verdict {
			runs.Add(1)
			return worker.Verdict{Kind: worker.Ack, Output: &worker.Output{Result: []byte(who + " of stage " + task.Stage)}}
		}
	}
	cfg, apart := quick(), quick()
	cfg.Divert, cfg.DivertOver = "apart", 10
	apart.Queue, apart.Stage = "apart", "q"
	cfg.Classes, apart.Classes = 3, 3
	first := startStage(t, broker, cfg, commit.Journal{KV: kv}, by("first"))
	second := startStage(t, broker, apart, commit.Journal{KV: kv}, by("second"))
	if n := first.classesOf("apart"); n != 3 {
		t.Errorf("the other queue is taken to have %d classes", n)
	}
	for body, want := range map[string]string{"short": "first of stage q", "not so short": "second of stage q"} {
		status, got := first.call(t, "POST", "/v1/queues/q/items?wait=10s", body, "Idempotency-Key", body[:3])
		if status != 200 || got["result"] != want {
			t.Errorf("%q: %d %v", body, status, got)
		}
	}
	if status, got := second.call(t, "GET", "/v1/items/sho", ""); status != 200 || got["result"] != "first of stage q" {
		t.Errorf("what ended in one queue, asked of the other: %d %v", status, got)
	}
	// The same id in the other queue is the same item.
	status, got := second.call(t, "POST", "/v1/queues/apart/items?wait=10s", "again", "Idempotency-Key", "sho")
	if status != 200 || got["result"] != "first of stage q" {
		t.Errorf("repeated: %d %v", status, got)
	}
	if err := second.publish(context.Background(), "apart", []source.Out{{ID: "sho~1", Body: []byte("again"),
		Headers: item.Envelope{ID: "sho", History: []item.Attempt{{N: 1, Class: item.Crash}}}.Seal("sho~1")}}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); len(broker.Items("apart")) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still there: %v", broker.Items("apart"))
		}
	}
	if kv.creates != 2 || runs.Load() != 2 {
		t.Errorf("%d executions and %d records of two items: %v", runs.Load(), kv.creates, slices.Collect(maps.Keys(kv.values)))
	}
	if st, err := first.Stats(context.Background()); err != nil || st.Totals.Diverted != 1 || st.Totals.Ended[item.Done] != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	// Cancelled at one, it is found cancelled at the other.
	second.call(t, "POST", "/v1/queues/apart:pause", "")
	if status, _ := first.call(t, "POST", "/v1/queues/q/items", "long enough", "Idempotency-Key", "c"); status != 202 {
		t.Fatalf("%d", status)
	}
	if status, got := first.call(t, "DELETE", "/v1/items/c", ""); status != 200 {
		t.Fatalf("%d %v", status, got)
	}
	second.call(t, "POST", "/v1/queues/apart:resume", "")
	if status, got := second.call(t, "GET", "/v1/items/c?wait=10s", ""); status != 200 || got["state"] != "cancelled" {
		t.Errorf("%d %v", status, got)
	}
}

package coordinator

import (
	"fmt"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// TestModel: whatever happens, nothing is lost, nothing counts twice, and no item that can be done is dead.
func TestModel(t *testing.T) {
	rounds, count := 40, 1000
	if testing.Short() {
		rounds = 10
	}
	total, kills := 0, 0
	for seed := range rounds {
		cfg := testConfig()
		cfg.Check = seed%2 == 0
		if seed%3 == 1 {
			cfg.Batch = 20
		}
		m := newModel(t, uint64(seed), 3, cfg)
		if seed%4 < 2 {
			m.seen = map[string]bool{} // the broker drops repeated publishes
		}
		m.fill(count, long, flaky, broken, poison, wrong)
		m.faults = true
		m.after(0, m.mischief)
		m.after(5*time.Minute, func() { m.faults = false })
		m.run(24 * time.Hour)
		m.check()
		total, kills = total+count, kills+m.crashes
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d items, %d deaths of coordinators", total, kills)
}

// TestLongItemRunsOnce: the lease is kept as long as the worker lives.
func TestLongItemRunsOnce(t *testing.T) {
	m := newModel(t, 1, 2, testConfig())
	for i := range 20 {
		id := fmt.Sprintf("i%d", i)
		m.items[id] = long
		m.publish("q", []source.Out{{ID: id}})
	}
	m.run(time.Hour)
	m.check()
	for id, n := range m.runs {
		if n != 1 {
			t.Errorf("%s ran %d times", id, n)
		}
	}
}

// TestNotReadyBurnsNoAttempt: ten minutes without a worker cost nothing but time.
func TestNotReadyBurnsNoAttempt(t *testing.T) {
	cfg := testConfig()
	cfg.Attempts = 1 // a single burned attempt would be the end
	m := newModel(t, 1, 2, cfg)
	m.fill(200)
	for _, n := range m.nodes {
		n.downUntil = m.now.Add(10 * time.Minute)
	}
	start := m.now
	m.run(time.Hour)
	m.check()
	if took := m.now.Sub(start); took < 10*time.Minute || took > 13*time.Minute {
		t.Errorf("finished after %s", took)
	}
}

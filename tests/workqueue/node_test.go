package workqueue_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/tests/harness"
)

// A node loses its power with items under way. Nobody is there to hand them back: they come when their leases are over, to the worker that is
// left, and no attempt is counted. Nomad puts another worker on the node that is free.
func TestNodeIsLost(t *testing.T) {
	c := cluster.Get(t)
	const count, slots = 60, 2
	vars := mergeVars(drivers["raw_exec"].vars(c), map[string]string{"count": "2", "slots": fmt.Sprint(slots), "worker_command": "/bin/sh", "worker_args": `["-c", "sleep 1; cat"]`})
	q := run(t, "work-queue", "lost-raw-exec", 3, vars)
	workers := q.in("worker")
	at := slices.IndexFunc(workers, func(a *harness.Alloc) bool { return a.NodeID != q.in("broker")[0].NodeID }) // they are on different nodes
	if at < 0 {
		t.Fatal("both workers are on the broker's node")
	}
	victim := workers[at]
	q.put("worker", 0, count)
	q.until(q.ID, 4*slots)
	began := time.Now()
	if err := c.LoseNode(context.Background(), victim.NodeName); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.ReturnNode(context.Background(), victim.NodeName); err != nil {
			t.Error(err)
		}
	})
	before := q.records(q.ID)
	records := q.until(q.ID, count)
	t.Logf("%d items were left, and done after %v", count-len(before), time.Since(began).Round(time.Millisecond))
	there := 0
	for i := range count {
		rec := records[id(i)]
		if rec.State != item.Done || rec.N != 1 || len(rec.Attempts) != 0 || string(rec.Result) != text(i) {
			t.Errorf("%s: %+v", id(i), rec)
		}
		if _, early := before[id(i)]; rec.Node == victim.NodeName && early {
			there++
		}
	}
	if there == 0 {
		t.Errorf("%s had done nothing before it was lost", victim.NodeName)
	}
	harness.Eventually(t, 2*time.Minute, "two workers on nodes that are there", func(context.Context) error {
		here := slices.DeleteFunc(q.in("worker"), func(a *harness.Alloc) bool { return a.NodeID == victim.NodeID })
		if len(here) != 2 {
			return fmt.Errorf("%d are", len(here))
		}
		return nil
	})
}

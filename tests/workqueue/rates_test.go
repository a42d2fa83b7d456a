package workqueue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/tests/harness"
)

// A rate holds for all workers together: three coordinators learn of one another, with the rights of coordinators, and start no more than one
// may.
func TestRateOfAllWorkers(t *testing.T) {
	const perSecond, count = 4, 60
	vars := drivers["raw_exec"].vars(cluster.Get(t))
	vars["count"], vars["rate"] = "3", fmt.Sprintf("%d/s", perSecond)
	q := run(t, "work-queue", "rated-raw-exec", 4, vars)
	workers := q.in("worker")
	stats := func(a *harness.Alloc) (st coordinator.Stats) {
		t.Helper()
		harness.Eventually(t, time.Minute, "the statistics of a coordinator", func(ctx context.Context) error {
			out, err := q.exec(ctx, a.ID, "coordinator", q.command(), "queue", "stats", "--json")
			return errors.Join(err, json.Unmarshal([]byte(out), &st))
		})
		return st
	}
	for _, a := range workers {
		harness.Eventually(t, 30*time.Second, "each knows of the others", func(context.Context) error {
			if got := stats(a).RateShare; got < 0.33 || got > 0.34 {
				return fmt.Errorf("%s has %v of the rate", a.Name, got)
			}
			return nil
		})
	}
	q.put("worker", 0, count)
	records := q.until(q.ID, count)
	q.check(records, count)
	ends := make([]time.Time, 0, count)
	for _, rec := range records {
		if rec.State == item.Done {
			ends = append(ends, rec.Ended)
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	// Alone each would have started as many as all may: 60 items in 5 s.
	took, least := ends[len(ends)-1].Sub(ends[0]), time.Duration(count-len(workers))*time.Second/perSecond
	t.Logf("%d items at %d/s took %v, at the rate %v", count, perSecond, took.Round(time.Millisecond), least)
	if took < least*7/10 {
		t.Errorf("%d items at %d/s took %v, at the rate it is %v", count, perSecond, took, least)
	}
	busy := 0
	for _, a := range workers {
		if n := stats(a).Totals.Ended[item.Done]; n > 0 {
			busy++
		}
	}
	if busy < 2 {
		t.Errorf("%d coordinators had items", busy)
	}
}

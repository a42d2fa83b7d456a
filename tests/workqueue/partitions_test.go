package workqueue_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/tests/harness"
)

// Partitions, as the variable says it: three coordinators, with the rights of coordinators, agree on who has which, and the items of a key end in the
// order in which they were put, while one of the coordinators is stopped and another takes its place.
func TestPartitionsOfAllWorkers(t *testing.T) {
	const partitions, keys, each = 6, 5, 24
	vars := drivers["raw_exec"].vars(cluster.Get(t))
	vars["count"], vars["order"], vars["partitions"], vars["slots"], vars["drain_seconds"] = "3", "message", fmt.Sprint(partitions), "8", "5"
	vars["worker_command"], vars["worker_args"] = "/bin/sh", `["-c", "sleep 0.2; cat"]`
	q := run(t, "work-queue", "ordered-raw-exec", 4, vars)
	owners := func() map[string]int {
		t.Helper()
		pairs, _, err := q.c.Consul.KV().List("retinue/queues/"+q.ID+"/partitions/"+q.ID+"/owner/", nil)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, pair := range pairs {
			var record struct{ Owner string }
			if err := json.Unmarshal(pair.Value, &record); err != nil {
				t.Fatal(err)
			}
			if pair.Session != "" {
				got[record.Owner]++
			}
		}
		return got
	}
	shared := func(what string) map[string]int {
		t.Helper()
		var got map[string]int
		harness.Eventually(t, time.Minute, what, func(context.Context) error {
			got = owners()
			for _, n := range got {
				if n != partitions/3 {
					return fmt.Errorf("%v", got)
				}
			}
			if len(got) != 3 {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
		return got
	}
	before := shared("each coordinator has its share")

	put := func(from, to int) {
		t.Helper()
		var lines strings.Builder
		for i := from; i < to; i++ {
			for k := range keys {
				data, err := json.Marshal(map[string]string{"id": fmt.Sprintf("k%d-%03d", k, i), "key": fmt.Sprintf("key-%d", k), "body": "x"})
				if err != nil {
					t.Fatal(err)
				}
				lines.Write(append(data, '\n'))
			}
		}
		q.retinue("worker", lines.String(), "queue", "put", "--lines", "-")
	}
	put(0, each/2)
	stopped := q.in("worker")[0]
	alloc, _, err := q.c.Nomad.Allocations().Info(stopped.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.c.Nomad.Allocations().Stop(alloc, nil); err != nil {
		t.Fatal(err)
	}
	put(each/2, each)
	records := q.until(q.ID, keys*each)
	if after := shared("each has its share again"); fmt.Sprint(before) == fmt.Sprint(after) {
		t.Errorf("the coordinator of a stopped allocation still has partitions: %v", after)
	}

	byKey := map[string][]item.Record{}
	nodes := map[string]bool{}
	for id, rec := range records {
		if rec.State != item.Done {
			t.Errorf("%s is %s: %s", id, rec.State, rec.Reason)
		}
		key, _, _ := strings.Cut(id, "-")
		byKey[key] = append(byKey[key], rec)
		nodes[rec.Node] = true
	}
	if len(byKey) != keys || len(nodes) < 2 {
		t.Errorf("%d keys on %d nodes", len(byKey), len(nodes))
	}
	for key, recs := range byKey {
		slices.SortFunc(recs, func(a, b item.Record) int { return a.Ended.Compare(b.Ended) })
		for i, rec := range recs {
			if want := fmt.Sprintf("%s-%03d", key, i); rec.ID != want {
				t.Errorf("%s ended in the place of %s", rec.ID, want)
			}
		}
	}
}

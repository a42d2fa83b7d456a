package main

import (
	"strings"
	"syscall"
	"testing"

	"retinue/coordinator/source/partitioned"
)

func TestQueueTargets(t *testing.T) {
	t.Parallel()
	q := &queueRig{
		rates: map[string]map[string]float64{"redis, http": {loopName: 1000, queueName: 899, celeryName: 400, asynqName: 2000}, "redis, file": {loopName: 100, queueName + " exec": 85}},
		costs: map[string]map[string][]float64{"redis, http": {loopName: {80, 100, 160}, queueName: {120, 130, 250}}, "redis, batch": {loopName: {10, 20, 90}, queueName: {12, 95, 95}}}, // a slow round of one of them says nothing
	}
	var met []string
	for _, target := range q.judged() {
		met = append(met, map[bool]string{true: "met", false: "not met"}[target.Met]+" "+target.What)
	}
	want := "not met items/s over the loop, redis, http;met processor time over the loop's, an item, redis, http;met processor time over the loop's, an item in a batch of 100, redis, batch;met items/s over the loop, a command for each, redis, file;" +
		"met items/s over Celery, redis, http;not met items/s over asynq, redis, http"
	if got := strings.Join(met, ";"); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestInPortions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, size, portions int }{{1200, kibi, 3}, {20, mebi, 3}, {0, kibi, 0}} {
		portions, total := 0, 0
		err := inPortions(c.n, c.size, func(portion int, bodies [][]byte) error {
			if portion != portions || len(bodies[0]) != c.size {
				t.Errorf("portion %d of %d bytes", portion, len(bodies[0]))
			}
			portions, total = portions+1, total+len(bodies)
			return nil
		})
		if err != nil || portions != c.portions || total != c.n {
			t.Errorf("%+v: %d in %d portions, %v", c, total, portions, err)
		}
	}
}

// The processor time of a group is that of its processes, this one among them.
func TestGroupTime(t *testing.T) {
	t.Parallel()
	group := syscall.Getpgrp()
	before, err := groupTime(group)
	if err != nil || before <= 0 {
		t.Fatalf("%v, %v", before, err)
	}
	if none, err := groupTime(1 << 30); err != nil || none != 0 {
		t.Errorf("a group that is not there has used %v, %v", none, err)
	}
}

// One round in which the disk was slow for one contender and not for the other says nothing.
func TestAddedOf(t *testing.T) {
	t.Parallel()
	base := []Summary{{P50: 10, P99: 100}, {P50: 20, P99: 200}, {P50: 30, P99: 300}}
	if p50, p99 := addedOf([]Summary{{P50: 13, P99: 90}, {P50: 24, P99: 207}, {P50: 930, P99: 305}}, base); p50 != 4 || p99 != 5 {
		t.Errorf("%d, %d", p50, p99)
	}
}

func TestMiddle(t *testing.T) {
	t.Parallel()
	if middle(nil) != 0 || middle([]float64{3, 1, 2}) != 2 || middle([]float64{4, 1}) != 2.5 || count(950) != "950" || count(12340) != "12.3k" {
		t.Error("the middle, or a rate, is written wrongly")
	}
}

// The warm up reaches every partition, as does all that comes behind it, and no item comes twice: the broker would take it once.
func TestKeyedItems(t *testing.T) {
	t.Parallel()
	ids, keys := map[string]bool{}, map[string]bool{}
	published := 0
	for _, n := range []int{partitionWarmUp, 500, 500} {
		reached := map[int]bool{}
		for _, out := range keyedItems("q1", published, make([][]byte, n)) {
			ids[out.ID], keys[out.Key] = true, true
			reached[partitioned.Of(out.Key, partitionCount)] = true
		}
		published += n
		if len(reached) != partitionCount {
			t.Errorf("%d items reach %d of %d partitions", n, len(reached), partitionCount)
		}
	}
	if len(ids) != published || len(keys) != partitionKeys {
		t.Errorf("%d items have %d ids and %d keys, want %d keys", published, len(ids), len(keys), partitionKeys)
	}
}

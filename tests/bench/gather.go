package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"retinue/tests/bench/script"
)

const gatherSetup = "Everything on loopback: the leaves of a node in one process with an address for each shard, and every contender in a process of its own: `retinue gather` with " +
	"`concat-ndjson`, and in its place a handler in Go that does the same with errgroup and net/http, whose leaf calls are bare or go through a library. " +
	"Each leaf answers with a line of 1 KiB. One client, one request after the other, unless it says otherwise. The contenders take turns in random order within each round, " +
	"a few requests each, so that the machine's noise hits all alike; *added* is the difference to the bare fan-out of the same rounds. The client, contenders and leaves share the CPUs. " +
	"Processor time is the contender's own, over leaf calls. With n < 100 the p99 is the maximum."

// gatherParts are the parts of scatter/gather, for -only.
func gatherParts() []string {
	return []string{"leaves", "tail", "trees", "frozen", "deadline", "abort", "memory"}
}

// amounts are how much a run of scatter/gather does.
type amounts struct {
	leaves   []int         // fan-outs that are compared
	requests map[int]int   // of each contender, by leaves
	limit    time.Duration // for each number of leaves, and for the trees; the tail gets more
	tail     int           // hedged requests; of those that are not a fifth
	tailSize int           // leaves of the tail
	trees    bool
	tree     int // requests through the trees
	freezes  int
	flows    time.Duration // before a node freezes
	frozen   time.Duration // for which it does
	cut      int           // requests that meet their deadline, and that are aborted
	clients  int           // at once, when memory is measured
	flood    time.Duration
}

func (o options) amounts() amounts {
	if o.quick {
		return amounts{leaves: []int{1, 10, 100}, requests: map[int]int{1: 200, 10: 200, 100: 100}, limit: 20 * time.Second, tail: 200, tailSize: 100, tree: 30, freezes: 1, flows: time.Second, frozen: 2 * time.Second,
			cut: 100, clients: 64, flood: 3 * time.Second}
	}
	return amounts{leaves: []int{1, 10, 100, 1000}, requests: map[int]int{1: 3000, 10: 3000, 100: 1500, 1000: 150}, limit: 60 * time.Second, tail: 1600, tailSize: 100, trees: true, tree: 200, freezes: 20, flows: time.Second, frozen: 3 * time.Second,
		cut: 1000, clients: 256, flood: 8 * time.Second}
}

// scatterGather builds the programs and measures.
func (r *rig) scatterGather(ctx context.Context, o options, want func(string) bool, limit time.Duration, report *Report) error {
	if err := r.gatherPrograms(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := r.measureGather(ctx, o.amounts(), want, report); err != nil {
		return err
	}
	report.Missing = append(report.Missing, "growth of goroutines over a million requests, a whole outage of a shard, wrong coverage: the tests of the room are about those (`go test ./gather`, `tests/scattergather`)",
		"Elasticsearch, Vespa, Envoy: they do not fan one HTTP request out to leaves of the user's own")
	return nil
}

// measureGather runs the parts that are wanted.
func (r *rig) measureGather(ctx context.Context, a amounts, want func(string) bool, report *Report) error {
	for _, part := range []struct {
		name string
		run  func(context.Context, amounts, *Report) error
	}{
		{"leaves", r.gatherLeaves}, {"tail", r.gatherTail}, {"trees", r.gatherTrees}, {"frozen", r.gatherFrozen},
		{"deadline", r.gatherDeadline}, {"abort", r.gatherAbort}, {"memory", r.gatherMemory},
	} {
		if !want(part.name) {
			continue
		}
		r.say("%s", part.name)
		err := part.run(ctx, a, report)
		switch {
		case err == nil:
		case errors.Is(ctx.Err(), context.DeadlineExceeded): // what was measured is worth telling
			report.Missing = append(report.Missing, part.name+": time was up, the machine was too busy")
		default:
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	plotGather(report)
	return nil
}

// gatherPrograms finds or builds what is run.
func (r *rig) gatherPrograms(ctx context.Context) error {
	if err := r.ownProgram(ctx); err != nil {
		return err
	}
	tests := filepath.Join(r.root, "tests")
	r.leaf, r.fanout = filepath.Join(r.dir, "leaf"), filepath.Join(r.dir, "fanout")
	if err := r.build(ctx, tests, r.leaf, "./bench/leaf"); err != nil {
		return err
	}
	if err := r.build(ctx, tests, r.fanout, "./bench/fanout"); err != nil {
		return err
	}
	for _, module := range []string{"github.com/cristalhq/hedgedhttp", "github.com/failsafe-go/failsafe-go"} {
		r.versions = append(r.versions, Version{filepath.Base(module), moduleVersion(ctx, tests, module)})
	}
	return nil
}

// noScript asks nothing of the leaves.
func noScript(*front, uint64) script.Script { return script.Script{} }

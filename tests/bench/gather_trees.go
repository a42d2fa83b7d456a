package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// The shapes of which trees are made.
const fanOutOfTree = 10

// tree starts the roots of a tree over leaves, from the bottom, and returns its top; nodes are the roots below it.
func (r *rig) tree(ctx context.Context, id string, leaves []string, levels int) (top *front, nodes fronts, err error) {
	below := make([][]string, len(leaves))
	for i, url := range leaves {
		below[i] = []string{url}
	}
	for level := levels; level > 1; level-- {
		groups := slices.Collect(slices.Chunk(below, fanOutOfTree))
		roots := make(fronts, len(groups))
		group, limited := errgroup.WithContext(ctx)
		group.SetLimit(4)
		for i, shards := range groups {
			group.Go(func() (err error) {
				roots[i], err = r.gatherRoot(limited, fmt.Sprintf("%s-%d-%d", id, level, i), shards)
				return err
			})
		}
		err := group.Wait()
		nodes = append(nodes, roots...)
		if err != nil {
			return nil, nodes, err
		}
		below = below[:0:0]
		for _, root := range roots {
			below = append(below, []string{root.url})
		}
	}
	top, err = r.gatherRoot(ctx, id+"-top", below)
	if top != nil {
		top.leaves = len(leaves)
	}
	return top, nodes, err
}

// spine starts one path of a tree of three levels: each root has nine leaves, or ten, and the next root.
func (r *rig) spine(ctx context.Context, leaves []string) (top *front, nodes fronts, err error) {
	var next []string // URL of the root below
	reached := 0
	for level := 3; level >= 1; level-- {
		shards := [][]string{}
		for len(shards)+len(next) < fanOutOfTree {
			shards = append(shards, []string{leaves[reached]})
			reached++
		}
		if next != nil {
			shards = append(shards, next)
		}
		root, err := r.gatherRoot(ctx, fmt.Sprintf("spine-%d", level), shards)
		if err != nil {
			return nil, append(nodes, root), err
		}
		if root.leaves = reached; level == 1 {
			return root, nodes, nil
		}
		nodes, next = append(nodes, root), []string{root.url}
	}
	return nil, nodes, nil // not reached: the loop ends at the first level
}

// gatherTrees compares trees with flat fan-outs.
func (r *rig) gatherTrees(ctx context.Context, a amounts, report *Report) error {
	many := 100
	if a.trees {
		many = 1000
	}
	fleet, err := r.leaves(ctx, "tree", many, 1)
	if err != nil {
		return err
	}
	defer fleet.stop()
	leaves, shards := fleet.nodes[0].Leaves, fleet.shards()
	var fs, below fronts
	defer func() { fs.stop(); below.stop() }()
	plant := func(name, config string, every int, start func() (*front, fronts, error)) error {
		top, nodes, err := start()
		below = append(below, nodes...)
		if top == nil {
			return err
		}
		top.name, top.config, top.every = name, config, every
		fs = append(fs, top)
		return err
	}
	flat := func(n int) func() (*front, fronts, error) {
		return func() (*front, fronts, error) {
			f, err := r.gatherRoot(ctx, fmt.Sprintf("flat-%d", n), shards[:n])
			return f, nil, err
		}
	}
	type shape struct {
		name, config string
		every        int
		start        func() (*front, fronts, error)
	}
	shapes := []shape{
		{"flat, 100 leaves", "1 root", 0, flat(100)},
		{"tree 10 × 10", "11 roots", 0, func() (*front, fronts, error) { return r.tree(ctx, "t2", leaves[:100], 2) }},
		{"one path of a tree 10 × 10 × 10", "3 roots below each other, each with 10 leaves or 9 and the next root", 0, func() (*front, fronts, error) { return r.spine(ctx, leaves) }},
	}
	if a.trees {
		shapes = append(shapes, shape{"flat, 1000 leaves", "1 root", 5, flat(1000)},
			shape{"tree 10 × 10 × 10", "111 roots", 5, func() (*front, fronts, error) { return r.tree(ctx, "t3", leaves, 3) }})
	}
	for _, s := range shapes {
		r.say("  %s", s.name)
		if err := plant(s.name, s.config, s.every, s.start); err != nil {
			return err
		}
	}
	if err := r.turns(ctx, fs, a.tree, 2, a.limit, noScript); err != nil {
		return err
	}
	report.Tables = append(report.Tables, treeTable(fs))
	for _, f := range fs {
		report.Figures = append(report.Figures, Figure{Part: "trees", Contender: f.name, Config: f.config, Leaves: f.leaves, Took: summarize(f.took()), Failures: f.failures})
	}
	report.Targets = append(report.Targets, treeTarget(fs))
	return nil
}

func treeTable(fs fronts) Table {
	table := Table{Title: "Trees", Explain: "Every root is a `retinue gather` of its own, as it comes. A whole tree on one machine competes with itself: its fair comparison is the flat fan-out " +
		"over the same leaves. Where each root has a machine of its own, a request takes as long as its slowest path: that is the row with one path. *Ratio* compares medians with 100 leaves.",
		Head: []string{"shape", "settings", "leaves", "n", "min", "p50", "p99", "ratio"}}
	base := summarize(fs[0].took())
	for _, f := range fs {
		s := summarize(f.took())
		table.Rows = append(table.Rows, []string{f.name, f.config, fmt.Sprint(f.leaves), fmt.Sprint(s.N), human(s.Min), human(s.P50), human(s.P99), humanRatio(ratio(s, base))})
	}
	return table
}

func treeTarget(fs fronts) Target {
	p50 := func(name string) time.Duration {
		if f := fs.byName(name); f != nil {
			return summarize(f.took()).P50
		}
		return 0
	}
	flat, path := p50("flat, 100 leaves"), p50("one path of a tree 10 × 10 × 10")
	t := Target{What: "tree 10 × 10 × 10, p50 over flat 100: its path, as with a machine for each root", Want: "≤ 1.5×", Measured: fmt.Sprintf("%.2f×", over(path, flat)), Met: path > 0 && over(path, flat) <= 1.5}
	if whole := p50("tree 10 × 10 × 10"); whole > 0 {
		t.Measured += fmt.Sprintf("; the whole tree on these CPUs %.1f×, and %.2f× of flat 1000", over(whole, flat), over(whole, p50("flat, 1000 leaves")))
	}
	return t
}

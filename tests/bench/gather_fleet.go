package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"retinue/tests/bench/script"
)

// node is a process with one replica of every shard.
type node struct {
	*process
	script.Fleet
}

// fleet is the nodes that contenders ask.
type fleet struct {
	name  string
	nodes []*node
}

// leaves starts a fleet: so many shards, each on every node.
func (r *rig) leaves(ctx context.Context, name string, shards, replicas int) (*fleet, error) {
	f := &fleet{name: name}
	for i := range replicas {
		n, full := &node{}, fmt.Sprintf("%s-leaves-%d", name, i)
		var err error
		n.process, err = r.spawn.start(full, nil, r.leaf, "-shards", strconv.Itoa(shards), "-replica", strconv.Itoa(i), "-out", filepath.Join(r.dir, full+".json"))
		if err != nil {
			f.stop()
			return nil, err
		}
		f.nodes = append(f.nodes, n)
		if err := r.hear(ctx, n.process, filepath.Join(r.dir, full+".json"), &n.Fleet); err != nil {
			f.stop()
			return nil, err
		}
	}
	return f, nil
}

func (f *fleet) stop() {
	for _, n := range f.nodes {
		n.kill()
	}
}

// shards are the URLs of every shard's replicas.
func (f *fleet) shards() [][]string {
	all := make([][]string, len(f.nodes[0].Leaves))
	for shard := range all {
		for _, n := range f.nodes {
			all[shard] = append(all[shard], n.Leaves[shard])
		}
	}
	return all
}

// calls are what the leaves have been asked so far, by label.
func (f *fleet) calls(ctx context.Context) (sum [script.Labels]int64, err error) {
	for _, n := range f.nodes {
		var counts [script.Labels]int64
		if err := getJSON(ctx, n.Control+"/calls", &counts); err != nil {
			return sum, err
		}
		for i, c := range counts {
			sum[i] += c
		}
	}
	return sum, nil
}

// hear waits until a process has said where it is.
func (r *rig) hear(ctx context.Context, p *process, path string, v any) error {
	err := eventually(ctx, 30*time.Second, p.name+" listens", func(context.Context) error {
		if !p.running() {
			return fmt.Errorf("it has ended")
		}
		return script.Hear(path, v)
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.tail())
	}
	return nil
}

// front is a contender: a process in front of leaves.
type front struct {
	*process
	name   string
	config string // for the reader
	url    string
	admin  string // socket of a root's admin API
	leaves int    // that a request is to reach
	label  int    // that its leaf calls are counted under
	every  int    // of so many rounds it takes part in one; 0: in each

	sent     uint64
	shots    []shot
	failures int
	began    time.Duration // processor time before the rounds
	used     time.Duration // in them
}

const rootName = "retinue gather"

// root starts `retinue gather` in front of shards, with further flags.
func (r *rig) gatherRoot(ctx context.Context, id string, shards [][]string, flags ...string) (*front, error) {
	f := &front{name: rootName, config: strings.Join(flags, " "), leaves: len(shards), admin: filepath.Join(r.dir, id+".sock")}
	args := []string{"gather", "--listen", "127.0.0.1:0", "--admin", "unix://" + f.admin, "--deadline", "10s", "--deadline-max", "10s"}
	for shard, replicas := range shards {
		args = append(args, "--leaf", fmt.Sprintf("%d=%s", shard, strings.Join(replicas, ",")))
	}
	var err error
	if f.process, err = r.spawn.start(id, nil, r.retinue, append(args, flags...)...); err != nil {
		return nil, err
	}
	if f.config == "" {
		f.config = "as it comes"
	}
	err = eventually(ctx, 60*time.Second, id+" listens", func(context.Context) error {
		if !f.running() {
			return fmt.Errorf("it has ended")
		}
		log, err := os.ReadFile(f.log)
		if err != nil {
			return err
		}
		addr, err := listens(log)
		f.url = "http://" + addr
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, f.tail())
	}
	return f, nil
}

// listens finds in a root's log where it listens.
func listens(log []byte) (string, error) {
	lines := bufio.NewScanner(bytes.NewReader(log))
	for lines.Scan() {
		var line struct {
			Message string `json:"@message"`
			Listen  string `json:"listen"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Message == "root started" {
			return line.Listen, nil
		}
	}
	return "", fmt.Errorf("it has not said so")
}

// hedgeAfter is the delay that a root has found by itself.
func (f *front) hedgeAfter(ctx context.Context) (time.Duration, error) {
	var state struct {
		HedgeAfter map[string]float64 `json:"hedge_after_ms"`
	}
	m := &member{sock: f.admin}
	if err := m.get(ctx, "/v1/state", &state); err != nil {
		return 0, err
	}
	for _, ms := range state.HedgeAfter {
		return time.Duration(ms * 1e6), nil
	}
	return 0, fmt.Errorf("%s has no delay yet", f.process.name)
}

// peer starts a fan-out in Go in front of shards.
func (r *rig) peer(ctx context.Context, id, kind, config string, shards [][]string, flags ...string) (*front, error) {
	f := &front{name: kind, config: config, leaves: len(shards)}
	list, out := filepath.Join(r.dir, id+"-shards.json"), filepath.Join(r.dir, id+".json")
	if err := script.Tell(list, shards); err != nil {
		return nil, err
	}
	var err error
	f.process, err = r.spawn.start(id, nil, r.fanout, append([]string{"-kind", kind, "-leaves", list, "-out", out}, flags...)...)
	if err != nil {
		return nil, err
	}
	return f, r.hear(ctx, f.process, out, &f.url)
}

// fronts is a list of contenders that end together.
type fronts []*front

func (fs fronts) stop() {
	for _, f := range fs {
		if f != nil {
			f.kill()
		}
	}
}

// byName finds a contender.
func (fs fronts) byName(name string) *front {
	if i := slices.IndexFunc(fs, func(f *front) bool { return f.name == name }); i >= 0 {
		return fs[i]
	}
	return nil
}

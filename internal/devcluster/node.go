package devcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// Ready says whether the cluster has ever been up. One whose `up` was killed has
// not: the next Up makes it anew.
func (c *Cluster) Ready() bool { return c.state.Ready }

// LoseNode does to a client node what a power cut does: its agents, their plugins
// and all of its tasks die at once, by SIGKILL, and nothing says goodbye.
func (c *Cluster) LoseNode(ctx context.Context, node string) error {
	agents := c.on(node)
	if len(agents) == 0 {
		return hint.Wrap(fmt.Errorf("no client node %q in this cluster", node), "`retinue dev status` lists them")
	}
	f := procfs.New("")
	plugins := c.pluginsOf(f, node)
	for _, a := range slices.Backward(agents) { // Nomad first, so that it cannot restart a task
		if a.PID == 0 {
			continue
		}
		if err := a.Kill(syscall.SIGKILL); err != nil {
			return fmt.Errorf("lose node %s: %w", node, err)
		}
	}
	allocs := slices.DeleteFunc(allocsOf(c.Dir()), func(id string) bool {
		return !exists(filepath.Join(c.Dir(), "c"+strings.TrimPrefix(node, "client-"), id))
	})
	var errs []error
	for _, p := range plugins {
		errs = append(errs, f.Signal(p, syscall.SIGKILL))
	}
	for _, pid := range f.PIDs() {
		if p, ok := f.Lookup(pid); ok && runsTaskOf(f, pid, allocs) {
			errs = append(errs, f.Signal(p, syscall.SIGKILL))
		}
	}
	if os.Geteuid() != 0 { // then the processes in containers are another user's
		_, err := removeContainers(ctx, filepath.Join(c.Dir(), "c"+strings.TrimPrefix(node, "client-")), allocs, &c.state.Plan)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lose node %s: %w", node, err)
	}
	return nil
}

// pluginsOf lists the processes below the Nomad agent of a node. One that an agent before it has started is not its child: it is
// left, and the next agent takes it over.
func (c *Cluster) pluginsOf(f procfs.FS, node string) (out []procfs.Process) {
	below := map[int]bool{}
	for _, a := range c.on(node) {
		if a.Kind == NomadClient && a.PID != 0 {
			below[a.PID] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, pid := range f.PIDs() {
			if s, err := f.Stat(pid); err == nil && below[s.Parent] && !below[pid] {
				if p, ok := f.Lookup(pid); ok {
					below[pid], grown = true, true
					out = append(out, p)
				}
			}
		}
	}
	return out
}

// ReturnNode starts the agents of a lost node again, over the data they had.
func (c *Cluster) ReturnNode(ctx context.Context, node string) error {
	for _, a := range c.on(node) {
		if err := a.Restart(ctx); err != nil {
			return fmt.Errorf("return node %s: %w", node, err)
		}
	}
	return nil
}

// on lists the agents of a client node, Consul before Nomad.
func (c *Cluster) on(node string) []Agent {
	return slices.DeleteFunc(c.Agents(), func(a Agent) bool {
		return a.Node != node || a.Kind != ConsulClient && a.Kind != NomadClient
	})
}

// runsTaskOf says whether a process belongs to a task of one of the allocations.
func runsTaskOf(f procfs.FS, pid int, allocs []string) bool {
	for _, v := range f.Environ(pid) {
		if id, ok := strings.CutPrefix(v, "NOMAD_ALLOC_ID="); ok && slices.Contains(allocs, id) {
			return true
		}
	}
	cgroup := f.Cgroup(pid)
	return slices.ContainsFunc(allocs, func(id string) bool { return strings.Contains(cgroup, id) })
}

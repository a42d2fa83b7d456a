package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"retinue/internal/devcluster"
	"retinue/tests/drivercluster"
)

const lifecycleSetup = "Two Nomad clients on this machine, of one dev cluster: one with the drivers that are built into the agent, one with the lifecycle driver in front of them; halfway they change places. " +
	"Every run is a job of one task, `retinue demo-app lifecycle`, on the host's network: it is registered, runs until it answers its users, and is stopped. *Start* is from the agent's event `Task Setup` to `Started`, " +
	"*stop* from `Killing` to `Killed`, by the agent's own clock. In every round each contender has its turn, in random order, with nothing else at work, so that the machine's noise hits all alike. " +
	"*Ratio* is that of the medians to the built-in driver's, *added* the median of the differences to the built-in driver in the same round; the intervals hold 95 % (bootstrap over the rounds, so that what ran in one round stays together)."

// lifecycleParts are the parts of the lifecycle driver, for -only.
func lifecycleParts() []string { return []string{"latency", "task-memory"} }

// The clients of the cluster, and what runs on them at first.
const (
	clientA = "client-1"
	clientB = "client-2"
)

// lifecycleRig is the world of this section.
type lifecycleRig struct {
	*rig
	cluster *drivercluster.Cluster
	serial  int
	plugin  string // the client that has the plugin
	builtIn string // the client that has not
}

// taskDrivers brings up a cluster and measures.
func (r *rig) taskDrivers(ctx context.Context, o options, want func(string) bool, limit time.Duration, report *Report) error {
	if os.Geteuid() != 0 {
		report.Missing = append(report.Missing, "everything: the exec driver needs root")
		return nil
	}
	if err := r.ownProgram(ctx); err != nil {
		return err
	}
	if err := r.pluginBeside(ctx); err != nil {
		return err
	}
	end := time.Now().Add(limit)
	ctx, cancel := context.WithDeadline(ctx, end.Add(time.Minute)) // the last round ends, and the cluster goes
	defer cancel()
	r.say("starting a cluster of two clients")
	cluster, err := drivercluster.Up(ctx, devcluster.Config{Dir: filepath.Join(r.dir, "c"), Clients: 2, RetinueBin: r.retinue}, r.say)
	if err != nil {
		return err
	}
	defer cluster.Close()
	l := &lifecycleRig{rig: r, cluster: cluster}
	if err := l.dress(ctx, clientA, clientB); err != nil {
		return err
	}
	if err := l.ofNomad(ctx); err != nil {
		return err
	}
	drivers := cluster.Drivers()
	if len(drivers) < 3 {
		report.Missing = append(report.Missing, "docker: no engine answers")
	}
	if want("task-memory") {
		r.say("memory: %d tasks of each driver on both clients", memoryTasks)
		m, err := l.memory(ctx, drivers)
		if err != nil {
			return fmt.Errorf("memory: %w", err)
		}
		m.report(report)
	}
	if want("latency") {
		rounds := 45
		if o.quick {
			rounds = 4
		}
		r.say("latency: up to %d rounds", rounds)
		m, err := l.latency(ctx, drivers, rounds, end)
		if err != nil {
			return fmt.Errorf("latency: %w", err)
		}
		m.report(report, o.quick)
	}
	report.Missing = append(report.Missing, "hooks after the start: they wait for an application that listens, so what they take is the application's",
		"faults: the campaign (docs/reports/lifecycle-faults.md) is about those", "bridge networks: the drivers make them before the task, with or without the plugin")
	return nil
}

// pluginBeside makes the plugin beside retinue, should RETINUE_BIN not have it.
func (r *rig) pluginBeside(ctx context.Context) error {
	if devcluster.DriverPluginBeside(r.retinue) {
		return nil
	}
	if os.Getenv("RETINUE_BIN") != "" {
		return errors.New("the lifecycle driver is not beside RETINUE_BIN: `make plugin` builds it there")
	}
	dir := filepath.Join(r.root, "plugins")
	if err := r.buildWith(ctx, "CGO_ENABLED=1", dir, filepath.Join(r.dir, "retinue-inner"), "./cmd/retinue-inner"); err != nil {
		return err
	}
	return r.build(ctx, dir, filepath.Join(r.dir, "retinue-driver"), "./cmd/retinue-driver")
}

// dress puts the plugin on one client and takes it from the other.
func (l *lifecycleRig) dress(ctx context.Context, plugin, builtIn string) error {
	l.say("  the plugin on %s, built-in drivers on %s", plugin, builtIn)
	l.plugin, l.builtIn = plugin, builtIn
	return l.cluster.Dress(ctx, map[string]bool{plugin: true, builtIn: false})
}

// ofNomad notes the versions that take part.
func (l *lifecycleRig) ofNomad(ctx context.Context) error {
	self, err := l.cluster.Nomad.Agent().Self()
	if err != nil {
		return err
	}
	l.versions = append(l.versions, Version{"nomad", fmt.Sprint(self.Member.Tags["build"])})
	node, err := l.cluster.Node(ctx, clientA)
	if err != nil {
		return err
	}
	info, _, err := l.cluster.Nomad.Nodes().Info(node.ID, nil)
	if err != nil {
		return err
	}
	if v := info.Attributes["driver.docker.version"]; v != "" {
		l.versions = append(l.versions, Version{"docker", v})
	}
	return nil
}

// taskContender is a driver in one of its shapes.
type taskContender struct {
	driver string
	name   string
	plugin bool
	hooks  bool
	runs   []taskRun // by round
}

// The shapes. The first of a driver is what the others are compared with.
const (
	builtInName = "built-in"
	plainName   = "decorated"
	hookedName  = "decorated, 2 http hooks in the stop"
)

func taskContenders(drivers []string) (out []*taskContender) {
	for _, driver := range drivers {
		out = append(out, &taskContender{driver: driver, name: builtInName}, &taskContender{driver: driver, name: plainName, plugin: true},
			&taskContender{driver: driver, name: hookedName, plugin: true, hooks: true})
	}
	return out
}

// latency lets the contenders take turns.
func (l *lifecycleRig) latency(ctx context.Context, drivers []string, rounds int, end time.Time) (*taskLatencies, error) {
	all := taskContenders(drivers)
	order := append([]*taskContender(nil), all...)
	var longest time.Duration // of a round
	swap := rounds / 2
	half := time.Now().Add(time.Until(end) / 2)
	for round, done := 0, 0; done < rounds; round++ {
		if round == 0 || done == swap && l.plugin == clientA {
			if round > 0 {
				if err := l.dress(ctx, clientB, clientA); err != nil {
					return nil, err
				}
			}
			// What an agent does for the first time takes longer.
			for _, c := range all {
				if _, err := l.life(ctx, c); err != nil {
					return nil, err
				}
			}
		}
		began := time.Now()
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		runs := map[*taskContender]taskRun{}
		for _, c := range order {
			run, err := l.life(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", c.driver, c.name, err)
			}
			runs[c] = run
		}
		for _, c := range all {
			c.runs = append(c.runs, runs[c])
		}
		done++
		if err := l.cluster.Nomad.System().GarbageCollect(); err != nil {
			return nil, err
		}
		longest = max(longest, time.Since(began))
		if done%10 == 0 {
			l.say("  %d rounds", done)
		}
		if l.plugin == clientA && time.Now().After(half) {
			swap = done // slow: change places now, so that both halves are as long
		}
		if time.Now().Add(longest).After(end) {
			l.say("  time is up after %d rounds", done)
			break
		}
	}
	return &taskLatencies{contenders: all, drivers: drivers}, nil
}

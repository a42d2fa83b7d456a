package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// section is a part of BENCHMARKS.md and all that is measured for it.
type section struct {
	name      string
	title     string
	setup     string
	factsOf   string
	factsHead string
	parts     []string // for -only
	limit     time.Duration
	quick     time.Duration // limit of a quick run
	// measure finds or builds the programs, and then fills in the report within the limit.
	measure func(r *rig, ctx context.Context, o options, want func(part string) bool, limit time.Duration, report *Report) error
}

const (
	electionSetup = "Three Consul servers with Raft on disk (`raft_multiplier` 1, `session_ttl_min` 1s), a client agent per replica, a Nomad server and three etcd servers, " +
		"all on loopback. Every contender is two replicas in processes of their own. The contenders take turns in random order within each round, " +
		"so that the machine's noise hits all alike. Times are read from one clock in the processes concerned: from the old leader's last act (or the kill) " +
		"until the new leader's own application knows. With n < 100 the p99 is the maximum. *Ratio* compares medians with the first row."
	electionFacts = "One elector: cost and scale"
)

func sections() []section {
	return []section{
		{name: "leader-election", title: "Leader election", setup: electionSetup, factsOf: electionFacts, factsHead: "retinue elector",
			parts: []string{"rounds", "expiry", "scale", "local"}, limit: 12 * time.Minute, quick: 2 * time.Minute, measure: (*rig).leaderElection},
		{name: "scatter-gather", title: "Scatter/gather", setup: gatherSetup, factsOf: "Ends that are not answers, and memory", factsHead: "retinue gather",
			parts: gatherParts(), limit: 13 * time.Minute, quick: 2 * time.Minute, measure: (*rig).scatterGather},
		{name: "work-queue", title: "Work queue", factsOf: "Memory", factsHead: "retinue coordinator",
			parts: queueParts(), limit: 30 * time.Minute, quick: 6 * time.Minute, measure: (*rig).workQueue},
		{name: "lifecycle", title: "Lifecycle: the task driver", setup: lifecycleSetup,
			parts: lifecycleParts(), limit: 10 * time.Minute, quick: 2 * time.Minute, measure: (*rig).taskDrivers},
	}
}

func sectionNames() string {
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	return strings.Join(names, " or ")
}

func partNames(of []section) (names []string) {
	for _, s := range of {
		names = append(names, s.parts...)
	}
	return names
}

// choose picks the sections that are wanted by name, or because some of their parts are.
func choose(name, only string) ([]section, error) {
	all := sections()
	if name != "" {
		all = slices.DeleteFunc(all, func(s section) bool { return s.name != name })
		if len(all) == 0 {
			return nil, fmt.Errorf("-section %q: there are %s", name, sectionNames())
		}
	}
	if only == "" {
		return all, nil
	}
	wanted := strings.Split(only, ",")
	for _, part := range wanted {
		if known := partNames(all); !slices.Contains(known, part) {
			return nil, fmt.Errorf("-only %q: there are %s", part, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(s section) bool {
		return !slices.ContainsFunc(s.parts, func(part string) bool { return slices.Contains(wanted, part) })
	}), nil
}

// measured runs a section within its limit; programs that have to be built come on top.
func (s section) measured(ctx context.Context, o options, say func(string, ...any)) (Report, error) {
	limit := s.limit
	if o.quick {
		limit = s.quick
	}
	ctx, cancel := context.WithTimeout(ctx, limit+5*time.Minute)
	defer cancel()
	r, err := newRig(say)
	if err != nil {
		return Report{}, err
	}
	defer r.close()
	say("%s", s.title)
	report := Report{Section: s.name, Title: s.title, Setup: s.setup, FactsOf: s.factsOf, FactsHead: s.factsHead,
		CPUs: runtime.NumCPU(), Load: loadAverage(), Command: command(), Quick: o.quick}
	want := func(part string) bool { return o.only == "" || slices.Contains(strings.Split(o.only, ","), part) }
	err = s.measure(r, ctx, o, want, limit, &report)
	report.Versions, report.LoadAfter = r.versions, loadAverage()
	return report, err
}

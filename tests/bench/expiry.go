package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"retinue/tests/bench/wire"
)

// loop repeats one slow action on a pair of its own. All loops run side by
// side: they wait for timers of seconds, so they do not disturb each other.
type loop struct {
	name string
	c    *contender
	do   func(ctx context.Context, p *pair) (sample, error)
	max  int
	note string
	out  outcome
}

// slow are the loops of the part that waits for expiries.
type slow struct {
	safe, fast *loop
	crashed    []*loop // what holds the lock is killed
	lost       []*loop // its whole node is
	polled     *loop   // graceful, and yet seconds; nil without Nomad
}

func (r *rig) slowLoops(full bool) slow {
	killAll := func(ctx context.Context, p *pair) (sample, error) { return p.killAll(ctx) }
	tuned := apiLock("TTL 1s, lock-delay 1ms", lockOptions{ttl: "1s", delay: time.Millisecond})
	s := slow{
		safe: &loop{name: "x-safe", c: elector(time.Second, "safe"), do: killAll, max: 20},
		fast: &loop{name: "x-fast", c: elector(time.Second, "fast"), do: killAll, max: 20},
		lost: []*loop{{name: "n-safe", c: elector(time.Second, "safe")}, {name: "n-fast", c: elector(time.Second, "fast")}, {name: "n-library", c: tuned}, {name: "n-wrapper", c: consulLock()}},
	}
	wrapper := &loop{name: "x-wrapper", c: consulLock(), do: killAll, max: 5, note: "Its child goes on running, with nobody to stop it."}
	wrapper.c.phase = 5 * time.Second
	s.crashed = []*loop{s.safe, s.fast, {name: "x-library", c: tuned, do: killAll, max: 20, note: "Killed: " + tuned.killed + "."}, wrapper}
	if r.etcd != "" {
		c := etcdElection("TTL 2s, the least its servers take", 2)
		s.crashed = append(s.crashed, &loop{name: "x-etcd", c: c, do: killAll, max: 20, note: "Killed: " + c.killed + "."})
	}
	if r.nomadAddr == "" {
		return s
	}
	s.crashed = append(s.crashed, &loop{name: "x-nomad", do: killAll, max: 10, note: "Its child goes on running.",
		c: varLock("-ttl 10s -delay 1ms -backoff 100ms: the shortest", 5*time.Second, "-ttl", "10s", "-delay", "1ms", "-backoff", "100ms")})
	if full {
		s.crashed = append(s.crashed, &loop{name: "x-nomad-stock", c: varLock("as it comes: TTL 15s, delay 15s", 5*time.Second), do: killAll, max: 5, note: "Its child goes on running."})
	}
	s.polled = &loop{name: "x-nomad-poll", c: varLock("as it comes: polls every 16.5s", 15*time.Second), max: 10, note: "Nothing wakes its standbys. Measured beside the expiries.",
		do: func(ctx context.Context, p *pair) (sample, error) { return p.resign(ctx, "") }}
	return s
}

// expiry measures what takes seconds because nothing certifies the death: a
// lease or a session has to run out, or somebody polls. The row of a peer
// whose graceful release takes that long, too, comes extra.
func (r *rig) expiry(ctx context.Context, limit time.Duration, full bool) (scenarios []Scenario, polling []Row, bounds []bound, err error) {
	s := r.slowLoops(full)
	if err := r.runSlow(ctx, s, limit); err != nil {
		return nil, nil, nil, err
	}
	if s.polled != nil {
		polling = rowsOf([]*loop{s.polled})
	}
	scenarios = []Scenario{
		{"What holds the lock is killed (SIGKILL): elector, wrapper, or the application that is its own client",
			"Nothing certifies the end, so the session or lease has to run out. Consul ends a session after twice its TTL; `safe` adds one lease in which nobody leads, whatever ended the session.", compare(rowsOf(s.crashed))},
		{"A node is lost: the application, what holds its lock, and the Consul client agent are killed at once",
			"etcd and Nomad clients talk to the servers: the table before holds for them.", compare(rowsOf(s.lost))},
	}
	const slack = 50 * time.Millisecond
	bounds = []bound{
		{"elector dies, `safe`: 2·TTL + lock-delay", 3*time.Second + slack, s.safe}, {"elector dies, `fast`: 2·TTL", 2*time.Second + slack, s.fast},
		{"node dies, `safe`", 3*time.Second + slack, s.lost[0]}, {"node dies, `fast`", 2*time.Second + slack, s.lost[1]},
	}
	return scenarios, polling, bounds, nil
}

func rowsOf(loops []*loop) (rows []Row) {
	for _, l := range loops {
		rows = append(rows, row(l.c, &l.out, l.note))
	}
	return rows
}

// runSlow runs all loops until time is up.
func (r *rig) runSlow(ctx context.Context, s slow, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	loops := s.crashed
	if s.polled != nil {
		loops = append(slices.Clone(loops), s.polled)
	}
	errs := make(chan error, len(loops)+1)
	var running sync.WaitGroup
	for _, l := range loops {
		running.Go(func() { errs <- r.runLoop(ctx, l) })
	}
	running.Go(func() { errs <- r.loseNodes(ctx, s.lost) })
	running.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// bound is a promised worst case.
type bound struct {
	what string
	most time.Duration
	loop *loop
}

func (b bound) target() Target {
	took := row(b.loop.c, &b.loop.out, "").Took
	return Target{What: b.what, Want: "max ≤ " + human(b.most), Measured: fmt.Sprintf("max %s (n=%d)", human(took.Max), took.N), Met: took.N > 0 && took.Max <= b.most}
}

// runLoop repeats until its maximum, or until the next repetition might not end in time.
func (r *rig) runLoop(ctx context.Context, l *loop) error {
	end, _ := ctx.Deadline()
	p, err := r.newPair(ctx, l.name, l.c, nodeA, nodeB)
	defer func() { p.stop() }()
	longest := time.Duration(0)
	for err == nil && len(l.out.samples) < l.max && time.Until(end) > longest+longest/5 {
		began := time.Now()
		var s sample
		if err = p.soon(ctx, l.c.phase); err == nil {
			acted := time.Now()
			s, err = l.do(ctx, p)
			if s.took > 0 {
				l.out.add(s) // a repair that failed afterwards does not undo it
			} else if ctx.Err() != nil {
				l.out.open = time.Since(acted)
			}
		}
		longest = max(longest, time.Since(began))
		if err != nil && ctx.Err() == nil {
			l.out.failures++
			r.say("  %s failed: %v", l.name, err)
			err = p.restart(ctx)
		}
	}
	if ctx.Err() != nil {
		return nil // time is up, which is not an error here
	}
	return err
}

// loseNodes kills all that runs on a node, the agent included, again and again.
func (r *rig) loseNodes(ctx context.Context, loops []*loop) error {
	end, _ := ctx.Deadline()
	longest := time.Duration(0)
	for round := 0; time.Until(end) > longest+longest/5 && round < 10; round++ {
		began := time.Now()
		err := r.loseNode(ctx, loops, round)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		longest = max(longest, time.Since(began))
	}
	return nil
}

func (r *rig) loseNode(ctx context.Context, loops []*loop, round int) error {
	agent := r.clients[nodeC]
	var pairs []*pair
	defer func() {
		for _, p := range pairs {
			p.stop()
		}
	}()
	for _, l := range loops {
		p, err := r.newPair(ctx, fmt.Sprintf("%s%d", l.name, round), l.c, nodeC, nodeB)
		pairs = append(pairs, p)
		if err != nil {
			return err
		}
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	at := wire.Now()
	victims := []int{agent.pid()}
	for _, p := range pairs {
		p.members[1].port.drain()
		victims = append(victims, p.members[0].main.pid(), p.members[0].pid)
	}
	for _, pid := range victims {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH { // a wrapper's child may be gone with it
			return err
		}
	}
	var waiting sync.WaitGroup
	for i, p := range pairs {
		waiting.Go(func() {
			won, err := p.members[1].port.await(ctx, wire.Elected)
			switch {
			case err == nil:
				loops[i].out.add(sample{took: time.Duration(won.At - at), vacancy: -1})
			case ctx.Err() != nil:
				loops[i].out.open = time.Duration(wire.Now() - at)
			default:
				loops[i].out.failures++
			}
		})
	}
	waiting.Wait()
	agent.kill()
	if err := agent.run(agent.name); err != nil {
		return err
	}
	return agent.ready(ctx)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// settings are what a campaign is made of.
type settings struct {
	Seed    uint64
	Faults  int           // stop after so many
	Limit   time.Duration // or after that long
	Groups  []groupSpec
	Hosts   int
	Every   time.Duration                          // between two halts in which everything must heal
	Servers bool                                   // break hosts and servers, too
	Sweep   bool                                   // wait in the end until the traces of dead electors have been swept
	Logs    string                                 // folder for the logs of electors; "" keeps none
	Attack  func(context.Context, *campaign) error // instead of the lanes' random faults
}

// campaign is one run.
type campaign struct {
	settings
	world   *world
	judge   *judge
	starve  *starvation
	probe   *probe
	found   map[string]string // versions, as the campaign began
	out     io.Writer
	began   int64
	took    time.Duration
	count   atomic.Int64
	missed  atomic.Int64
	moves   atomic.Int64 // hand-overs asked of applications
	handing sync.WaitGroup

	halt sync.RWMutex // lanes hold it for reading while something is broken
	mu   sync.Mutex
	done []injected
	heal []time.Duration // how long everything took to have leaders again at each halt
}

const (
	// healBound is how long it may take, once everything is repaired, until every election has a leader: the servers elect theirs,
	// agents find them, sessions end, locks open. The machine's slack is added.
	healBound = 20 * time.Second
	// healPatience is when the campaign stops waiting for that.
	healPatience = 4 * time.Minute
)

// run builds the world, breaks it for as long as set, and judges. The error is about the world; findings are in the judge.
func run(ctx context.Context, s settings, out io.Writer) (c *campaign, err error) {
	t := &scope{out: out}
	c = &campaign{settings: s, judge: &judge{}, out: out}
	defer t.close()
	defer c.judge.close()
	err = guard(func() error {
		w, err := buildWorld(t, s, c.judge)
		if err != nil {
			return err
		}
		c.world = w
		c.found = c.versions()
		defer w.keepLogs(s.Logs)
		c.starve = watchStarvation() // before the first belief that is judged
		defer c.starve.close()
		c.probe = watchWrites(w.hosts)
		defer c.probe.close()
		if err := w.startSlots(); err != nil {
			return err
		}
		if missing := w.led(ctx, w.groups, 60*time.Second); len(missing) > 0 {
			return fmt.Errorf("before the first fault, nobody leads %v", missing)
		}
		fmt.Fprintf(out, "%d groups, %d electors, %d elections: all have leaders\n", len(w.groups), len(w.slots), c.elections())
		c.began = bootNow()
		defer func() { c.took = time.Duration(bootNow() - c.began) }()
		attack := c.Attack
		if attack == nil {
			attack = func(ctx context.Context, c *campaign) error { return c.attack(ctx) }
		}
		if err := attack(ctx, c); err != nil {
			return err
		}
		return c.finish(ctx)
	})
	return c, err
}

func (c *campaign) elections() (n int) {
	for _, g := range c.world.groups {
		n += len(g.elections)
	}
	return n
}

// lanes are what is broken side by side.
func (c *campaign) lanes() []*lane {
	var out []*lane
	for _, g := range c.world.groups {
		weights := g.Weights
		switch {
		case weights != nil:
		case g.Gated:
			weights = gatedWeights
		default:
			weights = groupWeights
		}
		out = append(out, c.world.groupLane(g, newLanePlan(c.Seed, g.name, weights, g.lease, span{0.05, 0.7})))
	}
	if c.Servers {
		for _, n := range c.world.hosts {
			out = append(out, c.world.hostLane(n, newLanePlan(c.Seed, "host "+n.host.Name, hostWeights, time.Second, span{4, 14})))
		}
		out = append(out, c.world.serverLane(newLanePlan(c.Seed, "servers", serverWeights, time.Second, span{6, 14})))
	}
	return out
}

// attack runs the lanes until enough has been broken, with halts in between.
func (c *campaign) attack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	broken := make(chan error, 1)
	var running sync.WaitGroup
	for _, l := range c.lanes() {
		running.Go(func() {
			if err := guard(func() error { return c.drive(ctx, l) }); err != nil {
				select {
				case broken <- err:
				default:
				}
				cancel()
			}
		})
	}
	running.Go(func() { c.handOver(ctx) })
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	halted := time.Now()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		c.progress()
		if c.count.Load() >= int64(c.Faults) {
			cancel()
		} else if time.Since(halted) > c.Every && ctx.Err() == nil {
			c.rest(ctx)
			halted = time.Now()
		}
	}
	running.Wait()
	c.handing.Wait()
	select {
	case err := <-broken:
		return err
	default:
		return nil
	}
}

func (c *campaign) progress() {
	took := time.Duration(bootNow() - c.began)
	fmt.Fprintf(c.out, "%6.0fs %6d faults, %.1f/s, %d hand-overs, %d findings\n", took.Seconds(), c.count.Load(), float64(c.count.Load())/took.Seconds(), c.moves.Load(), c.judge.count())
}

// drive injects the faults of one lane.
func (c *campaign) drive(ctx context.Context, l *lane) error {
	// Lanes begin at different moments.
	pause(ctx, time.Duration(float64(l.plan.unit)*rand.Float64()*2))
	for ctx.Err() == nil && c.count.Load() < int64(c.Faults) {
		f := l.plan.next()
		if err := c.strike(ctx, l, f); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		if f.Settle && len(l.groups) == 1 {
			c.world.led(ctx, l.groups, 10*time.Second)
		}
		pause(ctx, f.Gap)
	}
	return nil
}

func (c *campaign) strike(ctx context.Context, l *lane, f Fault) error {
	c.halt.RLock()
	defer c.halt.RUnlock()
	from := bootNow()
	hit, err := l.inject(ctx, f)
	if errors.Is(err, errNoTarget) {
		c.missed.Add(1)
		return nil
	}
	if err != nil {
		return err
	}
	c.count.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = append(c.done, injected{f.Class, f.Lane, from, bootNow(), l.groups, hit})
	return nil
}

// handOver makes leaders resign, to anyone or to a certain elector: work for the elector, not a fault.
func (c *campaign) handOver(ctx context.Context) {
	rng := rand.New(rand.NewPCG(c.Seed, 2))
	for ctx.Err() == nil {
		pause(ctx, time.Duration(150+rng.IntN(500))*time.Millisecond)
		groups := c.world.sound() // a canary is to keep what it should not have
		g := groups[rng.IntN(len(groups))]
		e := g.elections[rng.IntN(len(g.elections))]
		to := []string{"", "any", g.slots[rng.IntN(len(g.slots))].name}[rng.IntN(3)]
		if b := e.leader(); b != nil && c.world.hub.ask(b.who.slot, e.name, to) {
			c.moves.Add(1)
		}
	}
}

// rest stops breaking things, waits until all is well, and goes on.
func (c *campaign) rest(ctx context.Context) {
	c.halt.Lock()
	defer c.halt.Unlock()
	c.healed(ctx)
}

// healed waits until every election has a leader, and judges how long that took.
func (c *campaign) healed(ctx context.Context) {
	from := bootNow()
	missing := c.world.led(ctx, c.world.sound(), healPatience)
	took := time.Duration(bootNow() - from)
	if ctx.Err() != nil {
		return // the campaign ends here; finish looks again
	}
	c.mu.Lock()
	c.heal = append(c.heal, took)
	c.mu.Unlock()
	lost := c.slack(c.world.hosts, from, from+int64(took))
	if len(missing) > 0 || took > healBound+lost {
		c.judge.violation(6, "", "", fmt.Sprintf("%s after everything was repaired nobody leads %v (the machine's slack in it: %s)", took, missing, lost))
	}
	c.judge.checked(6, 1)
}

// finish lets everything heal, and sees what is left in Consul.
func (c *campaign) finish(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Fprintln(c.out, "all repaired; waiting for leaders")
	c.healed(ctx)
	c.remains(ctx)
	c.noteTimeouts()
	return ctx.Err()
}

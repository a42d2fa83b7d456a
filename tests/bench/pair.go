package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"retinue/tests/bench/wire"
)

// pair is two replicas of a contender: one leads, the other waits.
type pair struct {
	*contender
	rig     *rig
	name    string
	nodes   [2]int
	members [2]*member
	leader  int
	watch   *keyWatch
}

// sample is one change of leader.
type sample struct {
	took    time.Duration // from the old leader's last act, or its death, until the new leader's application knows
	vacancy time.Duration // how long the store showed nobody as leader; -1: not watched
	atomic  bool          // the store's own index says that release and grant were one step
}

// outcome collects the samples of one contender in one scenario.
type outcome struct {
	mu       sync.Mutex
	samples  []sample
	failures int
	open     time.Duration // an attempt that had taken that long when time was up
}

func (o *outcome) add(s sample) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.samples = append(o.samples, s)
}

func (r *rig) newPair(ctx context.Context, name string, c *contender, nodes ...int) (*pair, error) {
	p := &pair{contender: c, rig: r, name: name, nodes: [2]int(nodes)}
	if c.key != "" {
		key := "bench/" + name + "/" + c.key
		if c.name == "retinue elector" {
			key = "retinue/elections/" + name + "/" + c.key
		}
		p.watch = watchKey(ctx, r.servers[0].http(), key)
	}
	return p, p.restart(ctx)
}

// restart brings both replicas up anew; the first leads.
func (p *pair) restart(ctx context.Context) error {
	p.stop()
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	p.leader = 0
	for i, node := range p.nodes {
		m, err := p.start(ctx, p, node)
		p.members[i] = m
		if err != nil {
			return err
		}
		if i == 0 {
			if err := p.elected(ctx, m); err != nil {
				return err
			}
		}
	}
	return p.waits(ctx, p, p.members[1])
}

func (p *pair) elected(ctx context.Context, m *member) error {
	e, err := m.port.await(ctx, wire.Elected)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, m.main.tail())
	}
	m.pid = e.PID
	return nil
}

func (p *pair) stop() {
	for i, m := range p.members {
		m.stop()
		p.members[i] = nil
	}
}

// resign makes the leader give leadership back, to somebody when the contender can, and measures.
func (p *pair) resign(ctx context.Context, to string) (sample, error) {
	old, next := p.members[p.leader], p.members[1-p.leader]
	next.port.drain()
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := old.port.tell(ctx, wire.Command{Name: wire.Resign, To: to}); err != nil {
		return sample{}, err
	}
	left, err := old.port.await(ctx, wire.Resigning)
	if err != nil {
		return sample{}, err
	}
	won, err := next.port.await(ctx, wire.Elected)
	if err != nil {
		return sample{}, err
	}
	next.pid = won.PID
	s, err := p.sample(ctx, left.At, won)
	if err != nil {
		return s, err
	}
	p.leader = 1 - p.leader
	if p.again == nil {
		return s, p.replace(ctx, 1-p.leader, old)
	}
	released, err := old.port.await(ctx, wire.Released)
	if err != nil {
		return s, err
	}
	s.atomic = won.Token != 0 && won.Token == released.Index
	if to != "" && !s.atomic {
		p.rig.say("  %s: handed over with Raft entry %d, the successor's token is %d, vacancy seen %v", p.name, released.Index, won.Token, s.vacancy)
	}
	if err := p.again(ctx, old); err != nil {
		return s, err
	}
	return s, p.waits(ctx, p, old)
}

// killApp kills the application that leads, and measures.
func (p *pair) killApp(ctx context.Context) (sample, error) {
	old := p.members[p.leader]
	return p.kill(ctx, func() error { return syscall.Kill(old.pid, syscall.SIGKILL) }, func() error {
		if old.app == nil {
			return p.replace(ctx, 1-p.leader, old)
		}
		old.port.close()
		old.app.kill()
		if err := p.startApp(ctx, old, "leader"); err != nil {
			return err
		}
		return p.waits(ctx, p, old)
	})
}

// killAll kills what stands between the application and the store: the elector, the wrapper, or the application itself.
func (p *pair) killAll(ctx context.Context) (sample, error) {
	old := p.members[p.leader]
	return p.kill(ctx, func() error { return syscall.Kill(old.main.pid(), syscall.SIGKILL) }, func() error { return p.replace(ctx, 1-p.leader, old) })
}

// kill measures from a kill to the successor, and then repairs.
func (p *pair) kill(ctx context.Context, kill, repair func() error) (sample, error) {
	next := p.members[1-p.leader]
	next.port.drain()
	limited, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	at := wire.Now()
	if err := kill(); err != nil {
		return sample{}, err
	}
	won, err := next.port.await(limited, wire.Elected)
	if err != nil {
		return sample{}, err
	}
	next.pid = won.PID
	p.leader = 1 - p.leader
	s, err := p.sample(limited, at, won)
	if err != nil {
		return s, err
	}
	return s, repair()
}

// replace starts a replica anew in the place of one that has ended.
func (p *pair) replace(ctx context.Context, i int, old *member) error {
	old.stop()
	m, err := p.start(ctx, p, old.node)
	p.members[i] = m
	if err != nil {
		return err
	}
	return p.waits(ctx, p, m)
}

func (p *pair) sample(ctx context.Context, from int64, won wire.Event) (sample, error) {
	s := sample{took: time.Duration(won.At - from), vacancy: -1}
	if p.watch == nil {
		return s, nil
	}
	// What happened has to reach the watch, too.
	if err := pause(ctx, 10*time.Millisecond); err != nil {
		return s, err
	}
	var err error
	s.vacancy, err = p.watch.vacancy(ctx, from)
	return s, err
}

// soon waits a random part of the contender's period, so that actions do not keep step with its renewals or polls.
func (p *pair) soon(ctx context.Context, within time.Duration) error {
	if within = min(within, p.phase); within <= 0 {
		return nil
	}
	return pause(ctx, rand.N(within))
}

// keyWatch notes when a key had a holder, from outside.
type keyWatch struct {
	mu      sync.Mutex
	changes []keyChange
	wake    chan struct{}
}

type keyChange struct {
	at   int64
	held bool
}

func watchKey(ctx context.Context, server, key string) *keyWatch {
	w := &keyWatch{wake: make(chan struct{})}
	go func() {
		for index := uint64(0); ctx.Err() == nil; {
			held, next, err := readKey(ctx, server, key, index)
			if err != nil {
				index = 0
				_ = pause(ctx, 20*time.Millisecond)
				continue
			}
			index = next
			w.note(keyChange{wire.Now(), held})
		}
	}()
	return w
}

func (w *keyWatch) note(c keyChange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes = append(w.changes, c)
	close(w.wake)
	w.wake = make(chan struct{})
}

// vacancy is how long the key was seen without a holder after from. It waits until it has one again.
func (w *keyWatch) vacancy(ctx context.Context, from int64) (time.Duration, error) {
	for {
		w.mu.Lock()
		changes, wake := w.changes, w.wake
		w.mu.Unlock()
		if total, ok := vacancy(changes, from); ok {
			return total, nil
		}
		select {
		case <-wake:
		case <-time.After(2 * time.Second):
			return 0, fmt.Errorf("the watch sees no new holder")
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// vacancy adds up the times without a holder after from. It is unknown until there was a change to a holder.
func vacancy(changes []keyChange, from int64) (total time.Duration, ok bool) {
	empty := int64(0)
	for _, c := range changes {
		if c.at < from {
			continue
		}
		switch {
		case !c.held && empty == 0:
			empty = c.at
		case c.held && empty != 0:
			total += time.Duration(c.at - empty)
			empty = 0
		}
		ok = c.held
	}
	return total, ok
}

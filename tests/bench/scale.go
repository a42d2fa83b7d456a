package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"retinue/tests/bench/wire"
)

const manyElections = 1000

// scale puts a thousand elections on one elector, with a second one that waits
// for all of them.
func (r *rig) scale(ctx context.Context, idle time.Duration, quick bool) ([]Fact, []Target, error) {
	lease := 10 * time.Second
	if quick {
		lease = 2 * time.Second
	}
	elections := make([]string, manyElections)
	for i := range elections {
		elections[i] = fmt.Sprintf("shard-%04d", i)
	}
	p := &pair{rig: r, name: "s-elector", watch: watchKey(ctx, r.servers[0].http(), "retinue/elections/s-elector/"+elections[0])}
	defer p.stop()
	for node := range p.members {
		p.members[node] = &member{node: node}
		if err := p.startElector(ctx, p.members[node], lease, "fast", elections...); err != nil {
			return nil, nil, err
		}
	}
	a, b := p.members[0], p.members[1]
	began := wire.Now()
	if err := p.startApp(ctx, a, elections...); err != nil {
		return nil, nil, err
	}
	won, err := a.port.awaitAll(ctx, manyElections)
	if err != nil {
		return nil, nil, fmt.Errorf("%w\n%s", err, a.main.tail())
	}
	facts := []Fact{{What: "1,000 elections: start of the application until it leads all", Value: human(time.Duration(won.last - began))}}
	if err := p.startApp(ctx, b, elections...); err != nil {
		return nil, nil, err
	}
	r.say("  leads all; the other elector's application waits for all")
	if err := p.allWait(ctx, b); err != nil {
		return nil, nil, err
	}
	costs, conns, err := r.scaleCosts(ctx, p, idle)
	if err != nil {
		return nil, nil, err
	}
	facts = append(facts,
		Fact{What: "1,000 elections: resident memory (leads all, 1,000 tethers / waits for all, 1,000 long polls)", Value: megabytes(costs[0].rss) + " / " + megabytes(costs[1].rss)},
		Fact{What: fmt.Sprintf("1,000 elections: processor time over %v idle, lease %v (leads all / waits for all)", idle, lease), Value: fmt.Sprintf("%.1f %% / %.1f %%", costs[0].cpu*100, costs[1].cpu*100)},
		Fact{What: "1,000 elections: connections to Consul", Value: fmt.Sprint(conns)})
	moves, err := p.moveAll(ctx, elections)
	if err != nil {
		return nil, nil, err
	}
	theirs, err := r.scaleEtcd(ctx, elections)
	if err != nil {
		return nil, nil, err
	}
	facts = append(facts,
		Fact{"1,000 elections: the application resigns from all at once → the successor's leads all", moves.resigned.String(), theirs.resigned.peer("etcd, one session closed")},
		Fact{What: "1,000 elections: the application is killed → the successor's leads all", Value: moves.died.String()},
		Fact{fmt.Sprintf("1,000 elections: what holds the locks is killed → the successor's leads all (lease %v, fast / etcd TTL 2s)", lease), moves.crashed.String(), theirs.crashed.peer("etcd")},
		Fact{"1,000 elections: of that, from the moment Consul showed the vacancy", human(moves.reacquired), ""})
	if r.etcd == "" {
		facts[len(facts)-4].Peer, facts[len(facts)-2].Peer = "", ""
	}
	return facts, []Target{
		{"1,000 elections: connections to Consul", "≤ 4", fmt.Sprint(conns), conns <= 4},
		{"1,000 elections: re-acquired after the elector's end", "≤ 250 ms", human(moves.reacquired), moves.reacquired <= 250*time.Millisecond},
	}, nil
}

// span is when the first and the last election of many had a new leader.
type span struct{ from, first, last int64 }

func (s span) String() string {
	return fmt.Sprintf("first %s, all %s", human(time.Duration(s.first-s.from)), human(time.Duration(s.last-s.from)))
}

func (s span) peer(name string) string { return name + ": " + s.String() }

// moves are the ways in which all elections change their leader at once.
type moves struct {
	resigned, died, crashed span
	reacquired              time.Duration
}

// awaitAll waits until an application leads n elections.
func (p *port) awaitAll(ctx context.Context, n int) (span, error) {
	var s span
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i := range n {
		e, err := p.await(ctx, wire.Elected)
		if err != nil {
			return s, fmt.Errorf("leads %d of %d: %w", i, n, err)
		}
		if s.first == 0 || e.At < s.first {
			s.first = e.At
		}
		s.last = max(s.last, e.At)
	}
	return s, nil
}

// allWait waits until an application campaigns in every election, and the electors know.
func (p *pair) allWait(ctx context.Context, m *member) error {
	for i := range manyElections {
		if _, err := m.port.await(ctx, wire.Campaigning); err != nil {
			return fmt.Errorf("campaigns in %d: %w", i, err)
		}
	}
	var list struct {
		Elections []struct {
			Candidates []string `json:"candidates"`
		} `json:"elections"`
	}
	return eventually(ctx, 30*time.Second, "all elections have two candidates", func(ctx context.Context) error {
		for _, side := range p.members {
			if err := side.get(ctx, "/v1/elections", &list); err != nil {
				return err
			}
			for _, e := range list.Elections {
				if len(e.Candidates) < 2 {
					return pause(ctx, 200*time.Millisecond)
				}
			}
		}
		return nil
	})
}

func (r *rig) scaleCosts(ctx context.Context, p *pair, idle time.Duration) ([]cost, int, error) {
	if err := pause(ctx, 2*time.Second); err != nil {
		return nil, 0, err
	}
	costs, err := costsOf(ctx, []int{p.members[0].main.pid(), p.members[1].main.pid()}, idle)
	if err != nil {
		return nil, 0, err
	}
	most := 0
	for i, m := range p.members {
		n, err := connections(m.main.pid(), r.clients[i].http())
		if err != nil {
			return nil, 0, err
		}
		most = max(most, n)
	}
	return costs, most, nil
}

// moveAll moves leadership of all from a to b by resigning, back by the
// death of b's application, and to b again by the death of a's elector.
func (p *pair) moveAll(ctx context.Context, elections []string) (m moves, err error) {
	a, b := p.members[0], p.members[1]
	p.rig.say("  resign from all")
	b.port.drain()
	from := wire.Now()
	if err := a.port.tell(ctx, wire.Command{Name: wire.Resign}); err != nil {
		return m, err
	}
	if m.resigned, err = b.port.awaitAll(ctx, manyElections); err != nil {
		return m, err
	}
	m.resigned.from = from
	for range manyElections {
		if _, err := a.port.await(ctx, wire.Released); err != nil {
			return m, err
		}
	}
	if err := a.port.tell(ctx, wire.Command{Name: wire.Campaign}); err != nil {
		return m, err
	}
	if err := p.settle(ctx, a); err != nil {
		return m, err
	}
	p.rig.say("  kill the application")
	from = wire.Now()
	if err := syscall.Kill(b.app.pid(), syscall.SIGKILL); err != nil {
		return m, err
	}
	if m.died, err = a.port.awaitAll(ctx, manyElections); err != nil {
		return m, err
	}
	m.died.from = from
	b.port.close()
	b.app.kill()
	if err := p.startApp(ctx, b, elections...); err != nil {
		return m, err
	}
	if err := p.settle(ctx, b); err != nil {
		return m, err
	}
	p.rig.say("  kill the elector")
	from = wire.Now()
	if err := syscall.Kill(a.main.pid(), syscall.SIGKILL); err != nil {
		return m, err
	}
	if m.crashed, err = b.port.awaitAll(ctx, manyElections); err != nil {
		return m, err
	}
	m.crashed.from = from
	vacant, ok := p.watch.vacantSince(from)
	if !ok {
		return m, fmt.Errorf("the watch saw no vacancy")
	}
	m.reacquired = time.Duration(m.crashed.last - vacant)
	return m, nil
}

// settle waits until an application campaigns in all, and everything about that is written.
func (p *pair) settle(ctx context.Context, m *member) error {
	if err := p.allWait(ctx, m); err != nil {
		return err
	}
	return pause(ctx, 2*time.Second)
}

// vacantSince is when the key was first seen without a holder after from.
func (w *keyWatch) vacantSince(from int64) (int64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.changes {
		if c.at >= from && !c.held {
			return c.at, true
		}
	}
	return 0, false
}

// scaleEtcd does the same with etcd's Election, all elections on one session.
func (r *rig) scaleEtcd(ctx context.Context, elections []string) (m moves, err error) {
	if r.etcd == "" {
		return m, nil
	}
	r.say("  the same with etcd")
	p := &pair{rig: r, name: "s-etcd"}
	defer p.stop()
	start := func(node int) (*member, error) {
		m, err := p.startEtcd(ctx, node, 2, elections...)
		p.members[node] = m
		return m, err
	}
	a, err := start(0)
	if err != nil {
		return m, err
	}
	if _, err := a.port.awaitAll(ctx, manyElections); err != nil {
		return m, err
	}
	b, err := start(1)
	if err != nil {
		return m, err
	}
	if err := pause(ctx, 3*time.Second); err != nil { // a thousand watches
		return m, err
	}
	from := wire.Now()
	if err := a.port.tell(ctx, wire.Command{Name: wire.Resign}); err != nil {
		return m, err
	}
	if m.resigned, err = b.port.awaitAll(ctx, manyElections); err != nil {
		return m, err
	}
	m.resigned.from = from
	a.stop()
	if a, err = start(0); err != nil {
		return m, err
	}
	if err := pause(ctx, 3*time.Second); err != nil {
		return m, err
	}
	from = wire.Now()
	if err := syscall.Kill(b.main.pid(), syscall.SIGKILL); err != nil {
		return m, err
	}
	if m.crashed, err = a.port.awaitAll(ctx, manyElections); err != nil {
		return m, err
	}
	m.crashed.from = from
	return m, nil
}

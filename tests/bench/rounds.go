package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// step is one action on one pair in every round, or in every second one when it starts heavy programs.
type step struct {
	name  string
	pair  *pair
	do    func(ctx context.Context) (sample, error)
	every int
	out   *outcome
}

// turns is the plan of the rounds: the pairs, and what is done to them in turn.
type turns struct {
	rig   *rig
	pairs []*pair
	steps []*step
}

func (t *turns) stop() {
	for _, p := range t.pairs {
		p.stop()
	}
}

func (t *turns) pair(ctx context.Context, name string, c *contender) (*pair, error) {
	t.rig.say("  %s", c.name)
	p, err := t.rig.newPair(ctx, name, c, nodeA, nodeB)
	t.pairs = append(t.pairs, p)
	return p, err
}

func (t *turns) plan(name string, p *pair, every int, do func(ctx context.Context) (sample, error)) *outcome {
	s := &step{name: p.contender.name + ": " + name, pair: p, do: do, every: every, out: &outcome{}}
	t.steps = append(t.steps, s)
	return s.out
}

// resign plans graceful ends; to is who shall follow, where one can choose.
func (t *turns) resign(p *pair, every int, to string) *outcome {
	return t.plan("resign", p, every, func(ctx context.Context) (sample, error) { return p.resign(ctx, to) })
}

// entrant is a peer in the rounds.
type entrant struct {
	c        *contender
	every    int
	note     string
	released *outcome
	killed   *outcome // nil: the application is its own client, and nothing beside it notices its death
}

func (r *rig) entrants() []*entrant {
	all := []*entrant{{c: apiLock("as it comes: TTL 15s, lock-delay 15s", lockOptions{ttl: "15s"}), every: 1}}
	if r.etcd != "" {
		all = append(all, &entrant{c: etcdElection("as it comes: TTL 60s", 60), every: 1,
			note: "Its queue names the next leader at once; the vacancy is what that one does not know yet."})
	}
	all = append(all, &entrant{c: consulLock(), every: 2, note: "Includes the start of the successor's child."})
	if r.nomadAddr != "" {
		all = append(all, &entrant{c: varLock("-ttl 10s -delay 1ms -backoff 100ms: the shortest, polling ten times a second", 0, "-ttl", "10s", "-delay", "1ms", "-backoff", "100ms"),
			every: 2, note: "Includes the start of the successor's child. One server: nothing is replicated."})
	}
	return all
}

// rounds measures what takes milliseconds: graceful ends, hand-overs, and
// deaths of an application that something else notices.
func (r *rig) rounds(ctx context.Context, n int, limit time.Duration) ([]Scenario, *outcome, error) {
	t := &turns{rig: r}
	defer t.stop()
	ours := elector(10*time.Second, "safe")
	p, err := t.pair(ctx, "r-elector", ours)
	if err != nil {
		return nil, nil, err
	}
	resigned, handed, died := t.resign(p, 1, ""), t.resign(p, 1, "any"), t.plan("application dies", p, 1, p.killApp)
	peers := r.entrants()
	for i, e := range peers {
		p, err := t.pair(ctx, fmt.Sprintf("r-%d", i), e.c)
		if err != nil {
			return nil, nil, err
		}
		e.released = t.resign(p, e.every, "")
		if e.c.again == nil {
			e.killed = t.plan("application dies", p, e.every, p.killApp)
		}
	}
	if err := r.runRounds(ctx, t.steps, n, limit); err != nil {
		return nil, nil, err
	}
	released, killed := []Row{}, []Row{}
	for _, e := range peers {
		released = append(released, row(e.c, e.released, e.note))
		if e.killed != nil {
			killed = append(killed, row(e.c, e.killed, e.note))
		}
	}
	first := row(ours, handed, fmt.Sprintf("%d of %d were one Raft entry, by Consul's own index.", countAtomic(handed), len(handed.samples)))
	return []Scenario{
		{"Resign: the leader gives up, anybody may follow", "The application resigns (a wrapper's child exits; a library's lock is released).", compare(append([]Row{row(ours, resigned, "")}, released...))},
		{"Planned hand-over: leadership moves without a vacancy", "The application resigns in favour of the other replica. Peers have no such thing: their graceful release stands here. " +
			"*Vacancy* is how long Consul showed nobody as leader.", compare(append([]Row{first}, released...))},
		{"The application is killed (SIGKILL)", "What stands beside it notices. Where the application itself is the client, see the tables of what has to expire.", compare(append([]Row{row(ours, died, "")}, killed...))},
	}, handed, nil
}

// runRounds does n rounds, fewer when time is up: whole rounds, so that all contenders were there.
func (r *rig) runRounds(ctx context.Context, steps []*step, n int, limit time.Duration) error {
	const warmUp = 1
	end := time.Now().Add(limit)
	for round := range n + warmUp {
		if time.Now().After(end) {
			r.say("  time is up after %d rounds", round)
			return nil
		}
		if round%10 == 0 {
			r.say("  round %d of %d", round, n)
		}
		rand.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for _, s := range steps {
			if round > 0 && round%s.every != 0 {
				continue
			}
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
			got, err := s.do(ctx)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				s.out.failures++
				r.say("  %s failed: %v", s.name, err)
				if err := s.pair.restart(ctx); err != nil {
					return err
				}
			case round >= warmUp:
				s.out.add(got)
			}
		}
	}
	return nil
}

func countAtomic(o *outcome) (n int) {
	for _, s := range o.samples {
		if s.atomic {
			n++
		}
	}
	return n
}

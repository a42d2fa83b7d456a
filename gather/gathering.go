package gather

import (
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"retinue/internal/clock"
)

// maxRetries is how often one shard of one request is tried again.
const maxRetries = 2

// shard is how one shard stands in one request.
type shard struct {
	id          int
	pool        *pool
	weight      float64
	state       State
	share       float64 // of a partial answer
	outstanding int
	hedges      int
	retries     int
	noHedge     bool // it pushed back
	refused     bool // the budget had no hedge for it, so far
	starved     bool // nor a retry
	attempts    []*attempt
	winner      *attempt
	detail      string
	status      int
}

// gathering is one request under way. One goroutine owns it and calls its methods; leaf calls come back on done.
type gathering struct {
	root   *Root
	req    *request
	common *http.Request // what all leaf calls have in common
	merge  merger
	shards []shard
	done   chan *attempt

	outstanding   int
	waiting       int
	waitingWeight float64
	cover         Coverage // of the shards that are decided
	hedges, won   int
	probes        int // calls that are probes
	held          int // hedges not sent at the last look, because one request has only a few
	calls         int
	delay         time.Duration // after which a call is hedged; 0: not
	patience      time.Duration // after which a call is overdue
	latencies     []time.Duration
	mergeErr      error           // it ended before the leaves did
	leaf          context.Context // of all leaf calls
	stop          context.CancelFunc
	abandoned     bool
}

// gather fans the request out and feeds the merge until there is nothing more to wait for. It returns how it ended, or "" when
// the client went away. What is still out then goes on until abandon.
func (g *gathering) gather(ctx context.Context) (reason string) {
	root, req := g.root, g.req
	g.leaf, g.stop = context.WithCancel(ctx)
	defer g.conclude()
	method := req.method
	if d, ok := root.hedger.Delay(req.class, method); ok {
		g.delay = d
	}
	g.patience = patience(req.deadline.Leaf-root.clock.Now().Sub(req.start), g.delay)
	g.start()
	limit := time.NewTimer(req.deadline.Gather - root.clock.Now().Sub(req.start))
	defer limit.Stop()
	overdue := time.NewTimer(g.patience)
	defer overdue.Stop()
	var hedgeTimer, waitTimer *time.Timer
	var hedgeC, probeC, waitC <-chan time.Time
	if g.delay > 0 {
		hedgeTimer = time.NewTimer(g.delay)
		defer hedgeTimer.Stop()
		hedgeC = hedgeTimer.C
		if g.probes > 0 {
			probeTimer := time.NewTimer(root.hedger.ProbeDelay(req.class, g.delay))
			defer probeTimer.Stop()
			probeC = probeTimer.C
		}
	}
	for round := 1; g.waiting > 0; {
		select {
		case att := <-g.done:
			g.take(att)
			if att.why == hedge && att.won && g.held > 0 {
				hedgeTimer.Reset(0) // there is room for one more
			}
		case <-probeC:
			g.hedgeProbes(root.clock.Now())
			continue
		case <-hedgeC:
			if refused := g.hedgeAll(round, root.clock.Now()); refused > 0 {
				hedgeTimer.Reset(max(g.delay/4, 5*time.Millisecond)) // other requests earn tokens meanwhile
			} else if round++; round <= root.cfg.Hedge.Max {
				hedgeTimer.Reset(g.delay)
			}
			continue
		case <-overdue.C:
			overdue.Reset(g.lookAfter(root.clock.Now()))
			continue
		case <-waitC:
			g.expire(root.clock.Now())
			return reasonPolicy
		case <-limit.C:
			g.expire(root.clock.Now())
			return reasonDeadline
		case <-g.merge.early():
			return g.mergeIsDone()
		case <-ctx.Done():
			g.decideRest(Timeout)
			if ctx.Err() == context.DeadlineExceeded {
				return reasonDeadline
			}
			return ""
		}
		if g.waiting == 0 {
			break
		}
		select {
		case <-g.merge.early():
			return g.mergeIsDone()
		default:
		}
		possible, wait, settle := g.judge()
		switch {
		case !possible:
			g.cover.failing = true
			g.decideRest(Skipped) // this request fails whatever they say
			return reasonPolicy
		case settle && wait <= 0:
			g.expire(root.clock.Now())
			return reasonPolicy
		case settle && waitTimer == nil:
			waitTimer = time.NewTimer(wait)
			defer waitTimer.Stop()
			waitC = waitTimer.C
		case settle:
			waitTimer.Reset(wait)
		}
	}
	if g.cover.Whole() {
		return reasonComplete
	}
	return reasonPolicy
}

// start sends one call to each shard.
func (g *gathering) start() {
	now := g.root.clock.Now()
	all := make([]attempt, len(g.req.shards))
	g.shards = make([]shard, len(g.req.shards))
	g.common = &http.Request{Method: g.req.method, ContentLength: int64(len(g.req.body)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	g.done = make(chan *attempt, len(all)*(1+g.root.cfg.Hedge.Max+maxRetries))
	g.latencies = make([]time.Duration, 0, len(all))
	for i, id := range g.req.shards {
		p := g.root.fleet.pools[id]
		g.shards[i] = shard{id: id, pool: p, weight: p.weighs(), state: Waiting}
		g.waitingWeight += g.shards[i].weight
	}
	g.waiting = len(g.shards)
	for i := range g.shards {
		s := &g.shards[i]
		r, probe := s.pool.pick(now, primary, nil, rand.Uint64())
		if r == nil {
			s.detail = "no instance is known"
			if len(s.pool.list()) > 0 {
				s.detail = "no instance passes its check, and the last known do not answer"
			}
			g.decide(s, Missing, 0)
			continue
		}
		g.send(s, r, primary, now, &all[i])
		if all[i].probe = probe; probe {
			g.probes++
		}
	}
	g.root.earn(now, g.calls)
}

// send starts one call.
func (g *gathering) send(s *shard, r *replica, why purpose, now clock.Instant, att *attempt) {
	ctx, cancel := context.WithCancel(g.leaf)
	*att = attempt{shard: s, replica: r, why: why, second: s.outstanding > 0, start: now, cancel: cancel, outcome: underWay}
	if m := s.pool.members(); m.checks != nil {
		att.check = m.check(r)
		g.root.metrics.lastResort.Inc()
	}
	s.attempts = append(s.attempts, att)
	s.outstanding++
	g.outstanding++
	g.calls++
	r.inflight.Add(1)
	r.calls.Add(1)
	go g.run(ctx, att)
}

// take notes the result of a call, and what follows from it.
func (g *gathering) take(att *attempt) {
	s, r := att.shard, &att.result
	g.outstanding--
	s.outstanding--
	if att.outcome == underWay { // a loser was judged when it lost
		att.outcome, att.end, att.status, att.detail = r.outcome, r.end, r.status, r.detail
		g.note(att, r)
	}
	if s.state != Waiting {
		r.answer.release()
		return
	}
	switch r.outcome {
	case gotAnswer, gotEmpty, gotPartial:
		att.size = len(r.answer.body)
		s.winner = att
		g.dropLosers(s, att, r.end)
		state := OK
		if r.outcome == gotEmpty {
			state = Empty
		}
		if r.outcome == gotPartial {
			state, s.share = Partial, r.answer.coverage
		}
		g.decide(s, state, s.share)
		g.merge.add(r.answer)
	case cancelled: // the whole request is, as its owner sees next
	default:
		s.detail, s.status = r.detail, r.status
		if s.outstanding == 0 && !g.again(s, r) {
			g.decide(s, Failed, 0)
		}
	}
}

// note tells the replica's record how a call went.
func (g *gathering) note(att *attempt, r *result) {
	took := att.end.Sub(att.start)
	rep, p := att.replica, att.shard.pool
	if att.probe {
		rep.probing.Store(false)
	}
	g.root.metrics.call(att.outcome, took)
	switch att.outcome {
	case gotAnswer, gotEmpty, gotPartial, refused:
		rep.observe(att.end, took)
		g.latencies = append(g.latencies, took)
		p.good(rep, att.end)
	case pushedBack:
		att.shard.noHedge = true
		rep.pushback.Store(int64(att.end.Add(max(r.later, time.Second))))
		if r.status == http.StatusServiceUnavailable {
			g.root.blame(p, rep, att.end)
		}
	case serverError, unreached, broken:
		g.root.blame(p, rep, att.end)
	}
}

// dropLosers cancels the other copies. A first call that was overtaken by a later copy counts against its replica.
func (g *gathering) dropLosers(s *shard, winner *attempt, now clock.Instant) {
	if winner.why == hedge {
		winner.won = true
		g.won++
		g.root.metrics.hedgesWon.Inc()
	}
	for _, att := range s.attempts {
		if att == winner || att.outcome != underWay {
			continue
		}
		if winner.why != primary && att.why == primary {
			g.tooSlow(att, lostHedge, now)
		} else {
			g.end(att, cancelled, now)
		}
		att.cancel()
	}
}

// tooSlow ends a call, but for cancelling it, and holds it against the replica, which may be frozen.
func (g *gathering) tooSlow(att *attempt, how outcome, now clock.Instant) {
	took := now.Sub(att.start)
	g.end(att, how, now)
	att.replica.observe(now, took)
	att.replica.lost.Add(1)
	if g.delay > 0 {
		took = g.delay // how much slower it would have been is not known: a frozen replica must not move the quantile up
	}
	g.latencies = append(g.latencies, took)
	g.hold(att, now)
}

// hold holds a call against its replica, once.
func (g *gathering) hold(att *attempt, now clock.Instant) {
	if !att.blamed {
		att.blamed = true
		att.replica.owe(att.start)
		g.root.blame(att.shard.pool, att.replica, now)
	}
}

// end fixes how a call ended that nobody waits for any more. It is cancelled besides.
func (g *gathering) end(att *attempt, how outcome, now clock.Instant) {
	att.outcome, att.end = how, now
	if att.probe {
		att.replica.probing.Store(false)
	}
	g.root.metrics.call(how, now.Sub(att.start))
}

// again retries a failed call on another replica, if it may.
func (g *gathering) again(s *shard, r *result) bool {
	switch {
	case r.outcome != unreached && !(g.replay() && (r.outcome == pushedBack || r.outcome == broken)):
		return false
	}
	return g.retry(s, r.end, false) == sent
}

func (s *shard) used() []*replica {
	used := make([]*replica, len(s.attempts))
	for i, a := range s.attempts {
		used[i] = a.replica
	}
	return used
}

// another is the replica for a second copy; nil: there is none.
func (s *shard) another(now clock.Instant) *replica {
	r, _ := s.pool.pick(now, hedge, s.used(), rand.Uint64())
	return r
}

// fewHedges is what one request may have, and a tenth of its shards, beside those that won. Where more are late at once it is not a few
// slow replicas: their second copies would be late as well, and would take the budget from requests that one copy helps.
const fewHedges = 3

// room says how many hedges this request may have now, of so many that it wants. When it wants more than it may have, a half of that is
// for later: by then the calls are known that are really slow, and not just behind a busy processor.
func (g *gathering) room(wanted int) int {
	left := max(fewHedges, len(g.shards)/10) - (g.hedges - g.won)
	if wanted > left {
		left = (left + 1) / 2
	}
	return left
}

// hedgeAll sends a second copy of every call that is still out, as far as the budget goes. It returns how many it would not let.
func (g *gathering) hedgeAll(round int, now clock.Instant) (refused int) {
	wants := func(s *shard) bool {
		return s.state == Waiting && s.outstanding > 0 && !s.noHedge && s.retries == 0 && s.hedges < round
	}
	wanted := 0
	for i := range g.shards {
		if wants(&g.shards[i]) {
			wanted++
		}
	}
	room := g.room(wanted)
	g.held = 0
	for i := range g.shards {
		s := &g.shards[i]
		if !wants(s) {
			continue
		}
		r := s.another(now)
		switch {
		case r == nil:
		case s.orphaned(r): // needs no budget: it waits for a replica that was ejected
			g.hedge(s, r, now)
		case room <= 0:
			if !s.refused {
				g.root.hedger.Want(now)
			}
			g.refuse(s)
			g.held++
			refused++
		case !g.root.hedger.May(now, s.refused):
			g.refuse(s)
			refused++
		default:
			room--
			g.hedge(s, r, now)
		}
	}
	return refused
}

// hedgeProbes sends a second copy of each probe that is still out, if there is a replica that can be relied on. What waits for them
// are single calls, and it is known why: the bound for one request is not for them, but the budget is.
func (g *gathering) hedgeProbes(now clock.Instant) {
	for i := range g.shards {
		s := &g.shards[i]
		if s.state != Waiting || s.outstanding == 0 || s.noHedge || s.retries > 0 || !s.attempts[0].probe {
			continue
		}
		if r := s.another(now); r != nil && !r.suspect() && g.root.hedger.May(now, false) {
			g.hedge(s, r, now)
		}
	}
}

func (g *gathering) hedge(s *shard, to *replica, now clock.Instant) {
	s.hedges++
	s.refused = false
	g.hedges++
	g.root.metrics.hedgesSent.Inc()
	g.send(s, to, hedge, now, &attempt{})
}

// refuse notes that a shard gets no hedge for now.
func (g *gathering) refuse(s *shard) {
	if !s.refused {
		g.root.metrics.hedgesSuppressed.Inc()
	}
	s.refused = true
}

// decide fixes the state of a shard.
func (g *gathering) decide(s *shard, state State, share float64) {
	s.state = state
	g.waiting--
	g.waitingWeight -= s.weight
	g.cover.Add(state, s.weight, share)
}

// decideRest gives every shard that is still out the same state.
func (g *gathering) decideRest(state State) {
	for i := range g.shards {
		if g.shards[i].state == Waiting {
			g.decide(&g.shards[i], state, 0)
		}
	}
}

// mergeIsDone ends the waiting because the merge needs nothing more, or is dead.
func (g *gathering) mergeIsDone() string {
	g.decideRest(Skipped)
	g.mergeErr = g.merge.failed()
	return reasonComplete
}

// expire ends the waiting: what is out by now is too late. It counts against the replicas that were slower than a hedge waits.
func (g *gathering) expire(now clock.Instant) {
	for i := range g.shards {
		s := &g.shards[i]
		if s.state != Waiting {
			continue
		}
		for _, att := range s.attempts {
			if took := now.Sub(att.start); att.outcome == underWay && took >= max(g.delay, 10*time.Millisecond) {
				g.tooSlow(att, timedOut, now)
			}
		}
		if s.detail == "" {
			s.detail = "no answer in the time there was"
		}
		g.decide(s, Timeout, 0)
	}
}

// judge says whether the policy can still be met, and, once it is met early, how long to wait for the rest.
func (g *gathering) judge() (possible bool, wait time.Duration, settle bool) {
	policy := g.req.policy
	if !policy.Met(g.cover.with(OK, g.waiting, g.waitingWeight)) {
		return false, 0, false
	}
	if !policy.Early() {
		return true, 0, false
	}
	now := g.cover.with(Timeout, g.waiting, g.waitingWeight)
	if !policy.Met(now) {
		return true, 0, false
	}
	cfg := &g.root.cfg
	left := g.req.deadline.Gather - g.root.clock.Now().Sub(g.req.start)
	factor := cfg.WaitMax - (cfg.WaitMax-cfg.WaitMin)*policy.progress(now)
	return true, time.Duration(float64(left) * factor), true
}

// conclude fixes how the calls ended that are still out.
func (g *gathering) conclude() {
	now := g.root.clock.Now()
	for i := range g.shards {
		if s := &g.shards[i]; s.outstanding > 0 {
			for _, att := range s.attempts {
				if att.outcome == underWay {
					g.end(att, cancelled, now)
				}
			}
		}
	}
	g.req.class.Observe(now, g.latencies...)
}

// abandon cancels what is still out, once, and sees to it that late answers give their memory back.
func (g *gathering) abandon() {
	if g.abandoned {
		return
	}
	g.abandoned = true
	g.stop()
	if left := g.outstanding; left > 0 {
		done := g.done
		go func() {
			for range left {
				late := <-done
				late.result.answer.release()
			}
		}()
	}
}

// coverage is the final figure, added up in the order of shards.
func (g *gathering) coverage() Coverage {
	c := Coverage{failing: g.cover.failing}
	for i := range g.shards {
		s := &g.shards[i]
		c.Add(s.state, s.weight, s.share)
	}
	return c
}

// problems lists the shards that are not whole.
func (g *gathering) problems() []ShardProblem {
	var list []ShardProblem
	for i := range g.shards {
		s := &g.shards[i]
		if s.state == OK || s.state == Empty || s.state == Skipped {
			continue
		}
		p := ShardProblem{Shard: s.id, State: s.state, Error: s.detail}
		if s.state == Partial {
			p.Coverage = s.share
		}
		if n := len(s.attempts); n > 0 {
			p.Replica, p.Node = s.attempts[n-1].replica.name, s.attempts[n-1].replica.node
		}
		list = append(list, p)
	}
	return list
}

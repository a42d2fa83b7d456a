package main

import (
	"fmt"
	"sort"
	"time"
)

// stretch is a time on the boot clock.
type stretch struct{ from, to int64 }

// recovery is how long, after the repair of a fault, what it hit may need before it can be expected to take a lock.
func recovery(class Class) time.Duration {
	switch class {
	case leaderKill, leaderStop, leaderCut, followerKill, followerStop, followerCut, majorityKill, majorityStop, serverFull:
		return 6 * time.Second // the servers elect, and time every session anew
	case agentKill, agentLeave:
		return 3 * time.Second // an agent starts, and finds the servers
	case agentStop, hostCut, hostCutOne:
		return 2 * time.Second
	}
	return time.Second
}

// checkReady: however many faults there are, an elector that none of them hit, while the servers are well, leads after the time that
// a silent death takes to be noticed, once for whoever may hold the lock, and once more for each elector that is hit meanwhile.
func (c *campaign) checkReady(e *election, v vacancy) {
	g := e.group
	for _, s := range g.slots {
		for _, quiet := range c.quiet(s, v) {
			end, limit := c.patience(g, s, quiet)
			if time.Duration(end-quiet.from) <= 500*time.Millisecond {
				continue
			}
			c.judge.checked(4, 1)
			if limit == 0 {
				continue
			}
			c.judge.violation(4, g.name, e.name, fmt.Sprintf("from %.4f to %.4f nothing was wrong with %s and the servers, yet nobody led for %s (the bound is %s)\n%s", seconds(quiet.from), seconds(end), s.name,
				time.Duration(end-quiet.from).Round(time.Millisecond), limit.Round(time.Millisecond), c.excerpt(e, v.from-int64(4*time.Second), v.to+int64(time.Second))))
			return
		}
	}
}

// patience returns the first moment of a quiet stretch of s by which somebody should have led, and the bound; 0 when there is none.
func (c *campaign) patience(g *group, s *slot, quiet stretch) (end int64, limit time.Duration) {
	one := g.failover() + 1500*time.Millisecond
	var hits []int64
	for _, other := range g.slots {
		for _, t := range other.troubles {
			if other != s && t.from > quiet.from && t.from < quiet.to {
				hits = append(hits, t.from)
			}
		}
	}
	for _, e := range g.elections {
		for _, act := range e.operator {
			if act.to > quiet.from && act.from < quiet.to {
				hits = append(hits, act.from)
			}
		}
	}
	sort.Slice(hits, func(i, k int) bool { return hits[i] < hits[k] })
	for k, until := range append(hits, quiet.to) {
		limit := time.Duration(1+k)*one + c.slack([]*node{s.node}, quiet.from, until)
		if time.Duration(until-quiet.from) > limit {
			return until, limit
		}
	}
	return quiet.to, 0
}

// quiet are the parts of a vacancy in which neither s nor the servers were in trouble, nor recovering.
func (c *campaign) quiet(s *slot, v vacancy) (out []stretch) {
	var bad []stretch
	for _, t := range s.troubles {
		bad = append(bad, stretch{t.from, t.to + int64(recovery(t.class))})
	}
	for _, f := range c.done {
		if f.ofServers() {
			bad = append(bad, stretch{f.From, f.To + int64(recovery(f.Class))})
		}
	}
	sort.Slice(bad, func(i, k int) bool { return bad[i].from < bad[k].from })
	at := v.from
	for _, b := range bad {
		if b.from > at && at < v.to {
			out = append(out, stretch{at, min(b.from, v.to)})
		}
		at = max(at, b.to)
	}
	if at < v.to {
		out = append(out, stretch{at, v.to})
	}
	return out
}

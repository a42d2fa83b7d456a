package gather

import (
	"math/rand/v2"
	"time"

	"retinue/internal/clock"
)

// A replica may stop answering with calls under way: its process is frozen, its machine is gone. Hedges help as far as their budget
// goes, and it is meant for a few slow calls. So each call has its patience. One that is out for longer is overdue: it counts against
// its replica when that has said nothing to anybody in the same time, and it is sent to another one, as by Envoy's timeout per try.
//
// Nothing fails then when a node with a replica of every shard freezes, and another replica of each answers:
//
//   - A replica with as many overdue calls as eject it (5) is ejected, and what waits for it goes elsewhere without a budget.
//   - Where there are fewer, each takes a token of the retry budget. Its reserve has one for every such call of every shard.
//
// And an outage does not multiply load. A call is sent again by these rules twice at most (maxRetries), and together they get what
// the retry budget has: a share of all calls, and the reserve, which is half a call a second for each shard. What goes without a
// budget was in flight to a replica when it was ejected. That happens once in the time of an ejection, and never to the last replica.

const (
	// A call that takes ten times what all but a few do is not a slow one of many any more. Below leastPatience a pause of a
	// healthy process (garbage collection, a busy machine) looks the same.
	patientDelays = 10
	leastPatience = 100 * time.Millisecond
)

// patience is how long a call may be out before it is overdue: ten times the hedge delay, but no more than half of the time that the
// leaf has, so that the other half is left for another replica. It is never shorter than the hedge delay.
func patience(leaf, delay time.Duration) time.Duration {
	p := max(leaf/2, delay)
	if delay > 0 {
		p = min(p, max(patientDelays*delay, leastPatience))
	}
	return max(p, time.Millisecond)
}

// retryReserve is what the retry budget has beside its earnings in ten seconds: a token for each call that can be lost to one replica
// of every shard before these are ejected.
func retryReserve(cfg *Config) int {
	return max(fewTokens, cfg.Eject.Consecutive*cfg.Shards)
}

// lookAfter looks for overdue calls, and returns when to look again.
func (g *gathering) lookAfter(now clock.Instant) time.Duration {
	next := g.patience
	for i := range g.shards {
		s := &g.shards[i]
		if s.state != Waiting || s.outstanding == 0 {
			continue
		}
		young := false
		for _, att := range s.attempts {
			if att.outcome != underWay {
				continue
			}
			out := now.Sub(att.start)
			if out < g.patience {
				young = true
			} else {
				out = att.replica.silent(now)
				if out >= g.patience {
					g.hold(att, now)
				}
			}
			if left := g.patience - out; left > 0 {
				next = min(next, left)
			}
		}
		if !young && g.replay() && g.retry(s, now, true) == starved {
			next = min(next, g.patience/4) // others earn tokens meanwhile, and its replica may be ejected
		}
	}
	return max(next, time.Millisecond)
}

// replay says whether a call that may have arrived can be sent again.
func (g *gathering) replay() bool { return g.root.cfg.Hedge.Methods[g.req.method] }

// orphaned says that the last call of the shard waits for a replica, or failed on one, that was ejected meanwhile, while to is not.
func (s *shard) orphaned(to *replica) bool {
	return s.attempts[len(s.attempts)-1].replica.ejected() && !to.ejected()
}

// retried says what became of a retry.
type retried int

const (
	sent     retried = iota
	starved          // the budget has nothing for it
	hopeless         // it was tried often enough, or there is no other replica
)

// retry sends a shard's call to another replica, if it may. One that is overdue may still be answered: it does not go to a replica that
// asked to be left alone.
func (g *gathering) retry(s *shard, now clock.Instant, overdue bool) retried {
	if s.retries >= maxRetries || g.root.cfg.Retry == 0 {
		return hopeless
	}
	next, _ := s.pool.pick(now, retry, s.used(), rand.Uint64())
	if next == nil || overdue && next.asked(now) {
		return hopeless
	}
	if !s.orphaned(next) {
		spend := g.root.retries.Spend
		if s.starved {
			spend = g.root.retries.SpendAgain
		}
		if !spend(now) {
			s.starved = true
			return starved
		}
	}
	s.retries++
	s.starved = false
	g.root.metrics.retries.Inc()
	g.send(s, next, retry, now, &attempt{})
	return sent
}

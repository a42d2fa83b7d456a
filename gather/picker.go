package gather

import (
	"slices"

	"retinue/internal/clock"
)

// purpose of a leaf call.
type purpose string

const (
	primary purpose = "primary"
	hedge   purpose = "hedge"
	retry   purpose = "retry"
)

// maxCandidates is how many replicas of a shard are looked at in one choice.
const maxCandidates = 16

// pick chooses the replica for a call: the less loaded of two taken by chance, among those that are neither ejected nor suspect nor
// used for this request before, and did not push back a moment ago. One whose ejection is over, or that is suspect, gets a single call
// as a probe. When there is none, a suspect one is better than none, and then any of the others; but those not for a hedge, and not
// when they are a last resort: then the shard is missing. rnd is a random number.
func (p *pool) pick(now clock.Instant, why purpose, used []*replica, rnd uint64) (r *replica, probe bool) {
	var in, doubtful, out candidates
	m := p.members()
	all := m.replicas
	first := 0
	if len(all) > maxCandidates {
		first = int(rnd >> 16 % uint64(len(all)))
	}
	for i := range all {
		r := all[(first+i)%len(all)]
		if len(used) > 0 && slices.Contains(used, r) {
			continue
		}
		until, asked := clock.Instant(r.outUntil.Load()), r.asked(now)
		doubted := until == 0 && !asked && r.suspect()
		switch {
		case why == primary && (doubted || until != 0 && until <= now) && r.probing.CompareAndSwap(false, true):
			return r, true
		case doubted:
			doubtful.add(r)
		case until == 0 && !asked:
			in.add(r)
		case why == hedge:
		case until != 0 && m.checks != nil: // a last resort that was of no use
		default:
			out.add(r)
		}
	}
	for _, c := range []*candidates{&in, &doubtful, &out} {
		if c.n > 0 {
			list := c.of[:c.n]
			if why == hedge {
				list = elsewhere(list, used)
			}
			return lighter(list, now, rnd), false
		}
	}
	return nil, false
}

// candidates for one choice: the first of them.
type candidates struct {
	of [maxCandidates]*replica
	n  int
}

func (c *candidates) add(r *replica) {
	if c.n < maxCandidates {
		c.of[c.n] = r
		c.n++
	}
}

// elsewhere keeps the candidates on other nodes than those used, if there are any: replicas of one node are slow together.
func elsewhere(candidates, used []*replica) []*replica {
	kept := 0
	for i, r := range candidates {
		if r.node != "" && !slices.ContainsFunc(used, func(u *replica) bool { return u.node == r.node }) {
			candidates[kept], candidates[i] = candidates[i], candidates[kept]
			kept++
		}
	}
	if kept == 0 {
		return candidates
	}
	return candidates[:kept]
}

// alike: scores that differ by less are taken as equal. Otherwise the replica that was measured a little slower would get nothing,
// and would be cold when it is needed.
const alike = 0.7

// lighter is the power of two choices.
func lighter(candidates []*replica, now clock.Instant, rnd uint64) *replica {
	switch n := uint64(len(candidates)); n {
	case 0:
		return nil
	case 1:
		return candidates[0]
	default:
		i := rnd % n
		j := (i + 1 + (rnd>>32)%(n-1)) % n
		a, b := candidates[i], candidates[j]
		if b.score(now) < alike*a.score(now) {
			return b
		}
		return a
	}
}

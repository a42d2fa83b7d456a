package elector

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"
)

// rankStep is how long each candidate waits for the one before it. A lock takes one Raft commit, a few milliseconds: most
// vacancies are taken by the first in rank with one write, and nobody's failed attempt loads Raft.
const rankStep = 4 * time.Millisecond

// contender is a candidate of one election, seen from outside.
type contender struct {
	Elector  string
	Priority int
	Record   CandidateRecord
	Bid      Bid
}

// ranking orders the candidates of an election: priority first, then rendezvous hashing, so that many elections spread evenly over
// the electors and every elector computes the same order.
func ranking(election string, candidates map[string]CandidateRecord) []contender {
	var all []contender
	for id, rec := range candidates {
		if bid, ok := rec.Elections[election]; ok {
			all = append(all, contender{Elector: id, Priority: bid.Priority, Record: rec, Bid: bid})
		}
	}
	slices.SortFunc(all, func(a, b contender) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(weight(election, b.Elector), weight(election, a.Elector)),
			cmp.Compare(a.Elector, b.Elector))
	})
	return all
}

func weight(election, elector string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(election))
	h.Write([]byte{0})
	h.Write([]byte(elector))
	// FNV's high bits hardly move with the last bytes; mix them.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// rankOf is the place of elector in the ranking. One that is not in it (its record is not visible yet) goes last.
func rankOf(elector string, order []contender) int {
	if i := slices.IndexFunc(order, func(c contender) bool { return c.Elector == elector }); i >= 0 {
		return i
	}
	return len(order)
}

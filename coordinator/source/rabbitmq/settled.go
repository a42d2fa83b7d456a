package rabbitmq

import (
	"slices"
	"sync"
)

// settled knows which deliveries of a channel have their verdict. Their tags are 1, 2, 3 and so on, so that one acknowledgement can
// speak for all up to a tag when none of those is open. Whatever else is said of a delivery is noted only after it has been sent: an
// acknowledgement that overtook it would be taken for its verdict.
type settled struct {
	mu    sync.Mutex
	upTo  uint64 // all up to here are
	above map[uint64]bool
}

// note records deliveries whose verdict has been sent.
func (s *settled) note(tags ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tag := range tags {
		s.above[tag] = true
	}
	for s.above[s.upTo+1] {
		s.upTo++
		delete(s.above, s.upTo)
	}
}

// split says how to acknowledge deliveries: all up to a tag, 0 for none, and each of the rest.
func (s *settled) split(tags []uint64) (upTo uint64, each []uint64) {
	slices.Sort(tags)
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.upTo + 1
	for i, tag := range tags {
		for s.above[next] {
			next++
		}
		if tag != next {
			return upTo, tags[i:]
		}
		upTo = tag
		next++
	}
	return upTo, nil
}

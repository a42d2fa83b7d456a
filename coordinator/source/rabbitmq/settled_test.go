package rabbitmq

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// An acknowledgement of all up to a tag never speaks for a delivery that is open, whatever the order of verdicts and acknowledgements.
func TestSettled(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := settled{above: map[uint64]bool{}}
		state := map[uint64]string{} // what the broker knows: open, or its verdict
		last, spared := uint64(0), 0
		for range 200 {
			for range rng.IntN(5) {
				last++
				state[last] = "open"
			}
			var open []uint64
			for tag, is := range state {
				if is == "open" {
					open = append(open, tag)
				}
			}
			slices.Sort(open)
			near := func() []uint64 { // what has been open for long, most of the time
				var some []uint64
				for _, tag := range open {
					if rng.IntN(3) > 0 && len(some) < 8 {
						some = append(some, tag)
					}
				}
				return some
			}
			if rng.IntN(4) == 0 {
				for _, tag := range near() {
					state[tag] = "back"
					s.note(tag)
				}
				continue
			}
			tags := near()
			rng.Shuffle(len(tags), func(i, j int) { tags[i], tags[j] = tags[j], tags[i] })
			upTo, each := s.split(slices.Clone(tags))
			acknowledge := func(tag uint64) {
				if state[tag] != "open" || !slices.Contains(tags, tag) {
					t.Fatalf("seed %d: %v were to be acknowledged, and %d was, which is %q", seed, tags, tag, state[tag])
				}
				state[tag] = "done"
			}
			if upTo > 0 {
				spared--
				if state[upTo] != "open" {
					t.Fatalf("seed %d: the broker does not know %d any more", seed, upTo)
				}
				for tag := range upTo + 1 {
					if state[tag] == "open" {
						acknowledge(tag)
						spared++
					}
				}
			}
			for _, tag := range each {
				acknowledge(tag)
			}
			s.note(tags...)
			for _, tag := range tags {
				if state[tag] != "done" {
					t.Fatalf("seed %d: %d of %v was not acknowledged", seed, tag, tags)
				}
			}
		}
		if spared <= 0 {
			t.Fatalf("seed %d: no acknowledgement spoke for several", seed)
		}
		if len(s.above) > len(state)-int(s.upTo) {
			t.Fatalf("seed %d: %d tags are kept", seed, len(s.above))
		}
	}
}

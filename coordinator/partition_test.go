package coordinator

import (
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/partitioned"
	"retinue/coordinator/worker"
)

func inPartitions(c *Config) { c.Keys, c.Partitions, c.Slots = true, 4, 2 }

// wentBack is what went back to the broker.
func (s *script) wentBack() string {
	var out []string
	for _, line := range s.log {
		if strings.HasPrefix(line, "release") || strings.HasPrefix(line, "publish") {
			out = append(out, line)
		}
	}
	return strings.Join(out, ", ")
}

// An item of a partition waits in hand when nothing may begin: behind it in the queue it would be out of order.
func TestPartitionsStayInHand(t *testing.T) {
	s := newScript(t, inPartitions)
	a1, a2, a3, b1 := msg("a1", "A", 0), msg("a2", "A", 0), msg("a3", "A", 0), msg("b1", "B", 0)
	s.receive(a1, a2, b1, msg("x", "", 0), msg("y", "", 0))
	s.expect("running", s.running(), "a1 b1")
	s.step(evPause{})
	s.expect("what has no key goes back", s.wentBack(), "release y 0s, release x 0s")
	if s.want != 0 {
		t.Errorf("%d wanted while paused", s.want)
	}
	s.answer("b1", verdict(worker.NotReady))
	s.expect("what is not ready stays too", s.wentBack(), "release y 0s, release x 0s")
	s.log = nil
	s.step(evHandBack{partitioned.Of("A", 4), []*source.Message{a1, a2}})
	s.expect("what has not begun goes with its partition", s.wentBack(), "release a2 0s")
	s.answer("a1", ack())
	s.step(evResume{})
	s.wait(time.Minute)
	s.expect("the other partition goes on", s.running(), "b1")

	// Asked back before it has arrived here.
	s.log = nil
	s.step(evHandBack{partitioned.Of("A", 4), []*source.Message{a3}})
	s.receive(a3)
	s.expect("what was on its way", s.wentBack(), "release a3 0s")
	s.expect("and nothing of it ran", s.running(), "b1")
}

// What has failed before goes back as it came at a stop: a copy would be behind those that wait behind it.
func TestPartitionsStopInPlace(t *testing.T) {
	s := newScript(t, inPartitions)
	s.receive(msg("a1", "A", 0), msg("a2", "A", 0))
	s.answer("a1", verdict(worker.Retry))
	s.step(evStop{})
	s.expect("in place", s.wentBack(), "release a1 0s, release a2 0s")
	if !s.done {
		t.Error("it goes on")
	}
}

// While the worker is not ready the partitions are others': nothing is received before an attempt may begin.
func TestPartitionsOfAWorkerThatIsNotReady(t *testing.T) {
	s := newScript(t, inPartitions)
	a1 := msg("a1", "A", 0)
	s.receive(a1)
	for range patience {
		s.answer("a1", verdict(worker.NotReady))
		s.wait(time.Minute)
	}
	s.answer("a1", verdict(worker.NotReady))
	s.step(evHandBack{partitioned.Of("A", 4), []*source.Message{a1}})
	s.expect("it goes with its partition", s.wentBack(), "release a1 0s")
	if s.want != 0 {
		t.Errorf("%d wanted before an attempt may begin", s.want)
	}
	s.wait(time.Minute)
	if s.want != 1 {
		t.Errorf("%d wanted when an attempt may begin", s.want)
	}
}

// What is behind an item that was lost comes again behind it.
func TestPartitionsLoseWhatIsBehind(t *testing.T) {
	s := newScript(t, inPartitions)
	s.receive(msg("a1", "A", 0), msg("a2", "A", 0), msg("b1", "B", 0))
	first := s.m.lanes["A"].items[0].handle
	s.receive(msg("a1", "A", 0))
	s.m.step(s.now, evExtended{handles: []uint64{first}, errs: map[uint64]error{first: source.ErrLost}})
	s.m.take()
	s.answer("a1", verdict(worker.Stopped))
	s.expect("it begins again before what was behind it", s.running(), "b1 a1")
	s.receive(msg("a2", "A", 0))
	s.answer("a1", ack())
	s.expect("and then that", s.running(), "b1 a2")
}

// A park is not known to the next coordinator, so it is over when its partition goes.
func TestPartitionsParkedKeyOpens(t *testing.T) {
	s := newScript(t, func(c *Config) { inPartitions(c); c.Lane, c.Attempts = LanePark, 1 })
	s.receive(msg("a1", "A", 0))
	s.answer("a1", verdict(worker.Retry))
	s.step(evHandBack{(partitioned.Of("A", 4) + 1) % 4, nil})
	if got := s.m.stats().Parked; len(got) != 1 {
		t.Errorf("parked when another partition went: %v", got)
	}
	s.step(evHandBack{partitioned.Of("A", 4), nil})
	if got := s.m.stats().Parked; len(got) != 0 {
		t.Errorf("parked when its partition had gone: %v", got)
	}
}

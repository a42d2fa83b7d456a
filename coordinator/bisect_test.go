package coordinator

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
)

func TestBisection(t *testing.T) {
	for poisoned := range 100 {
		s := newScript(t, func(c *Config) { c.Batch, c.Slots = 100, 1 })
		bad := fmt.Sprintf("i%d", poisoned)
		var msgs []*source.Message
		for i := range 100 {
			msgs = append(msgs, msg(fmt.Sprintf("i%d", i), "", 0))
		}
		// The broker gives what is wanted, one call takes it all.
		s.receive(msgs...)
		calls, isolated := 0, 0
		for len(s.calls) > 0 || len(s.m.queue) > 0 {
			if len(s.calls) == 0 {
				s.wait(time.Second)
				continue
			}
			c := s.calls[0]
			s.calls = s.calls[1:]
			if calls == 0 && len(c.tasks) != 100 {
				t.Fatalf("the first call has %d items", len(c.tasks))
			}
			calls++
			verdicts := make([]worker.Verdict, len(c.tasks))
			crash := slices.ContainsFunc(c.tasks, func(task *item.Task) bool { return task.ID == bad })
			for i := range verdicts {
				verdicts[i] = worker.Verdict{Kind: worker.Ack}
				if crash {
					verdicts[i] = worker.Verdict{Kind: worker.Crashed, Whole: len(c.tasks) > 1, Reason: "signal 9"}
				}
			}
			s.step(evCalled{c.call, verdicts})
			if isolated == 0 && s.m.totals.Failed[item.Crash] > 0 {
				isolated = calls
			}
		}
		if isolated == 0 || isolated > 8 {
			t.Errorf("%s was isolated in %d calls", bad, isolated)
		}
		if s.m.totals.Ended[item.Done] != 99 || s.ended[bad].State != item.Dead || s.m.totals.Failed[item.Crash] != 2 {
			t.Fatalf("poison %s: %+v", bad, s.m.totals)
		}
	}
}

func TestBisectionOverARestart(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Batch, c.Slots = 4, 1 })
	s.receive(msg("a", "", 0), msg("b", "", 0), msg("c", "", 0), msg("d", "", 0))
	whole := worker.Verdict{Kind: worker.Crashed, Whole: true}
	s.step(evCalled{s.calls[0].call, []worker.Verdict{whole, whole, whole, whole}})
	s.calls = s.calls[1:]
	s.expect("half", s.running(), "a b")
	s.step(evCalled{s.calls[0].call, []worker.Verdict{verdict(worker.NotReady), verdict(worker.NotReady)}})
	s.calls = s.calls[1:]
	s.wait(2 * time.Second)
	s.expect("the same half again", s.running(), "a b")
	if n := len(s.m.tests); n != 1 || len(s.m.tests[0].suspects) != 4 {
		t.Errorf("%d bisections", n)
	}
}

func TestSuspectLeftAlone(t *testing.T) {
	for _, lost := range []bool{false, true} {
		s := newScript(t, func(c *Config) { c.Batch, c.Slots = 4, 1 })
		s.receive(msg("a", "", 0), msg("b", "", 0))
		whole := worker.Verdict{Kind: worker.Crashed, Whole: true}
		s.step(evCalled{s.calls[0].call, []worker.Verdict{whole, whole}})
		s.calls = s.calls[1:]
		s.expect("half", s.running(), "a")
		s.answer("a", verdict(worker.NotReady))
		if lost {
			b := s.m.tests[0].suspects[1].handle
			s.step(evExtended{[]uint64{b}, map[uint64]error{b: source.ErrLost}})
		} else {
			for range patience - 1 {
				s.wait(time.Minute)
				s.answer("a", verdict(worker.NotReady))
			}
		}
		s.wait(time.Minute)
		if len(s.m.items) != 1 || len(s.calls) != 1 {
			t.Errorf("lost %v: %d items, %q at the worker", lost, len(s.m.items), s.running())
		}
	}
}

func TestSuspectOfNothing(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Batch, c.Slots = 4, 1 })
	s.receive(msg("a", "", 0), msg("b", "", 0))
	whole := worker.Verdict{Kind: worker.Dead, Whole: true}
	s.step(evCalled{s.calls[0].call, []worker.Verdict{whole, whole}})
	s.calls = s.calls[1:]
	s.expect("half", s.running(), "a")
	b := s.m.tests[0].suspects[1].handle
	s.step(evExtended{[]uint64{b}, map[uint64]error{b: source.ErrLost}})
	s.answer("a", verdict(worker.NotReady))
	s.wait(time.Minute)
	if len(s.calls) != 1 || len(s.ended) != 0 || len(s.queue) != 0 {
		t.Errorf("%q at the worker, ended %v, published %v", s.running(), s.ended, s.queue)
	}
}

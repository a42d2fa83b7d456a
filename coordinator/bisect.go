package coordinator

import (
	"slices"

	"retinue/coordinator/item"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// bisection finds the item that makes a batch fail as a whole. Each call tests half of the suspects: when it fails too, the other
// half is free; when it does not, the poison is in the other half, which is not called to learn that.
type bisection struct {
	suspects []*held
	testing  uint64 // the call; 0: none
	alone    bool   // that call has one item
	verdict  worker.Verdict
}

// judgeBatch learns which items a call failed with as a whole, and whether the worker has tried any.
func (m *machine) judgeBatch(now clock.Instant, c *call, failed []*held, v worker.Verdict, tried bool) {
	t := c.test
	if t != nil {
		t.testing = 0
	}
	switch {
	case len(failed) > 0 && m.closed(): // no time to look for it: all go back, uncounted
		for _, it := range failed {
			m.fail(now, c, it, item.Infra, worker.Verdict{Kind: worker.Stopped, Reason: "its batch failed while the coordinator stopped"})
		}
	case len(failed) > 0:
		if t != nil {
			m.close(t)
		}
		t = &bisection{suspects: slices.Clone(failed), verdict: v} // some may leave at once
		m.tests = append(m.tests, t)
		for _, it := range failed {
			it.test = t
		}
		for _, it := range failed {
			m.later(now, it, 0)
		}
	}
	switch {
	case t == nil || len(t.suspects) > 1:
	case tried:
		m.convict(now, c, t)
	default:
		m.close(t) // the others went away, and did not work: that says nothing of the one that is left
	}
}

// convict ends a bisection with one suspect left: it did not fail alone, but it is what is left.
func (m *machine) convict(now clock.Instant, c *call, t *bisection) {
	suspects := t.suspects
	m.close(t)
	for _, it := range suspects {
		if it.state != item.Held {
			continue
		}
		m.unqueue(it)
		v := t.verdict
		v.Whole, v.Output = false, nil
		m.judge(now, c, it, v)
	}
}

// clear says what the verdict on one item, and not on its whole batch, tells about the bisection it is in. A worker that was not
// ready has told nothing.
func (m *machine) clear(it *held, v worker.Verdict) {
	t := it.test
	switch {
	case t == nil || !telling(v.Kind):
	case t.alone && suspicious(v.Kind):
		m.close(t) // found: the others are free
	default:
		m.acquit(it)
	}
}

// half chooses the suspects of the next call.
func (m *machine) half(now clock.Instant, t *bisection) []*held {
	var chosen []*held
	for _, it := range t.suspects[:len(t.suspects)/2] {
		if it.state == item.Held && m.startable(now, it) {
			m.claim(now, it)
			chosen = append(chosen, it)
		}
	}
	return chosen
}

// acquit takes an item out of the bisection it is suspected in. Who is left alone because the others went away, and not because
// they worked, is free: there is no half of one to call, so it would wait for ever.
func (m *machine) acquit(it *held) {
	t := it.test
	if t == nil {
		return
	}
	it.test = nil
	t.suspects = slices.DeleteFunc(t.suspects, func(other *held) bool { return other == it })
	if len(t.suspects) == 0 || len(t.suspects) == 1 && t.testing == 0 {
		m.close(t)
	}
}

// close ends a bisection: all that are still suspected are free.
func (m *machine) close(t *bisection) {
	for _, it := range t.suspects {
		it.test = nil
	}
	t.suspects = nil
	m.tests = slices.DeleteFunc(m.tests, func(other *bisection) bool { return other == t })
}

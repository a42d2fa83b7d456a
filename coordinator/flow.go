package coordinator

import (
	"slices"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// flow is how ready the worker is.
type flow struct {
	failures int // "not ready" in a row; 0: it is ready
	since    clock.Instant
	until    clock.Instant // no call before
	limit    int           // of calls at once: halved when it is not ready, one more with each success
	reason   string
}

// notReady notes that the worker did nothing for a reason of its own. Calls that were under way together count once.
func (m *machine) notReady(now clock.Instant, c *call, v worker.Verdict) {
	if m.flow.failures > 0 && c.started < m.flow.since {
		return
	}
	m.flow.failures++
	m.flow.since = now
	m.flow.reason = v.Reason
	m.flow.limit = max(1, m.flow.limit/2)
	b := m.cfg.NotReady
	if v.Kind == worker.Infra {
		b = m.cfg.Infra
	}
	m.flow.until = now.Add(max(v.RetryAfter, m.jitter(b.ceiling(m.flow.failures))))
}

func (m *machine) ready() {
	if m.flow.failures > 0 {
		m.flow.failures, m.flow.reason = 0, ""
	}
	m.flow.limit = min(m.cfg.Slots, m.flow.limit+1)
}

// patience is how often a worker may be not ready in a row before the items that wait for it are given to others.
const patience = 3

// driveHandBack gives back what will not be started here soon.
func (m *machine) driveHandBack(now clock.Instant) {
	keep := 0
	switch {
	case m.closed():
	case m.flow.failures >= patience:
		keep = 1 // the probe
	default:
		return
	}
	var back []uint64
	stay := m.queue[:0:0]
	for len(m.queue) > keep {
		it := m.queue[len(m.queue)-1]
		m.queue = m.queue[:len(m.queue)-1]
		switch {
		case m.partitioned(it) && !m.stopping:
			stay = append(stay, it)
			continue
		case it.dirty && !m.inPlace(it):
			m.giveBack(now, it, max(0, it.notBefore.Sub(now)))
			continue
		}
		it.state = item.Releasing
		back = append(back, it.handle)
	}
	slices.Reverse(stay)
	m.queue = append(m.queue, stay...)
	if len(back) > 0 {
		m.totals.Released += uint64(len(back))
		m.emit(fxRelease{back, 0})
	}
}

// driveReceive takes from the broker what will find a slot soon.
func (m *machine) driveReceive(now clock.Instant) {
	if m.closed() || len(m.redo) > 0 {
		if !m.idle {
			m.idle = true
			m.emit(fxIdle{})
		}
		return
	}
	if m.cfg.Partitions > 0 && m.flow.failures >= patience && now < m.flow.until {
		// Its partitions had better be others' until the next attempt may begin.
		if !m.idle {
			m.idle = true
			m.emit(fxIdle{})
		}
		return
	}
	if m.receiving > 0 || now < m.receiveAt {
		return
	}
	if n := m.room(now); n > 0 {
		m.idle = false
		m.receiving = n
		m.emit(fxReceive{n})
	}
}

// room is how many items more are wanted.
func (m *machine) room(now clock.Instant) int {
	if m.flow.failures > 0 {
		return 1 - min(1, len(m.queue)+len(m.calls))
	}
	waiting, keyed := 0, 0
	for _, it := range m.queue {
		if it.notBefore > now {
			keyed++
		} else if !m.turn(now, it) {
			keyed++
		} else {
			waiting++
		}
	}
	free, ahead := max(0, m.flow.limit-len(m.calls))*m.cfg.Batch, m.ahead()
	n := free + ahead - waiting
	if waiting > 0 && n <= ahead/2 {
		return 0 // a few at once cost the broker less than one by one
	}
	return min(n, m.cfg.Keyed+free+ahead-waiting-keyed, portion)
}

const (
	portion = 250                    // messages that are taken at once
	brief   = 250 * time.Millisecond // calls of which more may wait in hand
)

// ahead is how many items wait in hand for a slot. What takes long had better wait at the broker, where another coordinator may have
// a slot for it.
func (m *machine) ahead() int {
	if m.pace < brief {
		return m.cfg.prefetch()
	}
	return max(1, m.cfg.Slots/2) * m.cfg.Batch
}

// driveStop ends the machine: what runs has until stopBy, the rest is given back.
func (m *machine) driveStop(now clock.Instant) {
	if !m.stopping {
		return
	}
	if now >= m.stopBy {
		for _, c := range m.calls {
			m.end(c, item.Infra, "the coordinator stops")
		}
		var back []uint64
		for it := range m.redo {
			delete(m.redo, it)
			if it.state == item.Releasing {
				continue
			}
			if m.finishes(it) {
				m.finishing--
			}
			m.discard(it)
			it.state, it.checking = item.Releasing, false
			back = append(back, it.handle)
		}
		if len(back) > 0 {
			m.emit(fxRelease{back, 0})
		}
	}
	if len(m.items) == 0 && len(m.calls) == 0 {
		m.done = true
		m.emit(fxDone{})
	}
}

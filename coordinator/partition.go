package coordinator

import (
	"slices"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/source/partitioned"
)

// Where the queue has partitions, an item that waits in hand must not go back to the broker and come again behind those that came after it. So it
// stays until its partition goes to another coordinator (evHandBack) or this one stops, and then all of its partition go back, in their places.

// partitioned says whether an item is of a partition.
func (m *machine) partitioned(it *held) bool { return m.cfg.Partitions > 0 && it.msg.Key != "" }

// kept says whether an item stays in hand although nothing new may begin.
func (m *machine) kept(it *held) bool {
	return m.partitioned(it) && m.closed() && !m.stopping && !it.lost
}

// inPlace says whether an item goes back as it came: a copy with the attempts so far would come after those behind it.
func (m *machine) inPlace(it *held) bool { return m.partitioned(it) && m.blocking(it) }

// loseBehind gives up what is behind an item that has been lost: that one comes again, and they come after it. Where an item is in hand twice, the
// second one has come again, and all behind it.
func (m *machine) loseBehind(it *held) {
	l := m.lanes[it.key]
	if !m.inPlace(it) || l == nil {
		return
	}
	seen := map[string]bool{}
	for _, other := range slices.Clone(l.items) {
		if seen[other.id] {
			return
		}
		seen[other.id] = true
		m.lose(other)
	}
}

// handBack gives back what has not begun of a partition that goes to another coordinator. A message may be on its way to us.
func (m *machine) handBack(ev evHandBack) {
	m.leaving = map[*source.Message]bool{}
	for _, msg := range ev.msgs {
		m.leaving[msg] = true
	}
	m.releaseLeaving()
	if m.receiving == 0 {
		m.leaving = nil
	}
	for key, l := range m.lanes { // whoever has the partition next does not know of it
		if l.parked != "" && partitioned.Of(key, m.cfg.Partitions) == ev.partition {
			l.parked = ""
			m.sweepLane(key, l)
		}
	}
}

// handBackArrived gives back what had not arrived when it was asked for.
func (m *machine) handBackArrived() {
	m.releaseLeaving()
	m.leaving = nil
}

func (m *machine) releaseLeaving() {
	if len(m.leaving) == 0 {
		return
	}
	var back []uint64
	rest := m.queue[:0]
	for _, it := range m.queue {
		if !m.leaving[it.msg] {
			rest = append(rest, it)
			continue
		}
		it.state = item.Releasing
		back = append(back, it.handle)
	}
	clear(m.queue[len(rest):])
	m.queue = rest
	if len(back) > 0 {
		m.totals.Released += uint64(len(back))
		m.emit(fxRelease{back, 0})
	}
}

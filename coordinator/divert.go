package coordinator

import "retinue/internal/clock"

// Some items are for workers of another kind: too large for those here, too long, or fatal to them. They go to the queue that Divert names, whose
// coordinators have the same stage, so that an item ends once, whichever of them has it.

// large says whether an item is diverted for the size of its payload.
func (m *machine) large(it *held) bool {
	size := int64(len(it.msg.Body))
	if it.env.Input != nil {
		size = it.env.Input.Size
	}
	return m.cfg.DivertOver > 0 && size > m.cfg.DivertOver
}

// divert hands an item over to the coordinators of another queue, with its attempts so far.
func (m *machine) divert(now clock.Instant, it *held, reason string) {
	m.totals.Diverted++
	m.emit(fxDiverted{it.id, reason})
	m.republish(now, it, m.cfg.Divert, "d", 0)
}

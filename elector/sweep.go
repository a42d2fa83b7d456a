package elector

import (
	"time"

	"retinue/internal/clock"
)

// sweepAfter is how long the traces of a dead elector stay in Consul: a person should see that it died.
const sweepAfter = time.Minute

// corpse is what was found of a dead elector, and when.
type corpse struct {
	Remains
	elector string // whose record it is; "" when that cannot be read
	since   clock.Instant
}

// findRemains notes the candidate records that no session holds.
func (m *machine) findRemains(now clock.Instant, s Snapshot) {
	found := map[string]corpse{}
	for key, entry := range s.Candidates {
		if entry.Session != "" {
			continue
		}
		c := corpse{Remains: Remains{Key: key, Index: entry.Modify}, since: now}
		if old, ok := m.remains[key]; ok && old.Index == c.Index {
			c.since, c.elector = old.since, old.elector
		} else if rec, ok := decodeCandidate(entry.Value); ok { // of a thousand elections it is long
			c.elector = rec.ID
		}
		if m.candidates[c.elector].ID == "" {
			c.Instance = c.elector
		}
		found[key] = c
	}
	m.remains = found
}

// driveSweep lets the first of the living electors take away what is old enough, one at a time.
func (m *machine) driveSweep(now clock.Instant) {
	if m.stopping || m.sweeping || !m.sessionGood(now) || !m.firstAlive() {
		return
	}
	for key, c := range m.remains {
		if now >= c.since.Add(sweepAfter) {
			delete(m.remains, key)
			m.sweeping = true
			m.emit(fxSweep{c.Remains})
			return
		}
	}
}

// firstAlive says whether no living elector has a lower name.
func (m *machine) firstAlive() bool {
	for id := range m.candidates {
		if id < m.cfg.ID {
			return false
		}
	}
	return true
}

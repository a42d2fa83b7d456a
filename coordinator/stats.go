package coordinator

import (
	"encoding/json"
	"maps"
	"sort"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/partition"
	"retinue/internal/clock"
)

// Totals count since the start of this coordinator.
type Totals struct {
	Received uint64                `json:"received"`
	Started  uint64                `json:"started"`
	Ended    map[item.State]uint64 `json:"ended"`
	Failed   map[item.Class]uint64 `json:"failed"`   // attempts, and steps of the infrastructure
	Released uint64                `json:"released"` // given back
	Diverted uint64                `json:"diverted"` // to another queue
	Lost     uint64                `json:"lost"`     // leases
	Late     uint64                `json:"late"`     // outputs thrown away because another attempt had committed
}

// Stats is a stage as this coordinator sees it.
type Stats struct {
	Queue       string   `json:"queue"`
	Coordinator string   `json:"coordinator"`
	Status      string   `json:"status"`
	Reason      string   `json:"reason,omitempty"`
	Slots       int      `json:"slots"`
	Limit       int      `json:"limit"`                // of calls at once, now
	RateShare   float64  `json:"rate_share,omitempty"` // of the rates of all coordinators; absent without a rate
	Waiting     int      `json:"waiting"`
	Running     int      `json:"running"`
	Finishing   int      `json:"finishing"`
	Parked      []string `json:"parked,omitempty"` // keys
	Totals      Totals   `json:"totals"`
	Depth       *Depth   `json:"depth,omitempty"`
	// Partitions are who holds which; absent where the queue has none.
	Partitions *partition.View `json:"partitions,omitempty"`
}

// Depth is how much the broker has; -1 where it does not tell.
type Depth struct {
	Ready    int64   `json:"ready"`
	Delayed  int64   `json:"delayed"`
	InFlight int64   `json:"in_flight"`
	OldestS  float64 `json:"oldest_s"`
}

// ItemView is an item in hand.
type ItemView struct {
	ID       string         `json:"id"`
	State    item.State     `json:"state"`
	Key      string         `json:"key,omitempty"`
	Attempt  int            `json:"attempt"`
	SinceS   float64        `json:"since_s"`
	RetryMS  int64          `json:"retry_in_ms,omitempty"`
	Attempts []item.Attempt `json:"attempts,omitempty"`
	// Progress is what the running attempt says of how far it is: progress.json in its folder, or the body of /extend.
	Progress json.RawMessage `json:"progress,omitempty"`

	task *item.Task // of a running attempt
}

func (m *machine) stats() Stats {
	s := Stats{Queue: m.cfg.Queue, Coordinator: m.cfg.ID, Status: m.status(), Slots: m.cfg.Slots, Limit: m.flow.limit, Waiting: len(m.queue), Finishing: m.finishing, Totals: m.totals}
	if m.cfg.Rate > 0 || m.cfg.KeyRate > 0 {
		s.RateShare = m.share
	}
	s.Totals.Ended, s.Totals.Failed = maps.Clone(m.totals.Ended), maps.Clone(m.totals.Failed)
	for _, c := range m.calls {
		s.Running += len(c.items)
	}
	switch {
	case m.paused:
		s.Reason = m.why
	case m.flow.failures > 0:
		s.Reason = m.flow.reason
	case len(m.redo) > 0 || m.troubles > 0:
		s.Reason = m.trouble
	}
	for key, l := range m.lanes {
		if l.parked != "" {
			s.Parked = append(s.Parked, key)
		}
	}
	sort.Strings(s.Parked)
	return s
}

// views lists what is in hand, the oldest first; id "" means all.
func (m *machine) views(now clock.Instant, id string, limit int) []ItemView {
	found := []*held{}
	for _, it := range m.items {
		if id == "" || it.id == id || it.env.ID == id {
			found = append(found, it)
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].handle < found[j].handle })
	out := []ItemView{}
	for _, it := range found[:min(limit, len(found))] {
		v := ItemView{ID: it.id, State: it.state, Key: it.named(), Attempt: counted(it.env.History) + 1, SinceS: now.Sub(it.since).Seconds(), Attempts: it.env.History}
		if it.state == item.Running && it.call != nil {
			v.Progress, v.task = it.progress, m.task(it, it.call)
		}
		if it.state == item.Held && it.notBefore > now {
			v.RetryMS = it.notBefore.Sub(now).Round(time.Millisecond).Milliseconds()
		}
		out = append(out, v)
	}
	return out
}

package scale

import (
	"math"
	"time"

	"retinue/internal/clock"
)

// Load is what a coordinator tells of its work. Counters are since its start, so that a report may get lost.
type Load struct {
	ID    string `json:"id"`
	Index int    `json:"index"` // of its allocation in the group; -1: not known

	Items    uint64  `json:"items"`     // whose attempt ended, with a verdict about them
	BusyS    float64 `json:"busy_s"`    // seconds that slots were busy with them
	Running  int     `json:"running"`   // calls under way
	RunningS float64 `json:"running_s"` // seconds that they have run, together
	InHand   int     `json:"in_hand"`   // items taken from the broker
}

// busy says whether it has items.
func (l Load) busy() bool { return l.Running > 0 || l.InHand > 0 }

// halfLife is how fast what was measured loses its weight against what is measured now.
const halfLife = 30 * time.Second

// service is the mean time of an item in a slot: the ratio of two sums that decay, so that a coordinator with many items counts more.
type service struct {
	items, busy float64
	at          clock.Instant
	last        map[string]Load // by coordinator
}

// add takes the reports of all coordinators.
func (s *service) add(now clock.Instant, loads []Load) {
	if s.last == nil {
		s.last, s.at = map[string]Load{}, now
	}
	decay := math.Exp2(-now.Sub(s.at).Seconds() / halfLife.Seconds())
	s.at = now
	if s.items > 1e-6 { // below, the ratio stays and any new item outweighs it
		s.items, s.busy = s.items*decay, s.busy*decay
	}
	next := make(map[string]Load, len(loads))
	for _, l := range loads {
		next[l.ID] = l
		old, known := s.last[l.ID]
		if !known || l.Items < old.Items || l.BusyS < old.BusyS { // a new process counts from 0
			old = Load{}
		}
		if n := l.Items - old.Items; n > 0 {
			s.items += float64(n)
			s.busy += max(0, l.BusyS-old.BusyS)
		}
	}
	s.last = next
}

// mean is the time of an item; false: nothing was measured.
func (s *service) mean() (time.Duration, bool) {
	if s.items <= 0 {
		return 0, false
	}
	return time.Duration(s.busy / s.items * float64(time.Second)), true
}

// seed starts with what an earlier leader had measured. It has the weight of one item.
func (s *service) seed(mean time.Duration) {
	if s.items == 0 && mean > 0 {
		s.items, s.busy = 1, mean.Seconds()
	}
}

// age is how long what runs has run, in the mean.
func age(loads []Load) (mean time.Duration, running int) {
	sum := 0.0
	for _, l := range loads {
		running += l.Running
		sum += l.RunningS
	}
	if running == 0 {
		return 0, 0
	}
	return time.Duration(sum / float64(running) * float64(time.Second)), running
}

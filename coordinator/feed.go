package coordinator

import (
	"sync"
	"time"

	"retinue/coordinator/item"
)

// Event is something that happened at this coordinator, for GET /v1/events.
type Event struct {
	Type    string     `json:"type"` // ended, failed, state
	ID      string     `json:"id,omitempty"`
	State   item.State `json:"state,omitempty"`
	Class   item.Class `json:"class,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Attempt int        `json:"attempt,omitempty"`
	Status  string     `json:"status,omitempty"` // of the stage
	Time    time.Time  `json:"time"`
}

// feed tells readers what happened. A reader that is slow misses events; it never holds up the work.
type feed struct {
	mu      sync.Mutex
	readers map[chan Event]bool
	waiting map[string][]chan item.Record
}

func newFeed() *feed {
	return &feed{readers: map[chan Event]bool{}, waiting: map[string][]chan item.Record{}}
}

func (f *feed) publish(ev Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.readers {
		select {
		case ch <- ev:
		default:
		}
	}
}

// subscribe returns a channel of events, and what ends it.
func (f *feed) subscribe() (<-chan Event, func()) {
	ch := make(chan Event, 256)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers[ch] = true
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.readers, ch)
	}
}

// await returns a channel that gets the record when the item ends here, and what ends the wait.
func (f *feed) await(id string) (<-chan item.Record, func()) {
	ch := make(chan item.Record, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting[id] = append(f.waiting[id], ch)
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		left := f.waiting[id][:0]
		for _, other := range f.waiting[id] {
			if other != ch {
				left = append(left, other)
			}
		}
		if f.waiting[id] = left; len(left) == 0 {
			delete(f.waiting, id)
		}
	}
}

func (f *feed) end(rec item.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ch := range f.waiting[rec.ID] {
		select {
		case ch <- rec:
		default:
		}
	}
}

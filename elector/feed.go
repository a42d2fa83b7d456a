package elector

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// feed publishes views and events from the owner to any number of readers. Readers never block the owner: one that falls behind the
// ring gets a fresh view instead of what it missed.
type feed struct {
	views map[string]*atomic.Pointer[View] // fixed keys
	names []string
	info  atomic.Pointer[Info]

	mu    sync.Mutex
	ring  []*news // the last events, oldest first; what was in it once is not changed
	index uint64
	wake  map[string]chan struct{} // by election, and "" for all; closed and replaced at every change
}

// ringSize events are remembered, and up to twice as many.
const ringSize = 2048

// news is an event as it is sent: encoded once, by its first reader, whatever the number of readers.
type news struct {
	Event
	once  sync.Once
	bytes []byte
}

// frame is the event as a server-sent one.
func (n *news) frame() []byte {
	n.once.Do(func() { n.bytes = frame(n.Index, string(n.Type), n.Event) })
	return n.bytes
}

// frame is a server-sent event; without an id if that is 0.
func frame(id uint64, event string, data any) []byte {
	b, err := json.Marshal(data)
	if err != nil {
		// Like a record, it holds nothing but what JSON can say.
		panic("elector: " + err.Error())
	}
	text := make([]byte, 0, len(b)+len(event)+48)
	if id > 0 {
		text = fmt.Appendf(text, "id: %d\n", id)
	}
	return fmt.Appendf(text, "event: %s\ndata: %s\n\n", event, b)
}

func newFeed(names []string) *feed {
	f := &feed{views: map[string]*atomic.Pointer[View]{}, names: names, wake: map[string]chan struct{}{"": make(chan struct{})}}
	for _, name := range names {
		f.wake[name] = make(chan struct{})
		p := &atomic.Pointer[View]{}
		p.Store(&View{Election: name})
		f.views[name] = p
	}
	f.info.Store(&Info{})
	return f
}

func (f *feed) view(election string) *View {
	p := f.views[election]
	if p == nil {
		return nil
	}
	return p.Load()
}

// publish makes events visible, and wakes everybody who waits for one of the elections that changed: of a thousand elections with a
// stream each, only those. Views have been stored before, so that a woken reader sees them.
func (f *feed) publish(events []Event, changed []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ev := range events {
		f.index = ev.Index
		f.ring = append(f.ring, &news{Event: ev})
	}
	if extra := len(f.ring) - ringSize; extra >= ringSize {
		f.ring = slices.Clone(f.ring[extra:])
	}
	for _, name := range append(changed, "") {
		close(f.wake[name])
		f.wake[name] = make(chan struct{})
	}
}

// changed returns a channel that is closed at the next change of an election, or of any (""). Take it before looking.
func (f *feed) changed(election string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wake[election]
}

// since returns the events after index, of one election or of all (""). ok is false when some are not remembered any more, or
// index is from another life of this elector.
func (f *feed) since(index uint64, election string) (events []*news, last uint64, ok bool) {
	f.mu.Lock()
	ring, last := f.ring, f.index
	f.mu.Unlock()
	ok = index <= last
	if len(ring) > 0 && index+1 < ring[0].Index {
		ok = false
	}
	from := len(ring) // most readers want the end
	for from > 0 && ring[from-1].Index > index {
		from--
	}
	for _, ev := range ring[from:] {
		if election == "" || ev.Election == election {
			events = append(events, ev)
		}
	}
	return events, last, ok
}

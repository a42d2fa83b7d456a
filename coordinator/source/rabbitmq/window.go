package rabbitmq

import (
	"fmt"
	"time"
)

// A consumer has a window: so many deliveries may be without a verdict at the broker. A small one leaves to others what would only lie here; a
// large one costs the broker less, a third of its time and ours, because more verdicts go in one acknowledgement. So there is a second consumer
// beside the first while messages pass fast. It is for those that may overtake each other.

const (
	// fast is how many times Prefetch has to pass in a second for a second consumer: what both may have is then here for 80 ms. It goes when no more
	// than a third of that has passed for a while.
	fast  = 50.0
	look  = 250 * time.Millisecond
	while = 2 * time.Second
)

// pace counts what passes, and says now and then how fast that is.
type pace struct {
	n     int
	since time.Time
}

// add notes n verdicts. ok: rate is how many a second there were since it was ok before.
func (p *pace) add(n int, now time.Time) (rate float64, ok bool) {
	p.n += n
	over := now.Sub(p.since)
	if over < look {
		return 0, false
	}
	rate = float64(p.n) / over.Seconds()
	p.n, p.since = 0, now
	return rate, true
}

// adjust opens and closes the second window, by how many verdicts a second there are.
func (se *session) adjust(rate float64, now time.Time) error {
	se.mu.Lock()
	defer se.mu.Unlock()
	cfg := &se.s.cfg
	rate /= float64(cfg.Prefetch)
	if rate > cfg.fast/3 {
		se.quick = now
	}
	switch {
	case !se.consuming || !cfg.Abreast || cfg.Order:
	case len(se.second) == 0 && rate >= cfg.fast:
		return se.subscribe(&se.second)
	case len(se.second) > 0 && now.Sub(se.quick) > while:
		return se.cancel(&se.second)
	}
	return nil
}

// windows is how many windows are open.
func (se *session) windows() int {
	se.mu.Lock()
	defer se.mu.Unlock()
	if len(se.second) > 0 {
		return 2
	}
	return 1
}

// window says how large the window of each consumer is that is made from now on. Its answer says that the broker has worked off all before it.
func (se *session) window() error {
	se.asking.Lock()
	defer se.asking.Unlock()
	return se.in.Qos(se.s.cfg.qos(), 0, false)
}

// subscribe makes a consumer of each class, with a window of its own. Each has a name that was not used before: under its old name the broker
// counts on from the deliveries that are still open, takes the first new one for a gap, and 3.10.8 breaks the channel over what it thinks is missing.
func (se *session) subscribe(tags *[]string) error {
	se.turn++
	for class := range se.s.cfg.Classes {
		tag := fmt.Sprintf("class%d-%d", class, se.turn)
		se.asking.Lock()
		in, err := se.in.Consume(se.s.cfg.queue(class), tag, false, false, false, false, nil)
		se.asking.Unlock()
		if err != nil {
			return se.broken(err)
		}
		*tags = append(*tags, tag)
		se.readers.Go(func() {
			for d := range in {
				se.s.arrived(se, class, d)
			}
		})
	}
	return nil
}

// cancel ends consumers. What was delivered to them stays.
func (se *session) cancel(tags *[]string) error {
	for _, tag := range *tags {
		se.asking.Lock()
		err := se.in.Cancel(tag, false)
		se.asking.Unlock()
		if err != nil {
			return se.broken(err)
		}
	}
	*tags = nil
	return nil
}

// broken ends a session in which a consumer may be there that nobody listens to: what it gets would stay with it.
func (se *session) broken(err error) error {
	go se.conn.CloseDeadline(time.Now().Add(time.Second))
	return err
}

package partitioned

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"retinue/coordinator/source"
	"retinue/internal/clock"
)

// part is one queue that we receive from: a partition under one hold, from its opening until something is lost, or the queue of what has no key.
// Fields without another word belong to the lock of the Source.
type part struct {
	s     *Source
	n     int // -1: the queue of what has no key
	epoch uint64

	ctx  context.Context // of everything that it does
	stop context.CancelFunc
	src  source.Source // nil until it is open; set by its goroutine before anything is handed out
	read context.CancelFunc
	// receiving is held by whoever calls Receive or Idle of src: one at a time may.
	receiving sync.Mutex
	ended     chan struct{} // its goroutine has ended

	seq      uint64
	youngest time.Time // when the youngest was published that was handed out
	buffer   []*entry  // what may be handed out, in order
	inHand   map[*source.Message]*entry
	settled  bool // the leases of whoever had it before are over
	leaving  bool
	stale    clock.Instant // since when nothing more is handed out, because something may be missing; 0: it is not so
	broken   bool          // nothing of it counts any more
	closing  bool
}

// entry is a message of a partition.
type entry struct {
	part  *part
	m     *source.Message // as the broker's source knows it
	outer *source.Message // as it was handed out last
	seq   uint64          // its place
	until clock.Instant
	// ending is how many calls that end it are under way.
	ending int
	again  int // how often it was taken back
}

func (s *Source) newPart(n int, epoch uint64) *part {
	ctx, stop := context.WithCancel(context.Background())
	return &part{s: s, n: n, epoch: epoch, ctx: ctx, stop: stop, ended: make(chan struct{}), inHand: map[*source.Message]*entry{}}
}

// heldLocked says whether the partition is ours now.
func (p *part) heldLocked() bool {
	c, ok := p.s.cfg.Owner.Held(p.n)
	return ok && c.Epoch == p.epoch
}

// goodLocked says whether something of it may be handed out.
func (p *part) goodLocked() bool { return !p.broken && !p.leaving && p.stale == 0 && p.heldLocked() }

func (p *part) handOutLocked() *source.Message {
	if len(p.buffer) == 0 {
		return nil
	}
	e := p.buffer[0]
	p.buffer = p.buffer[1:]
	if p.n < 0 {
		return e.m
	}
	m := *e.m
	m.Token, m.Deliveries = e, e.m.Deliveries+e.again
	e.outer = &m
	p.inHand[e.m] = e
	if m.Published.After(p.youngest) {
		p.youngest = m.Published
	}
	return &m
}

// takeBackLocked empties the buffer of the queue of what has no key.
func (p *part) takeBackLocked() []*source.Message {
	var ms []*source.Message
	for _, e := range p.buffer {
		ms = append(ms, e.m)
	}
	p.buffer = nil
	return ms
}

// takeBack puts messages back to where they were in the buffer.
func (p *part) takeBack(ms []*source.Message) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, m := range ms {
		e := p.inHand[m]
		if e == nil {
			continue
		}
		delete(p.inHand, m)
		e.outer, e.again = nil, e.again+1
		if p.leaving || p.stale != 0 {
			continue // Close gives it back
		}
		at, _ := slices.BinarySearchFunc(p.buffer, e, func(a, b *entry) int { return int(int64(a.seq) - int64(b.seq)) })
		p.buffer = slices.Insert(p.buffer, at, e)
	}
	signal(p.s.arrived)
	signal(p.s.poke)
}

// over forgets a message that has ended.
func (p *part) over(m *source.Message) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	delete(p.inHand, m)
	if p.leaving {
		signal(p.s.poke)
	}
}

// oursLocked says whether the message that was handed out last for e is still ours.
func (e *entry) oursLocked(m *source.Message) bool {
	return e.outer == m && !e.part.broken && e.part.heldLocked()
}

// ending notes that messages are about to end, which the broker may know before its answer is here. The function that it returns is for then.
func (p *part) ending(ms []*source.Message) (over func()) {
	if p.n < 0 {
		return func() {}
	}
	add := func(n int) {
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		for _, m := range ms {
			if e := p.inHand[m]; e != nil {
				e.ending += n
			}
		}
	}
	add(1)
	return func() { add(-1) }
}

// open is those of ms that are not about to end.
func (p *part) open(ms []*source.Message) []*source.Message {
	if p.n < 0 {
		return ms
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(ms), func(m *source.Message) bool { e := p.inHand[m]; return e == nil || e.ending > 0 })
}

// extended notes leases that go on, and begins anew when one does not. What has ended meanwhile has no lease to lose, and what ended just before does
// not come again in front of anything.
func (p *part) extended(ms []*source.Message, err error, sent clock.Instant) error {
	if p.n < 0 {
		return err
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	until, failed := sent.Add(p.s.cfg.Options.Lease), source.Failures{}
	for _, m := range ms {
		e, err := p.inHand[m], source.ErrorOf(err, m)
		switch {
		case e == nil || e.ending > 0:
		case err == nil:
			e.until = until
		default:
			failed[m] = err
			if errors.Is(err, source.ErrLost) || errors.Is(err, source.ErrClosed) {
				p.breakUpLocked("a lease was lost")
			}
		}
	}
	return failed.Err()
}

// kept notes what became of the leases of what waits to be handed out.
func (p *part) kept(ms []*source.Message, err error, until clock.Instant) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	which := map[*source.Message]bool{}
	for _, m := range ms {
		which[m] = true
	}
	p.buffer = slices.DeleteFunc(p.buffer, func(e *entry) bool {
		switch err := source.ErrorOf(err, e.m); {
		case !which[e.m]:
		case err == nil:
			e.until = until
		case errors.Is(err, source.ErrLost):
			return true
		}
		return false
	})
	if p.n >= 0 && errors.Is(err, source.ErrLost) {
		p.breakUpLocked("a lease was lost")
	}
}

// breakUpLocked gives up everything that we have of a partition, to begin anew: what the broker gave out is not ours any more, so it comes again, and
// nothing behind it may go before.
func (p *part) breakUpLocked(why string) {
	if p.broken {
		return
	}
	p.s.cfg.Log.Info("partition: begins anew", "partition", p.n, "reason", why)
	p.broken, p.buffer = true, nil
	p.stop()
	signal(p.s.poke)
}

// run opens a partition, waits until what an earlier holder had must have come back to the broker, and receives.
func (p *part) run(wait time.Duration) {
	defer close(p.ended)
	defer signal(p.s.poke)
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		src, err := p.s.cfg.Open(p.s.options(p.n))
		if err == nil {
			p.s.mu.Lock()
			p.src = src
			p.s.mu.Unlock()
			break
		}
		if !errors.Is(err, source.ErrUnavailable) {
			p.s.fail(err)
		}
		p.s.cfg.Log.Warn("partition: waiting for the broker", "partition", p.n, "error", err)
		if !p.sleep(pause) {
			return
		}
	}
	// Only from here on: a broker that was away may begin its leases anew.
	if !p.sleep(wait) {
		return
	}
	p.s.mu.Lock()
	p.settled = true
	p.s.mu.Unlock()
	signal(p.s.poke)
	if err := p.gather(); err != nil {
		p.disturbed(err)
		return
	}
	p.flow()
}

// disturbed notes that the broker was away. What it had sent may be lost until its lease is over, and nothing behind that may go before: nothing more
// is handed out, and when what is in hand has ended the partition begins anew.
func (p *part) disturbed(err error) {
	if p.ctx.Err() != nil {
		return
	}
	p.s.cfg.Log.Info("partition: the broker was away", "partition", p.n, "error", err)
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.stale == 0 {
		p.stale, p.buffer = p.s.cfg.Clock.Now(), nil
	}
}

func (p *part) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return p.ctx.Err() == nil
	case <-p.ctx.Done():
		return false
	}
}

// gather takes what an earlier holder left, which the broker gives out before anything else but in no order, and sorts it.
func (p *part) gather() error {
	var ms []*source.Message
	end := time.Now().Add(max(p.s.cfg.Options.Lease/2, p.s.quiet)) // the first of them must not be lost meanwhile
	for left := true; left; {
		ctx, cancel := context.WithTimeout(p.ctx, min(p.s.quiet, time.Until(end)))
		more, err := p.src.Receive(ctx, max(leftover-len(ms), prefetch))
		silent := ctx.Err() != nil
		cancel()
		ms = append(ms, more...)
		if p.ctx.Err() != nil {
			return p.ctx.Err()
		}
		if silent {
			break
		}
		if err != nil {
			return err
		}
		// Not all brokers tell of all that was given out before: so many are taken in any case.
		left = len(ms) < leftover || slices.ContainsFunc(more, func(m *source.Message) bool { return m.Deliveries != 1 })
	}
	slices.SortStableFunc(ms, func(a, b *source.Message) int { return a.Published.Compare(b.Published) })
	p.add(ms)
	return nil
}

// add puts messages behind those that are there.
func (p *part) add(ms []*source.Message) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.broken || p.leaving || p.stale != 0 {
		return // Close gives it back
	}
	if p.n >= 0 && p.lateLocked(ms) {
		p.breakUpLocked("the broker gave out again what we have, or something before it")
		return
	}
	until := p.s.cfg.Clock.Now().Add(p.s.cfg.Options.Lease)
	for _, m := range ms {
		p.seq++
		p.buffer = append(p.buffer, &entry{part: p, m: m, seq: p.seq, until: until})
	}
	signal(p.s.arrived)
}

// lateLocked says whether one of the messages is here already, or is older than what was handed out: a lease was lost, and nobody has told us.
func (p *part) lateLocked(ms []*source.Message) bool {
	ids := map[string]bool{}
	for _, m := range ms {
		if m.Deliveries != 1 && m.Published.Before(p.youngest) {
			return true
		}
		if m.Deliveries != 1 {
			ids[m.ID] = true
		}
	}
	if len(ids) == 0 {
		return false
	}
	for _, e := range p.buffer {
		if ids[e.m.ID] {
			return true
		}
	}
	for _, e := range p.inHand {
		if ids[e.m.ID] {
			return true
		}
	}
	return false
}

// flow receives as much as is wanted.
func (p *part) flow() {
	for failures := 0; p.ctx.Err() == nil; {
		n := p.wanted()
		if n == 0 {
			return
		}
		p.receiving.Lock()
		p.s.mu.Lock()
		ctx, cancel := context.WithCancel(p.ctx)
		if p.read = cancel; p.s.want == 0 { // not any more
			cancel()
		}
		p.s.mu.Unlock()
		ms, err := p.src.Receive(ctx, n)
		ended := ctx.Err() != nil
		cancel()
		if p.n < 0 && p.s.cfg.Owner != nil {
			ms = p.sortIn(ms)
		}
		if len(ms) > 0 {
			p.add(ms)
		}
		p.receiving.Unlock()
		switch {
		case err == nil:
			failures = 0
		case ended, errors.Is(err, source.ErrClosed):
		case p.n >= 0:
			if !errors.Is(err, source.ErrUnavailable) { // the queue of what has no key is at the same broker, and tells of it
				p.s.fail(err)
				p.sleep(time.Second)
			}
			p.disturbed(err)
			return
		default:
			failures++
			p.s.fail(err)
			p.sleep(min(time.Duration(failures)*200*time.Millisecond, 5*time.Second))
		}
	}
}

// wanted waits until something is wanted, and returns how much of it from here; 0 at the end. What others could have is taken as it is wanted.
func (p *part) wanted() int {
	for {
		p.s.mu.Lock()
		want, grown, queues := p.s.want, p.s.wanted, 1+len(p.s.parts)
		full := len(p.buffer) > 0
		p.s.mu.Unlock()
		switch {
		case want == 0 || full:
		case p.n < 0:
			return max(1, want/queues)
		default: // nobody else could have it meanwhile, and one by one would be a round trip for each
			return min(want, prefetch)
		}
		select {
		case <-grown:
		case <-p.ctx.Done():
			return 0
		}
	}
}

// pause ends a Receive that waits.
func (p *part) pause() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.read != nil {
		p.read()
	}
}

// sortIn moves what has a key to its partition: a producer did not know of them.
func (p *part) sortIn(ms []*source.Message) (rest []*source.Message) {
	for _, m := range ms {
		if m.Key == "" {
			rest = append(rest, m)
			continue
		}
		ctx, cancel := bounded(closing)
		err := p.s.Publish(ctx, source.Out{ID: m.ID, Body: m.Body, Headers: m.Headers, Key: m.Key, Class: m.Class})
		if err == nil {
			err = p.src.Ack(ctx, m)
		} else {
			err = errors.Join(err, p.src.Release(ctx, time.Second, m))
		}
		cancel()
		if err != nil {
			p.s.cfg.Log.Warn("partition: a message was not moved to its partition; it comes again", "id", m.ID, "error", err)
		}
	}
	return rest
}

// close ends the partition's queue. Nil: whatever we had of it has been given back.
func (p *part) close(ctx context.Context) error {
	p.stop()
	<-p.ended
	if p.src == nil {
		return nil
	}
	return p.src.Close(ctx)
}

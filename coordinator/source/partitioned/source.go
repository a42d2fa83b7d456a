package partitioned

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"retinue/coordinator/source"
)

// Source is a queue with partitions, as one coordinator sees it.
type Source struct {
	cfg  Config
	base *part // of what has no key
	// wait is how long a partition stands still when nobody knows what became of its last holder.
	wait, quiet, withdrawal time.Duration

	mu     sync.Mutex
	parts  map[int]*part  // that are ours
	given  map[int]uint64 // epochs that we have given back
	want   int            // what Receive waits for; 0: nobody waits
	wanted chan struct{}  // closed and replaced when want has grown
	next   int            // whose turn it is
	err    error          // for the next Receive
	unused *time.Timer    // until the partitions are given to others
	stands bool

	arrived chan struct{} // something is there for Receive
	poke    chan struct{} // something is there for tend
	begin   sync.Once
	end     sync.Once
	closed  chan struct{}
	working sync.WaitGroup

	pubs  sync.Mutex
	queue map[int]source.Source // to publish
}

var _ source.Source = (*Source)(nil)

func newSource(cfg Config, base source.Source) *Source {
	s := &Source{cfg: cfg, parts: map[int]*part{}, given: map[int]uint64{}, wanted: make(chan struct{}), stands: true,
		arrived: make(chan struct{}, 1), poke: make(chan struct{}, 1), closed: make(chan struct{}), queue: map[int]source.Source{}}
	s.quiet, s.withdrawal = quietFor, withdrawAfter
	s.wait = max(cfg.Options.Lease, base.Caps().Redelivery) + cfg.Options.Lease/10
	s.base = s.newPart(-1, 0)
	s.base.src = base
	return s
}

func bounded(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Receive implements source.Source.
func (s *Source) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	s.begin.Do(func() {
		s.working.Go(s.base.flow)
		if s.cfg.Owner != nil {
			s.working.Go(s.tend)
		}
	})
	s.stand()
	for {
		ms, err := s.take(max)
		if len(ms) > 0 || err != nil {
			return ms, err
		}
		select {
		case <-s.arrived:
		case <-ctx.Done():
			s.take(0)
			return nil, ctx.Err()
		case <-s.closed:
			return nil, source.ErrClosed
		}
	}
}

// take hands out what is there, one of each queue in turn. When it is nothing, it says what is wanted.
func (s *Source) take(max int) ([]*source.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := []*part{s.base}
	for n := range s.cfg.Partitions {
		// Who has nothing is not asked whether it is ours: that is a look at the clock, which may be a system call.
		if p := s.parts[n]; p != nil && (len(p.buffer) == 0 || p.goodLocked()) {
			from = append(from, p)
		}
	}
	var ms []*source.Message
	for empty := 0; len(ms) < max && empty < len(from); s.next++ {
		if m := from[s.next%len(from)].handOutLocked(); m != nil {
			ms, empty = append(ms, m), 0
		} else {
			empty++
		}
	}
	if s.want = 0; len(ms) > 0 || max == 0 {
		return ms, nil
	}
	if err := s.err; err != nil {
		s.err = nil
		return nil, err
	}
	s.want = max
	close(s.wanted)
	s.wanted = make(chan struct{})
	return nil, nil
}

// fail has the next Receive return an error.
func (s *Source) fail(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	signal(s.arrived)
}

// stand says that we want partitions.
func (s *Source) stand() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unused != nil {
		s.unused.Stop()
		s.unused = nil
	}
	if !s.stands && s.cfg.Owner != nil {
		s.cfg.Owner.Stand(true)
	}
	s.stands = true
}

// Idle implements source.Source. What is here of the partitions is kept for a moment: nobody else could have it sooner.
func (s *Source) Idle(ctx context.Context) error {
	s.take(0)
	s.mu.Lock()
	if s.cfg.Owner != nil && s.unused == nil && s.stands {
		s.unused = time.AfterFunc(s.withdrawal, s.withdraw)
	}
	s.mu.Unlock()
	s.base.pause()
	s.base.receiving.Lock()
	defer s.base.receiving.Unlock()
	s.mu.Lock()
	back := s.base.takeBackLocked()
	s.mu.Unlock()
	err := s.base.src.Idle(ctx)
	if len(back) > 0 {
		err = errors.Join(err, s.base.src.Release(ctx, 0, back...))
	}
	return err
}

func (s *Source) withdraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unused != nil {
		s.unused, s.stands = nil, false
		s.cfg.Owner.Stand(false)
	}
}

// Ours says whether a message that Receive has returned may be begun. In between, something before it may have been lost.
func (s *Source) Ours(m *source.Message) bool {
	e, ok := m.Token.(*entry)
	if !ok {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.oursLocked(m)
}

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	return s.each(ms, func(p *part, ms []*source.Message) error {
		if ms = p.open(ms); len(ms) == 0 {
			return nil
		}
		sent := s.cfg.Clock.Now()
		return p.extended(ms, p.src.Extend(ctx, ms...), sent)
	}, false)
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	return s.each(ms, func(p *part, ms []*source.Message) error {
		defer p.ending(ms)()
		return p.src.Ack(ctx, ms...)
	}, true)
}

// Release implements source.Source. Without a delay a partition's messages stay here, in their old place.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	return s.each(ms, func(p *part, ms []*source.Message) error {
		if delay == 0 && p != s.base {
			p.takeBack(ms)
			return nil
		}
		defer p.ending(ms)()
		return p.src.Release(ctx, delay, ms...)
	}, true)
}

// each does something with messages, by the queue that they are of. over: what succeeds is not in hand any more.
func (s *Source) each(ms []*source.Message, do func(*part, []*source.Message) error, over bool) error {
	failed, outer := source.Failures{}, map[*source.Message]*source.Message{}
	var mu sync.Mutex
	var working sync.WaitGroup
	for p, ours := range s.sort(ms, failed, outer) {
		working.Go(func() {
			err := do(p, ours)
			mu.Lock()
			defer mu.Unlock()
			for _, m := range ours {
				e := source.ErrorOf(err, m)
				if errors.Is(e, source.ErrClosed) && p != s.base {
					e = source.ErrLost // it was given up meanwhile
				}
				if over && (e == nil || errors.Is(e, source.ErrLost)) {
					p.over(m)
				}
				if e != nil {
					failed[outer[m]] = e
				}
			}
		})
	}
	working.Wait()
	return failed.Err()
}

// sort divides messages by their queue, as that knows them. Those of a partition that we have lost are failed.
func (s *Source) sort(ms []*source.Message, failed source.Failures, outer map[*source.Message]*source.Message) map[*part][]*source.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	by := map[*part][]*source.Message{}
	for _, m := range ms {
		e, ok := m.Token.(*entry)
		switch {
		case !ok:
			by[s.base] = append(by[s.base], m)
			outer[m] = m
		case !e.oursLocked(m):
			failed[m] = fmt.Errorf("partition %d: %w", e.part.n, source.ErrLost)
			delete(e.part.inHand, e.m)
		default:
			by[e.part] = append(by[e.part], e.m)
			outer[e.m] = m
		}
	}
	return by
}

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	by := map[int][]source.Out{}
	for _, out := range outs {
		if err := s.cfg.Options.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Options.Queue, err)
		}
		n := -1
		if out.Key != "" {
			n = Of(out.Key, s.cfg.Partitions)
		}
		by[n] = append(by[n], out)
	}
	return s.all(ctx, by, func(ctx context.Context, n int, src source.Source) error { return src.Publish(ctx, by[n]...) })
}

// Depth implements source.Source.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	every := map[int][]source.Out{-1: nil}
	for n := range s.cfg.Partitions {
		every[n] = nil
	}
	var mu sync.Mutex
	var sum source.Depth
	err := s.all(ctx, every, func(ctx context.Context, _ int, src source.Source) error {
		d, err := src.Depth(ctx)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		sum.Ready, sum.Delayed, sum.InFlight = plus(sum.Ready, d.Ready), plus(sum.Delayed, d.Delayed), plus(sum.InFlight, d.InFlight)
		sum.Oldest = max(sum.Oldest, d.Oldest)
		if d.Oldest < 0 {
			sum.Oldest = -1
		}
		return nil
	})
	return sum, err
}

// plus adds numbers of which -1 is one that nobody knows.
func plus(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

// all does something with several queues at once.
func (s *Source) all(ctx context.Context, which map[int][]source.Out, do func(context.Context, int, source.Source) error) error {
	var mu sync.Mutex
	var errs []error
	var working sync.WaitGroup
	for n := range which {
		src, err := s.publisher(n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		working.Go(func() {
			if err := do(ctx, n, src); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	working.Wait()
	return errors.Join(errs...)
}

// publisher is the queue of a partition, to publish to and to count. What is received from it has a source of its own, which comes and goes.
func (s *Source) publisher(n int) (source.Source, error) {
	if n < 0 {
		return s.base.src, nil
	}
	s.pubs.Lock()
	defer s.pubs.Unlock()
	select {
	case <-s.closed:
		return nil, source.ErrClosed
	default:
	}
	if src := s.queue[n]; src != nil {
		return src, nil
	}
	src, err := s.cfg.Open(s.options(n))
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", n, err)
	}
	s.queue[n] = src
	return src, nil
}

func (s *Source) options(n int) source.Options {
	o := s.cfg.Options
	o.Queue, o.Consumer, o.Order, o.Prefetch = Queue(o.Queue, n), "", true, prefetch
	return o
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	caps := s.base.src.Caps()
	caps.KeyOrder = true
	return caps
}

// Close implements source.Source.
func (s *Source) Close(ctx context.Context) error {
	s.begin.Do(func() {}) // nothing begins any more
	s.end.Do(func() {
		s.mu.Lock()
		if s.unused != nil {
			s.unused.Stop()
			s.unused = nil
		}
		s.mu.Unlock()
		close(s.closed)
		s.base.stop()
	})
	s.mu.Lock()
	parts := make([]*part, 0, len(s.parts))
	for _, p := range s.parts {
		p.stop()
		parts = append(parts, p)
	}
	s.mu.Unlock()
	s.working.Wait()
	var mu sync.Mutex
	var errs []error
	var working sync.WaitGroup
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	for _, p := range parts {
		working.Go(func() {
			err := p.close(ctx)
			if err == nil && p.settled {
				s.cfg.Owner.Give(p.n, p.epoch)
			}
			note(err)
		})
	}
	s.pubs.Lock()
	for _, src := range s.queue {
		working.Go(func() { note(src.Close(ctx)) })
	}
	s.pubs.Unlock()
	working.Go(func() { note(s.base.src.Close(ctx)) })
	working.Wait()
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return err == nil })...)
}

package partitioned

import (
	"context"
	"time"

	"retinue/coordinator/partition"
	"retinue/coordinator/source"
)

// tend begins partitions that have become ours, ends those that are to be others', and keeps the leases of what waits to be handed out.
func (s *Source) tend() {
	lease := s.cfg.Options.Lease
	every := min(lease/6, 500*time.Millisecond)
	tick := time.NewTicker(every)
	defer tick.Stop()
	extended := s.cfg.Clock.Now()
	for {
		changed := s.cfg.Owner.Changed()
		for n := range s.cfg.Partitions {
			s.tendOne(n)
		}
		if now := s.cfg.Clock.Now(); now.Sub(extended) >= lease/3 {
			extended = now
			s.keep()
		}
		select {
		case <-changed:
		case <-s.poke:
		case <-tick.C:
		case <-s.closed:
			return
		}
	}
}

// tendOne does what the state of one partition asks for.
func (s *Source) tendOne(n int) {
	claim, ours := s.cfg.Owner.Held(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[n]
	if p == nil {
		given, ok := s.given[n]
		if !ours || ok && given == claim.Epoch {
			return
		}
		wait := s.wait
		if claim.Clean {
			wait = 0
		}
		s.startLocked(n, claim, wait)
		return
	}
	if !ours || claim.Epoch != p.epoch {
		p.breakUpLocked("it is not ours any more")
	} else if claim.Leave && !p.leaving && !p.broken && p.settled {
		s.leaveLocked(p)
	} else if !claim.Leave && p.leaving {
		p.breakUpLocked("it stays ours")
	}
	if now := s.cfg.Clock.Now(); !p.broken {
		for _, e := range p.inHand {
			if now >= e.until && e.ending == 0 {
				p.breakUpLocked("a lease has run out")
				break
			}
		}
		for _, e := range p.buffer {
			if now >= e.until {
				p.breakUpLocked("a lease has run out")
				break
			}
		}
	}
	if p.stale != 0 && !p.broken && (len(p.inHand) == 0 || s.cfg.Clock.Now().Sub(p.stale) >= s.wait) {
		p.breakUpLocked("the broker was away")
	}
	if (p.broken || p.leaving && len(p.inHand) == 0) && !p.closing {
		p.closing = true
		s.working.Go(func() { s.finish(p) })
	}
}

func (s *Source) startLocked(n int, claim partition.Claim, wait time.Duration) {
	select {
	case <-s.closed:
		return
	default:
	}
	p := s.newPart(n, claim.Epoch)
	s.parts[n] = p
	s.working.Go(func() { p.run(wait) })
}

// leaveLocked stops taking from a partition that another coordinator shall have.
func (s *Source) leaveLocked(p *part) {
	p.leaving, p.buffer = true, nil // Close gives it back
	p.stop()
	var back []*source.Message
	for _, e := range p.inHand {
		back = append(back, e.outer)
	}
	if s.cfg.Back != nil {
		s.working.Go(func() { s.cfg.Back(p.n, back) })
	}
}

// finish closes a partition that has ended here. It is given away if it is to leave and the broker has everything back, and begins anew otherwise.
func (s *Source) finish(p *part) {
	ctx, cancel := bounded(closing)
	err := p.close(ctx)
	cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer signal(s.poke)
	delete(s.parts, p.n)
	certain := err == nil && p.stale == 0 && p.settled
	claim, ours := s.cfg.Owner.Held(p.n)
	switch {
	case !ours || claim.Epoch != p.epoch:
	case certain && claim.Leave:
		s.given[p.n] = p.epoch
		s.cfg.Owner.Give(p.n, p.epoch)
	case certain:
		s.startLocked(p.n, claim, 0)
	default:
		s.startLocked(p.n, claim, s.wait)
	}
}

// keep extends the leases of what waits to be handed out.
func (s *Source) keep() {
	s.mu.Lock()
	by := map[*part][]*source.Message{}
	for _, p := range s.parts {
		for _, e := range p.buffer {
			by[p] = append(by[p], e.m)
		}
	}
	for _, e := range s.base.buffer {
		by[s.base] = append(by[s.base], e.m)
	}
	s.mu.Unlock()
	for p, ms := range by {
		s.working.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Options.Lease/3)
			defer cancel()
			sent := s.cfg.Clock.Now()
			err := p.src.Extend(ctx, ms...)
			p.kept(ms, err, sent.Add(s.cfg.Options.Lease))
		})
	}
}

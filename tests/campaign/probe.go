package main

import (
	"context"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

// probe measures on each host how long a plain write to Consul takes. That is the time that the cluster itself needs, on this machine
// and at this moment, whatever an elector does: a leadership that moves takes a few of them.
type probe struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	writes map[*node][]plainWrite
}

type plainWrite struct {
	stretch
	failed bool
}

const (
	probeEvery = 250 * time.Millisecond
	// probeTimeout is what electors with a lease of one second give a write: beyond it, Consul does not answer.
	probeTimeout = 500 * time.Millisecond
)

func watchWrites(hosts []*node) *probe {
	ctx, cancel := context.WithCancel(context.Background())
	p := &probe{cancel: cancel, writes: map[*node][]plainWrite{}}
	for _, n := range hosts {
		p.done.Go(func() { p.run(ctx, n) })
	}
	return p
}

func (p *probe) run(ctx context.Context, n *node) {
	for ctx.Err() == nil {
		req, cancel := context.WithTimeout(ctx, probeTimeout)
		from := bootNow()
		_, err := n.api.KV().Put(&consulapi.KVPair{Key: "probe/" + n.host.Name}, (&consulapi.WriteOptions{}).WithContext(req))
		cancel()
		p.note(n, from, bootNow(), err != nil)
		pause(ctx, probeEvery)
	}
}

func (p *probe) note(n *node, from, to int64, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes[n] = append(p.writes[n], plainWrite{stretch{from, to}, failed})
}

func (p *probe) close() {
	p.cancel()
	p.done.Wait()
}

// worst is the longest write on any of the hosts that succeeded, and was under way between two moments.
func (p *probe) worst(hosts []*node, from, to int64) (worst time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range hosts {
		for i := len(p.writes[n]) - 1; i >= 0; i-- {
			w := p.writes[n][i]
			if w.to < from {
				break
			}
			if w.from < to && !w.failed {
				worst = max(worst, time.Duration(w.to-w.from))
			}
		}
	}
	return worst
}

// outage is for how long between two moments no write succeeded on one of the hosts: from the beginning of one that failed until
// that of one that did not.
func (p *probe) outage(hosts []*node, from, to int64) (worst time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range hosts {
		sum, down := time.Duration(0), int64(0)
		add := func(until int64) {
			if a, b := max(down, from), min(until, to); down != 0 && b > a {
				sum += time.Duration(b - a)
			}
		}
		for _, w := range p.writes[n] {
			if w.failed && down == 0 {
				down = w.from
			} else if !w.failed {
				add(w.from)
				down = 0
			}
		}
		add(to)
		worst = max(worst, sum)
	}
	return worst
}

func (p *probe) samples() (out []time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, writes := range p.writes {
		for _, w := range writes {
			if !w.failed {
				out = append(out, time.Duration(w.to-w.from))
			}
		}
	}
	return out
}

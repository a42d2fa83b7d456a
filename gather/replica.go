package gather

import (
	"math"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"retinue/internal/clock"
)

// replica is one instance of a shard. Its load is written by every request at once, so it is in atomics.
type replica struct {
	shard  int
	key    string // what it is across changes of the catalog
	name   string // for people
	node   string // replicas on one node fail together
	base   *url.URL
	weight float64 // 0: not said

	inflight atomic.Int64
	latency  atomic.Uint64 // EWMA in nanoseconds, as float bits
	measured atomic.Int64  // when, as clock.Instant
	heard    atomic.Int64  // when it answered last, whatever it said, as clock.Instant
	owes     atomic.Int64  // when the last call began that it was too slow for, as clock.Instant
	outUntil atomic.Int64  // ejected until; 0: it is not
	probing  atomic.Bool
	pushback atomic.Int64 // wants no hedges until

	calls, errors, lost atomic.Uint64

	ejector Ejector // the pool's lock
}

const (
	latencyGain  = 0.1
	latencyDecay = 5 * time.Second
	latencyFloor = float64(100 * time.Microsecond)
)

// observe adds a call's duration to the moving average. For a lost call it is what had passed until it was lost.
func (r *replica) observe(now clock.Instant, d time.Duration) {
	for {
		old := r.latency.Load()
		avg := math.Float64frombits(old)
		if avg == 0 {
			avg = float64(d)
		} else {
			avg += latencyGain * (float64(d) - avg)
		}
		if r.latency.CompareAndSwap(old, math.Float64bits(avg)) {
			break
		}
	}
	r.measured.Store(int64(now))
}

// score is how long a call sent there now would take, roughly. An old measurement counts less and less, so that a replica that was
// slow once gets another try.
func (r *replica) score(now clock.Instant) float64 {
	avg := math.Float64frombits(r.latency.Load())
	if idle := now.Sub(clock.Instant(r.measured.Load())); idle > latencyDecay/8 {
		avg *= math.Exp(-float64(idle) / float64(latencyDecay))
	}
	return max(avg, latencyFloor) * float64(r.inflight.Load()+1)
}

// silent says for how long it has answered nothing at all.
func (r *replica) silent(now clock.Instant) time.Duration {
	return now.Sub(clock.Instant(r.heard.Load()))
}

// suspect says that a call was lost to it, and that it has answered nobody since that call began. It may be frozen, or just slow with
// this one: the next call tells.
func (r *replica) suspect() bool { return r.owes.Load() > r.heard.Load() }

// owe notes a call that began then, and was lost.
func (r *replica) owe(began clock.Instant) {
	for {
		old := r.owes.Load()
		if old >= int64(began) || r.owes.CompareAndSwap(old, int64(began)) {
			return
		}
	}
}

// asked says that it asked to be left alone.
func (r *replica) asked(now clock.Instant) bool { return clock.Instant(r.pushback.Load()) > now }

func (r *replica) ejected() bool { return r.outUntil.Load() != 0 }

// pool holds the replicas of one shard.
type pool struct {
	shard  int
	label  []string // "3/16", as a header
	cfg    *EjectConfig
	weight atomic.Uint64 // float bits

	current atomic.Pointer[members]
	mu      sync.Mutex // the ejectors
}

// members are the replicas of a shard that may be asked.
type members struct {
	replicas []*replica
	checks   []string // what the check of each says, when none passes: they are the last resort. nil as a rule
}

// check says what the check of r says when it is a last resort; "" otherwise.
func (m *members) check(r *replica) string {
	if i := slices.Index(m.replicas, r); m.checks != nil && i >= 0 {
		return m.checks[i]
	}
	return ""
}

func (p *pool) members() *members {
	if m := p.current.Load(); m != nil {
		return m
	}
	return &members{}
}

func (p *pool) list() []*replica { return p.members().replicas }

// set replaces the replicas; those that stay keep what is known of them. checks are theirs when they are a last resort.
func (p *pool) set(fresh []*replica, checks ...string) {
	old, next := p.list(), &members{replicas: make([]*replica, 0, len(fresh)), checks: checks}
	for _, r := range fresh {
		if i := slices.IndexFunc(old, func(o *replica) bool { return o.key == r.key && o.weight == r.weight }); i >= 0 {
			r = old[i]
		}
		next.replicas = append(next.replicas, r)
	}
	p.current.Store(next)
}

// good notes an answer of r.
func (p *pool) good(r *replica, now clock.Instant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.ejector.Success(p.cfg, now)
	r.outUntil.Store(0)
}

// bad notes a failure of r, and reports whether r was ejected for it.
func (p *pool) bad(r *replica, now clock.Instant) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !r.ejector.Failure(p.cfg, now) {
		return false
	}
	m, out := p.members(), 0
	for _, o := range m.replicas {
		if o != r && o.ejected() {
			out++
		}
	}
	// The last one stays in any case; but a last resort that is of no use must not cost every request its deadline.
	if m.checks == nil && !mayEject(p.cfg, len(m.replicas), out) {
		return false
	}
	r.outUntil.Store(int64(r.ejector.Eject(p.cfg, now)))
	return true
}

// weighs is the shard's weight.
func (p *pool) weighs() float64 { return math.Float64frombits(p.weight.Load()) }

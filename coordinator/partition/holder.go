package partition

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"retinue/internal/actor"
	"retinue/internal/clock"
	"retinue/internal/hint"
)

// leaving bounds what is still asked of Consul once the coordinator ends.
const leaving = 2 * time.Second

// Holder holds partitions of a queue for this coordinator.
type Holder struct {
	cfg   Config
	store *store

	// What the user says. The owner of the machine reads it at each step.
	stand atomic.Bool
	given []atomic.Uint64 // by partition: the epoch that the user has ended with

	// What the machine says.
	table   atomic.Pointer[table]
	mu      sync.Mutex
	changed chan struct{}

	inbox chan event
	watch chan struct{} // begin the watch anew
}

// table is what a step of the machine came to.
type table struct {
	claims map[int]Claim
	until  clock.Instant // of the session
	view   View
}

// New returns the Holder of a coordinator. It does not contact Consul.
func New(cfg Config) (*Holder, error) {
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	h := &Holder{cfg: cfg, given: make([]atomic.Uint64, cfg.Partitions), changed: make(chan struct{}), inbox: make(chan event, 64), watch: make(chan struct{}, 1)}
	h.store = &store{client: cfg.Client, clock: cfg.Clock, prefix: cfg.Prefix + "partitions/" + cfg.Queue + "/", id: cfg.ID, n: cfg.Partitions, ttl: cfg.TTL}
	h.stand.Store(true)
	h.table.Store(&table{view: newMachine(cfg.ID, cfg.Partitions, cfg.TTL).view(0)})
	return h, nil
}

// Run holds partitions until ctx ends. Then it gives back what is left: clean where Give was called, and not clean otherwise. It returns
// when nothing of it runs any more, some 2 seconds after the end of ctx at most. It can be called once.
func (h *Holder) Run(ctx context.Context) {
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &run{Holder: h, m: newMachine(h.cfg.ID, h.cfg.Partitions, h.cfg.TTL), hard: hard}
	r.wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-hard.Done():
			return
		}
		select {
		case <-time.After(leaving):
			cancel()
		case <-hard.Done():
		}
	})
	watch, stopWatch := context.WithCancel(hard)
	r.wg.Go(func() { r.look(watch) })
	loop := actor.Loop[event]{Clock: h.cfg.Clock, Inbox: h.inbox, Tick: event{kind: evPoke}, Stop: event{kind: evStop}, Step: r.step,
		Next: func(clock.Instant) clock.Instant { return r.m.due },
		Done: func() bool { return r.m.done }}
	if err := loop.Run(ctx, hard); err != nil {
		h.cfg.Log.Debug("the partitions were not given back in time; they are free when the session ends", "error", err)
	}
	stopWatch()
	cancel()
	r.wg.Wait()
	r.m.stopping = true
	r.publish(h.cfg.Clock.Now())
}

// Held says how partition p is held by this coordinator. false: it is not, or nothing is certain since Until has passed.
func (h *Holder) Held(p int) (Claim, bool) {
	t := h.table.Load()
	c, ok := t.claims[p]
	if !ok || h.given[p].Load() == c.Epoch || h.cfg.Clock.Now() >= c.Until {
		return Claim{}, false
	}
	return c, true
}

// Changed returns a channel that is closed at the next change of what Held says, other than Until moving on.
func (h *Holder) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// Give says that everything has ended that we had of this hold: partition p is set free, clean. Held says no from now on. Of a hold that is
// not there any more it does nothing. Consul is told until it knows, or the session is over.
func (h *Holder) Give(p int, epoch uint64) {
	if c, ok := h.table.Load().claims[p]; ok && c.Epoch == epoch {
		h.given[p].Store(epoch)
		h.poke()
	}
}

// Stand says whether to stand for partitions. Who does not keeps what it has until it gives it, with Leave.
func (h *Holder) Stand(yes bool) {
	if h.stand.Swap(yes) != yes {
		h.poke()
	}
}

// poke has the machine look again. If there is no room it is about to anyway.
func (h *Holder) poke() {
	select {
	case h.inbox <- event{kind: evPoke}:
	default:
	}
}

// View is how the partitions are held, for people.
func (h *Holder) View() View {
	t := h.table.Load()
	v := t.view
	if v.Connected && h.cfg.Clock.Now() >= t.until {
		v.Connected = false
	}
	return v
}

// run is a Holder at work: the one goroutine that owns the machine, and the requests that it makes.
type run struct {
	*Holder
	m      *machine
	hard   context.Context
	wg     sync.WaitGroup
	failed string // what was logged
	last   uint64 // index of the last listing
}

func (r *run) step(now clock.Instant, ev event) {
	w := wants{stand: r.stand.Load(), given: func(p int, epoch uint64) bool { return r.given[p].Load() == epoch }}
	r.m.step(now, w, ev)
	r.publish(now) // before anything is asked: what is given must not be held any more
	r.complain(ev)
	for _, e := range r.m.out {
		r.carryOut(e)
	}
}

// publish tells what is held.
func (r *run) publish(now clock.Instant) {
	old := r.table.Load()
	next := &table{claims: r.m.claims(), until: r.m.session.until, view: r.m.view(now)}
	r.table.Store(next)
	if maps.EqualFunc(old.claims, next.claims, func(a, b Claim) bool { a.Until = b.Until; return a == b }) {
		return
	}
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	for p, c := range next.claims {
		if was := old.claims[p]; was.Epoch != c.Epoch {
			r.cfg.Log.Info("took a partition", "queue", r.cfg.Queue, "partition", p, "epoch", c.Epoch, "clean", c.Clean)
		} else if was.Leave != c.Leave {
			r.cfg.Log.Debug("a partition shall go to another", "queue", r.cfg.Queue, "partition", p, "leave", c.Leave)
		}
	}
	for p, c := range old.claims {
		if next.claims[p].Epoch != c.Epoch {
			r.cfg.Log.Info("holds a partition no more", "queue", r.cfg.Queue, "partition", p, "epoch", c.Epoch, "given", r.given[p].Load() == c.Epoch)
		}
	}
}

// complain logs the first of a row of failures.
func (r *run) complain(ev event) {
	switch {
	case len(r.m.why) == 0 && r.failed != "":
		r.failed = ""
		r.cfg.Log.Info("partitions: Consul answers again", "queue", r.cfg.Queue)
	case ev.err != nil && len(r.m.why) > 0 && r.failed == "" && r.hard.Err() == nil:
		r.failed = ev.err.Error()
		r.cfg.Log.Warn("partitions: a request to Consul failed; it is repeated", "queue", r.cfg.Queue, "error", ev.err, "hint", hint.Of(ev.err))
	}
}

// carryOut makes a request. Its answer comes as an event.
func (r *run) carryOut(e effect) {
	if e.kind == doWatch {
		select {
		case r.watch <- struct{}{}:
		default:
		}
		return
	}
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.hard, r.cfg.TTL)
		defer cancel()
		ev := event{kind: evAnswer, of: e, sent: r.cfg.Clock.Now()}
		switch e.kind {
		case doOpen:
			ev.opened, ev.sent, ev.err = r.store.open(ctx, e.first)
		case doRenew:
			ev.err = r.store.renew(ctx, e.session)
		case doDestroy:
			ev.err = r.store.destroy(ctx, e.session)
		case doJoin:
			ev.answer, ev.err = r.store.join(ctx, e.session)
		case doWithdraw:
			ev.answer, ev.err = r.store.withdraw(ctx, e.session)
		case doTake:
			ev.answer, ev.err = r.store.take(ctx, e.session, e.p, e.index)
		case doGive:
			ev.answer, ev.err = r.store.give(ctx, e.session, e.p, e.index)
		case doSweep:
			ev.err = r.store.sweep(ctx, e.id, e.index)
		case doClose:
			ev.err = r.store.close(ctx, e.session)
		}
		r.tell(ev)
	})
}

func (r *run) tell(ev event) {
	select {
	case r.inbox <- ev:
	case <-r.hard.Done():
	}
}

// The watch asks at most this often, and rests so long after failures.
const (
	watchEvery   = 20 * time.Millisecond
	watchFailing = 2 * time.Second
)

// look watches who holds what, until ctx ends.
func (r *run) look(ctx context.Context) {
	var after uint64
	failing := watchEvery
	for ctx.Err() == nil {
		began := time.Now()
		once, cancel := context.WithCancel(ctx)
		anew := make(chan struct{})
		go func() {
			defer close(anew)
			select {
			case <-r.watch:
				cancel()
			case <-once.Done():
			}
		}()
		snap, err := r.store.watch(once, after)
		again := once.Err() != nil
		cancel()
		<-anew
		rest := watchEvery - time.Since(began)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failing = watchEvery
			if after = snap.index; snap.index < r.last {
				after = 0 // Consul was restored, and counts from below
			}
			r.last = snap.index
			r.tell(event{kind: evSnap, snap: snap})
		case again:
			after = 0
		default:
			after = 0
			r.tell(event{kind: evBlind, err: err})
			rest = failing
			failing = min(2*failing, watchFailing)
		}
		pause := time.NewTimer(max(0, rest))
		select {
		case <-pause.C:
		case <-r.watch:
			after = 0
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

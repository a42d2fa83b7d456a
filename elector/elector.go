package elector

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/actor"
	"retinue/internal/clock"
)

// Elector owns a machine: it feeds it events in one goroutine, carries out its effects, and publishes what it says.
type Elector struct {
	cfg     Config
	store   Store
	clock   clock.Clock
	log     hclog.Logger
	metrics *metrics
	trouble trouble

	inbox chan envelope
	feed  *feed
	state *StateFile
	reqs  atomic.Uint64
	ended chan struct{}
	m     *machine                // owner only
	waits map[uint64]chan Outcome // owner only
	rewat chan struct{}           // a token here starts the watch anew
	last  Saved                   // owner only
	keep  bool                    // the next process takes over; owner only
}

// Info is the elector as a whole, for people.
type Info struct {
	App             string     `json:"app"`
	ID              string     `json:"id"`
	Session         string     `json:"session,omitempty"`
	Node            string     `json:"node,omitempty"`
	Catalog         bool       `json:"catalog"`
	Warning         string     `json:"warning,omitempty"`
	Profile         Profile    `json:"profile,omitempty"`
	Revocation      Revocation `json:"revocation"`
	LeaseMS         int64      `json:"lease_ms"`
	TTLMS           int64      `json:"session_ttl_ms,omitempty"`
	LockDelayMS     int64      `json:"lock_delay_ms"`
	WorstFailoverMS int64      `json:"worst_case_failover_ms,omitempty"`
	Connected       bool       `json:"connected"`
	SessionDeadline int64      `json:"session_deadline_boottime_ns,omitempty"`
	Stopping        bool       `json:"stopping,omitempty"`
	Electors        []string   `json:"electors"`
	denied          bool       // Consul does not take the token
}

type envelope struct {
	ev    any
	reply chan reply
	out   chan Outcome
}

// New returns an elector that talks to store. Run starts it. With a state file (nil: none) it goes on with what an earlier process led.
func New(cfg Config, store Store, clk clock.Clock, log hclog.Logger, state *StateFile) (*Elector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	el := &Elector{cfg: cfg, store: store, clock: clk, log: log, inbox: make(chan envelope, 64), feed: newFeed(cfg.Elections),
		ended: make(chan struct{}), m: newMachine(cfg, time.Now), waits: map[uint64]chan Outcome{}, rewat: make(chan struct{}, 1)}
	el.metrics = newMetrics(el)
	el.state = state
	return el, nil
}

// Run works until ctx ends, then asks every leader to step down, waits until each has (at most a lease), releases what is left,
// and returns. Ending hard abandons the locks: they run out by themselves.
func (el *Elector) Run(ctx, hard context.Context) error {
	work, cancel := context.WithCancel(hard)
	defer cancel()
	defer close(el.ended)
	el.adopt(work)
	go el.watch(work)
	return actor.Loop[envelope]{
		Clock: el.clock, Inbox: el.inbox, Tick: envelope{ev: evTick{}}, Stop: envelope{ev: evStop{keep: el.state != nil}},
		Step: func(now clock.Instant, env envelope) { el.take(work, now, env) },
		Next: el.m.next,
		Done: func() bool { return el.m.done },
	}.Run(ctx, hard)
}

// take feeds one event, and does what follows from it.
func (el *Elector) take(ctx context.Context, now clock.Instant, env envelope) {
	if env.out != nil {
		if ev, ok := env.ev.(evResign); ok {
			el.waits[ev.req] = env.out
		}
	}
	r := el.m.step(now, env.ev)
	events := el.follow(ctx)
	if env.reply != nil {
		env.reply <- r
	}
	el.tell(events)
}

// follow does what the machine wants done. What it says is published first: a leadership that ends must have ended for everybody
// who asks before the release is on its way to Consul.
func (el *Elector) follow(ctx context.Context) (events []Event) {
	effects := el.m.take()
	for _, fx := range effects {
		if fx, ok := fx.(fxEvent); ok {
			events = append(events, fx.event)
		}
	}
	el.publish(events)
	el.run(ctx, effects)
	return events
}

// tell counts and logs what happened, when nobody waits for it any more.
func (el *Elector) tell(events []Event) {
	for _, ev := range events {
		el.metrics.event(ev)
		el.logEvent(ev)
	}
}

// run starts the effects.
func (el *Elector) run(ctx context.Context, effects []any) {
	for _, fx := range effects {
		switch fx := fx.(type) {
		case fxAnswer:
			if ch := el.waits[fx.req]; ch != nil {
				ch <- fx.out
				delete(el.waits, fx.req)
			}
		case fxOpen:
			go el.open(ctx, fx.spec)
		case fxRenew:
			go el.renew(ctx, fx.session)
		case fxCommit:
			go el.commit(ctx, fx.batch)
		case fxSweep:
			go el.sweep(ctx, fx.remains)
		case fxDestroy:
			go el.destroy(ctx, fx.session)
		case fxClose:
			go func() { el.destroy(ctx, fx.session); el.post(ctx, evClosed{}) }()
		case fxDone:
			el.keep = fx.keep
		case fxWatch:
			select {
			case el.rewat <- struct{}{}:
			default:
			}
		}
	}
}

// publish stores the views that changed, then wakes the readers.
func (el *Elector) publish(events []Event) {
	var changed []string // every event is of an election whose view has changed
	for _, e := range el.m.list {
		if !e.viewed {
			e.viewed = true
			el.feed.views[e.name].Store(el.m.view(e))
			changed = append(changed, e.name)
		}
	}
	el.feed.info.Store(el.m.info())
	el.save()
	if len(changed) > 0 {
		el.feed.publish(events, changed)
	}
}

// adopt goes on with what an earlier process left.
func (el *Elector) adopt(ctx context.Context) {
	if el.state == nil {
		return
	}
	saved, ok := el.state.load(el.cfg)
	if !ok {
		return
	}
	el.m.restore(el.clock.Now(), saved)
	if el.m.session.ID != "" {
		el.store.Adopt(saved.Session)
		el.log.Info("taking up the session of the last process", "session", saved.Session.ID, "leads", len(saved.Elections))
	}
	el.tell(el.follow(ctx))
}

// save writes down what the next process has to know, when that changed.
func (el *Elector) save() {
	if el.state == nil || el.m.done {
		return
	}
	if s := el.m.saved(); !reflect.DeepEqual(s, el.last) {
		el.last = s
		el.state.save(s)
	}
}

// Kept says, after Run, whether leadership was left to the next process.
func (el *Elector) Kept() bool { return el.keep }

func (el *Elector) logEvent(ev Event) {
	args := []any{"election", ev.Election, "role", ev.Role}
	if ev.Token != 0 {
		args = append(args, "token", ev.Token)
	}
	if ev.Reason != "" {
		args = append(args, "reason", ev.Reason)
	}
	if ev.Leader != nil && !ev.Leader.Self {
		args = append(args, "leader", ev.Leader.Elector, "address", ev.Leader.Address)
	}
	if ev.Type == EventSuspended {
		el.log.Warn(string(ev.Type), args...)
		return
	}
	el.log.Info(string(ev.Type), args...)
}

// post brings an event of the store to the owner.
func (el *Elector) post(ctx context.Context, ev any) {
	select {
	case el.inbox <- envelope{ev: ev}:
	case <-ctx.Done():
	case <-el.ended:
	}
}

var errEnded = errors.New("the elector has ended")

// ask brings a request to the owner and returns its reply.
func (el *Elector) ask(ctx context.Context, ev any) (reply, error) {
	env := envelope{ev: ev, reply: make(chan reply, 1)}
	return el.await(ctx, env)
}

func (el *Elector) await(ctx context.Context, env envelope) (reply, error) {
	select {
	case el.inbox <- env:
	case <-el.ended:
		return reply{}, errEnded
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
	select {
	case r := <-env.reply:
		return r, nil
	case <-el.ended:
		return reply{}, errEnded
	}
}

// info is the machine as a whole.
func (m *machine) info() *Info {
	s := m.session
	in := &Info{App: m.cfg.App, ID: m.cfg.ID, Session: s.ID, Node: s.Node, Catalog: s.Catalog, Warning: s.Warning, Revocation: m.cfg.Revocation,
		LeaseMS: m.cfg.Lease.Milliseconds(), LockDelayMS: m.cfg.lockDelay().Milliseconds(), Connected: s.ID != "" && !s.failing && s.pending == 0,
		Stopping: m.stopping, Electors: []string{}, denied: m.denied}
	if s.ID != "" {
		in.Profile = m.cfg.profile(s.Session)
		in.TTLMS, in.WorstFailoverMS = s.TTL.Milliseconds(), m.cfg.worstFailover(s.TTL).Milliseconds()
		in.SessionDeadline = int64(s.until)
	}
	for id := range m.candidates {
		in.Electors = append(in.Electors, id)
	}
	slices.Sort(in.Electors)
	return in
}

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/source/partitioned"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// Parts are what a coordinator works with.
type Parts struct {
	// Open opens a queue of the broker: this stage's, the next one's, the dead letters'.
	Open func(source.Options) (source.Source, error)
	// Owner knows which partitions are ours; nil where the queue has none.
	Owner partitioned.Owner
	// Point is the commit point; nil for none.
	Point  commit.Point
	Worker worker.Worker
	Clock  clock.Clock
	Log    hclog.Logger
}

// Coordinator owns a machine: it feeds it events in one goroutine and carries out its effects.
type Coordinator struct {
	cfg     Config
	parts   Parts
	source  source.Source
	feed    *feed
	metrics *metrics
	times   *timetable
	worth   *worth
	dead    sync.Mutex // one look at the dead letters at a time

	inbox    chan envelope
	ended    chan struct{}
	orders   chan any       // to the receiver
	working  sync.WaitGroup // goroutines of effects
	jobs     chan func()    // to those of them that are free
	m        *machine       // owner only
	stepped  clock.Instant  // when the machine was stepped last; owner only
	calls    map[uint64]context.CancelCauseFunc
	cancelRx context.CancelFunc // of the receive under way; owner only
	uploads  context.Context    // ends with the drain timeout; set by Run

	mu     sync.Mutex
	queues map[string]source.Source // opened to publish
}

type envelope struct {
	ev    any
	look  func(now clock.Instant, m *machine) // instead of an event
	reply chan bool
}

// Producer opens a queue to publish to and to count. partitions are those that its coordinators have.
func (p Parts) Producer(o source.Options, partitions int) (source.Source, error) {
	return p.open(o, partitions, nil, nil)
}

// open opens a queue with its partitions.
func (p Parts) open(o source.Options, partitions int, owner partitioned.Owner, back func(int, []*source.Message)) (source.Source, error) {
	if partitions == 0 {
		return p.Open(o)
	}
	src, err := partitioned.New(partitioned.Config{Open: p.Open, Options: o, Partitions: partitions, Owner: owner, Back: back, Clock: p.Clock, Log: p.Log})
	if err != nil {
		return nil, err // a nil pointer must not become a source that is not nil
	}
	return src, nil
}

// New opens the queue. Run starts the work.
func New(cfg Config, parts Parts) (*Coordinator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Record = parts.Point != nil
	cfg.Check = cfg.Record && parts.Point.Cheap()
	opts := source.Options{Queue: cfg.Queue, Lease: cfg.Lease, Prefetch: cfg.Slots*cfg.Batch + cfg.prefetch(), Classes: cfg.Classes,
		Abreast: !cfg.Keys && cfg.Slots > 1} // items that run side by side overtake each other anyway
	var c *Coordinator
	src, err := parts.open(opts, cfg.Partitions, parts.Owner, func(p int, ms []*source.Message) { c.post(evHandBack{p, ms}) })
	if err != nil {
		return nil, fmt.Errorf("open queue %s: %w", cfg.Queue, err)
	}
	cfg.Acks, cfg.KeyOrder = src.Caps().Acks, src.Caps().KeyOrder
	jitter := func(d time.Duration) time.Duration { return rand.N(d + 1) }
	c = &Coordinator{cfg: cfg, parts: parts, source: src, feed: newFeed(), inbox: make(chan envelope, 256), ended: make(chan struct{}), orders: make(chan any, 4), jobs: make(chan func()),
		m: newMachine(cfg, time.Now, jitter), calls: map[uint64]context.CancelCauseFunc{}, queues: map[string]source.Source{cfg.Queue: src}}
	c.metrics = newMetrics(c)
	c.times = newTimetable(c, cfg.Schedules)
	c.worth = &worth{least: cfg.Worth, log: parts.Log}
	return c, nil
}

// Run works until ctx ends, then finishes what runs (at most the drain timeout), gives the rest back uncounted, and returns. The end
// of hard abandons everything at once: leases run out, nothing that was acknowledged is lost.
func (c *Coordinator) Run(ctx, hard context.Context) (err error) {
	work, abandon := context.WithCancel(context.WithoutCancel(hard))
	defer func() { err = errors.Join(err, c.close(hard, abandon)) }()
	defer close(c.ended)
	c.working.Go(func() { c.receiver(work) })
	uploads, endUploads := context.WithCancel(work)
	defer endUploads()
	c.uploads = uploads
	times, endTimes := context.WithCancel(ctx)
	defer context.AfterFunc(work, endTimes)()
	for i := range c.cfg.Schedules {
		c.working.Go(func() { c.times.run(times, i) })
	}
	if c.cfg.Keep > 0 {
		c.working.Go(func() { c.keeper(work) })
	}
	if c.cfg.DeadKeep > 0 {
		c.working.Go(func() { c.undertaker(work) })
	}
	stop := ctx.Done()
	timer, armed := time.NewTimer(0), clock.Never
	defer timer.Stop()
	// A first step in any case: a question that comes before the timer would stop it, as a machine that has not begun has nothing due.
	c.take(work, envelope{ev: evTick{}})
	for {
		select {
		case env := <-c.inbox:
			c.take(work, env)
		case <-timer.C:
			armed = clock.Never
			c.take(work, envelope{ev: evTick{}})
		case <-stop:
			stop = nil
			c.take(work, envelope{ev: evStop{}})
			defer time.AfterFunc(c.cfg.Drain, endUploads).Stop()
		case <-hard.Done():
			return hard.Err()
		}
		if c.m.done {
			return nil
		}
		// What the step left for later, though later may be over by now: asked for what comes after this moment, the machine would
		// pass over it.
		switch at := c.m.next(c.stepped); at {
		case armed:
		case clock.Never:
			armed = at
			timer.Stop()
		default:
			armed = at
			timer.Reset(max(0, at.Sub(c.parts.Clock.Now())))
		}
	}
}

// close ends everything that Run started.
func (c *Coordinator) close(hard context.Context, abandon context.CancelFunc) error {
	abandon()
	for _, cancel := range c.calls {
		cancel(errEnded)
	}
	c.working.Wait()
	// Everything is over or given up; a broker that does not answer must not hold up the end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(hard), requestTimeout)
	defer cancel()
	var errs []error
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, src := range c.queues {
		errs = append(errs, src.Close(ctx))
	}
	return errors.Join(append(errs, c.parts.Worker.Close())...)
}

func (c *Coordinator) take(ctx context.Context, env envelope) {
	now := c.parts.Clock.Now()
	if env.look != nil {
		env.look(now, c.m)
		env.reply <- true
		return
	}
	if ev, ok := env.ev.(evCalled); ok {
		delete(c.calls, ev.call)
	}
	if ev, ok := env.ev.(evReceived); ok {
		env.ev = evReceived{c.ours(ev.msgs), ev.err}
	}
	c.stepped = now
	found := c.m.step(now, env.ev)
	fxs := c.m.take()
	slices.SortStableFunc(fxs, func(a, b any) int { return turn(a) - turn(b) })
	for _, fx := range fxs {
		c.do(ctx, fx)
	}
	if env.reply != nil {
		env.reply <- found
	}
}

// turn says when an effect of a step is begun. What is begun last runs first, as soon as the owner waits: a call, before the question for the next
// messages. Its end is not before it.
func turn(fx any) int {
	switch fx.(type) {
	case fxCall:
		return 1
	case fxEnd:
		return 2
	}
	return 0
}

// ours leaves out messages of a partition that has begun anew since they were received: the machine may have been told before that what was before
// them is lost.
func (c *Coordinator) ours(msgs []*source.Message) []*source.Message {
	p, ok := c.source.(*partitioned.Source)
	if !ok {
		return msgs
	}
	return slices.DeleteFunc(msgs, func(m *source.Message) bool { return !p.Ours(m) })
}

var errEnded = errors.New("the coordinator has ended")

// post brings an event to the owner.
func (c *Coordinator) post(ev any) {
	select {
	case c.inbox <- envelope{ev: ev}:
	case <-c.ended:
	}
}

// ask brings a request to the owner and returns its reply.
func (c *Coordinator) ask(ctx context.Context, env envelope) (bool, error) {
	env.reply = make(chan bool, 1)
	select {
	case c.inbox <- env:
	case <-c.ended:
		return false, errEnded
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case found := <-env.reply:
		return found, nil
	case <-c.ended:
		return false, errEnded
	}
}

// Stats is the stage as this coordinator sees it, without the broker's numbers.
func (c *Coordinator) Stats(ctx context.Context) (s Stats, err error) {
	_, err = c.ask(ctx, envelope{look: func(_ clock.Instant, m *machine) { s = m.stats() }})
	return s, err
}

// Items lists what is in hand, at most limit; id "" means all.
func (c *Coordinator) Items(ctx context.Context, id string, limit int) (views []ItemView, err error) {
	_, err = c.ask(ctx, envelope{look: func(now clock.Instant, m *machine) { views = m.views(now, id, limit) }})
	if w, ok := c.parts.Worker.(worker.Progressive); ok {
		for i, v := range views {
			if v.task == nil {
				continue
			}
			if said := w.Progress(v.task); said != nil {
				views[i].Progress = said
			}
		}
	}
	return views, err
}

// Beat tells that an attempt makes progress; again: it begins only now.
func (c *Coordinator) Beat(id string, again bool) { c.post(evBeat{id: id, again: again, claim: again}) }

// Share tells which part of the rates is this coordinator's, above 0 and at most 1: the coordinators of a queue have them together.
func (c *Coordinator) Share(part float64) { c.post(evShare{part}) }

// open returns the source of a queue to publish to.
func (c *Coordinator) open(queue string) (source.Source, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if src := c.queues[queue]; src != nil {
		return src, nil
	}
	partitions := 0
	if queue == c.cfg.To {
		partitions = c.cfg.ToPartitions
	}
	src, err := c.parts.Producer(source.Options{Queue: queue, Lease: c.cfg.Lease, Classes: c.classesOf(queue)}, partitions)
	if err != nil {
		return nil, fmt.Errorf("open queue %s: %w", queue, err)
	}
	c.queues[queue] = src
	return src, nil
}

// classesOf is how many classes a queue has that this coordinator publishes to.
func (c *Coordinator) classesOf(queue string) int {
	switch queue {
	case c.cfg.Queue, c.cfg.Divert:
		return c.cfg.Classes
	case c.cfg.To:
		return c.cfg.ToClasses
	}
	return 1
}

// publish stores messages in a queue, fitted to what it takes.
func (c *Coordinator) publish(ctx context.Context, queue string, outs []source.Out) error {
	src, err := c.open(queue)
	if err != nil {
		return err
	}
	classes, longest := c.classesOf(queue), src.Caps().MaxDelay
	fitted := make([]source.Out, len(outs))
	for i, out := range outs {
		out.Class = min(out.Class, classes-1)
		if longest > 0 {
			out.Delay = min(out.Delay, longest)
		}
		fitted[i] = out
	}
	return src.Publish(ctx, fitted...)
}

// find looks for the record of an item, or of its last replay.
func (c *Coordinator) find(ctx context.Context, id string) (*item.Record, error) {
	if c.parts.Point == nil {
		return nil, nil
	}
	var last *item.Record
	for replay := 0; ; replay++ {
		rec, err := c.parts.Point.Read(ctx, c.cfg.stage(), replayID(id, replay))
		if err != nil || rec == nil {
			return last, err
		}
		last = rec
		if rec.State != item.Dead {
			return last, nil
		}
	}
}

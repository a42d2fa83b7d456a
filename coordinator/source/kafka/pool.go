package kafka

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"retinue/coordinator/source"
)

// pool receives from the topic of one priority by a share group: over one link to each broker that leads partitions of it.
//
// Each link is a member of the group and fetches from all partitions that its broker leads, not only from those that the group
// assigns to it. The broker that holds the locks asks for no assignment: it is there to spread members that fetch
// without end. Ours stop when their coordinator has enough in hand, and a partition that was assigned to one of them only would
// then stand still, and after a death until the group notices (45 s).
type pool struct {
	g     *sharing
	n     int
	topic string

	joining sync.Mutex // one join or leave at a time

	mu     sync.Mutex
	client *kgo.Client // nil: idle. Its own, as a long fetch keeps all behind it on its connection waiting
	cancel context.CancelFunc
	links  map[int32]*link // by broker
	want   int
	sated  time.Time // since when want is 0
	ahead  []*grip
	err    error
	closed bool
	nudge  chan struct{}
}

// grip is a message under a lock of the broker.
type grip struct {
	link  *link
	at    position
	m     *source.Message
	count int // deliveries of this record
}

func newPool(g *sharing, n int) *pool {
	return &pool{g: g, n: n, topic: g.s.topic(n), nudge: make(chan struct{}, 1)}
}

// join becomes a member of the group.
func (p *pool) join() error {
	p.joining.Lock()
	defer p.joining.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		return nil
	}
	if p.closed {
		return source.ErrClosed
	}
	client, err := p.g.s.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.client, p.cancel, p.links, p.err = client, cancel, map[int32]*link{}, nil
	p.g.s.tasks.Go(func() { p.manage(ctx, client) })
	return nil
}

// manage keeps a link to each broker that leads something.
func (p *pool) manage(ctx context.Context, client *kgo.Client) {
	begun := false
	for pause := 50 * time.Millisecond; ctx.Err() == nil; {
		var err error
		try, cancel := bounded(ctx)
		if !begun {
			err = p.g.begin(try, p.topic)
			begun = err == nil
		}
		if err == nil {
			err = p.connect(try, ctx, client)
		}
		cancel()
		wait := 30 * time.Second
		if err != nil && ctx.Err() == nil {
			p.failed(err)
			wait, pause = pause, min(2*pause, time.Second)
		} else {
			pause = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-p.nudge:
			// Not more often, whatever goes wrong.
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

func (p *pool) connect(ctx, life context.Context, client *kgo.Client) error {
	meta, err := p.g.s.admin.Metadata(ctx, p.topic)
	if err != nil {
		return err
	}
	topic := meta.Topics[p.topic]
	if topic.Err != nil {
		return topic.Err
	}
	lead := map[int32][]int32{}
	for _, part := range topic.Partitions {
		if part.Leader >= 0 {
			lead[part.Leader] = append(lead[part.Leader], part.Partition)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != client {
		return nil
	}
	for node, l := range p.links {
		if l.ended() {
			delete(p.links, node)
		} else {
			l.lead(lead[node])
		}
	}
	for node, parts := range lead {
		if p.links[node] == nil {
			l := newLink(p, client, node, topic.ID, parts)
			p.links[node] = l
			p.g.s.tasks.Go(func() { l.run(life) })
		}
	}
	return nil
}

// ask says how many messages are wanted here.
func (p *pool) ask(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.want == n {
		return
	}
	if p.want = n; n == 0 {
		p.sated = time.Now()
	}
	for _, l := range p.links {
		l.notify()
	}
}

// room is how many messages may be fetched.
func (p *pool) room() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.want-len(p.ahead))
}

// state says how many messages are here, and whether that is all that the brokers have now.
func (p *pool) state() (ready int, known bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.err
	if p.err = nil; len(p.ahead) > 0 || err != nil {
		return len(p.ahead), true, err
	}
	known = len(p.links) > 0
	for _, l := range p.links {
		known = known && l.empty()
	}
	return 0, known, nil
}

// next takes the message that came first.
func (p *pool) next() *grip {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ahead) == 0 {
		return nil
	}
	h := p.ahead[0]
	p.ahead = p.ahead[1:]
	for _, l := range p.links {
		l.notify()
	}
	return h
}

func (p *pool) arrived(all []*grip) {
	p.mu.Lock()
	p.ahead = append(p.ahead, all...)
	p.err = nil
	p.mu.Unlock()
	p.g.s.wake()
}

// lost forgets messages whose locks are gone.
func (p *pool) lost(gone map[*grip]bool) {
	p.mu.Lock()
	var rest []*grip
	for _, h := range p.ahead {
		if !gone[h] {
			rest = append(rest, h)
		}
	}
	p.ahead = rest
	p.mu.Unlock()
	for h := range gone {
		p.g.s.held.Drop(h.m)
	}
}

// keepFor is how long messages are kept that came when nobody waited any more, as the next Receive is near as a rule.
const keepFor = time.Second

// overdue gives back what nobody has asked for.
func (p *pool) overdue() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.want > 0 || time.Since(p.sated) < keepFor {
		return
	}
	for _, h := range p.ahead {
		h.link.submit(newOp(release, h.at))
	}
	p.ahead = nil
}

func (p *pool) failed(err error) {
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	p.g.s.wake()
}

func (p *pool) refresh() {
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}

// leave gives back what was fetched ahead, and leaves the group when nothing else is held.
func (p *pool) leave(ctx context.Context) error {
	p.joining.Lock()
	defer p.joining.Unlock()
	p.ask(0)
	p.mu.Lock()
	links := p.links
	if p.client == nil {
		links = nil
	}
	var quiet []*op
	for _, l := range links {
		o := newOp(nothing, position{})
		l.submit(o)
		quiet = append(quiet, o)
	}
	p.mu.Unlock()
	for _, o := range quiet { // fetches that were under way are over then
		if err := o.wait(ctx); err != nil && ctx.Err() != nil {
			return err
		}
	}
	p.mu.Lock()
	var back []taken
	for _, h := range p.ahead {
		back = append(back, taken{at: h.at, grip: h})
	}
	p.ahead = nil
	p.mu.Unlock()
	var failed error
	for _, err := range perform(ctx, release, back) {
		if err != nil && !errors.Is(err, source.ErrLost) {
			failed = err
		}
	}
	for _, l := range links {
		if l.holds() {
			return failed
		}
	}
	return errors.Join(failed, p.stop(ctx))
}

// close leaves for good. The broker frees what is held.
func (p *pool) close(ctx context.Context) error {
	p.joining.Lock()
	defer p.joining.Unlock()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	return p.stop(ctx)
}

// stop ends all links; joining is held.
func (p *pool) stop(ctx context.Context) error {
	p.mu.Lock()
	client, cancel, links := p.client, p.cancel, p.links
	p.client, p.links, p.ahead = nil, nil, nil
	p.mu.Unlock()
	if client == nil {
		return nil
	}
	cancel()
	var failed error
	for _, l := range links {
		select {
		case <-l.gone:
		case <-ctx.Done():
			failed = ctx.Err() // the broker notices when the connection ends
		}
	}
	client.Close()
	return failed
}

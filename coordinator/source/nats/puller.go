package nats

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
	"retinue/internal/clock"
)

// puller asks the consumers of the classes for messages. The client's own Fetch cannot wait for several consumers at once, and
// loses until the end of the lease what arrives while it is cancelled; here a request outlives the Receive that made it, and
// what it brings late is handed out by the next.
type puller struct {
	s *Source

	mu     sync.Mutex
	sub    *nats.Subscription
	inbox  string
	last   int            // number of the last request
	shares source.Classes // of what is asked for; how what has arrived is handed out is another matter
	asked  [source.MaxClasses]request
	ahead  [source.MaxClasses][]*source.Message // arrived, not handed out
	events chan struct{}                        // something changed
	broken error
	away   error // why there is no connection
	torn   bool  // something that was sent may not have arrived, and comes again out of order
}

// request is what one class's consumer was asked for and has not answered.
type request struct {
	number int // 0: none
	left   int
	until  time.Time // when it is taken for forgotten
	sent   clock.Instant
	waits  bool
}

const (
	waitFor = 20 * time.Second
	// A request that waits lies in the memory of the broker that leads the consumer, and is gone with it. Nothing tells a client
	// that is connected to another one, so the broker is to say every beat that it still has it.
	beat = 2 * time.Second
	// silence is after how long without a beat it is asked again.
	silence = 5 * beat / 2
	// again is the pause after an answer that will be the same at once, as "nobody leads the consumer".
	again = 200 * time.Millisecond
)

func newPuller(s *Source) *puller {
	return &puller{s: s, shares: source.Classes{N: s.cfg.Classes}, events: make(chan struct{}, 1)}
}

func (p *puller) subscribe(nc *nats.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sub != nil {
		return nil
	}
	p.inbox = nats.NewInbox()
	sub, err := nc.Subscribe(p.inbox+".*", p.arrived)
	if err != nil {
		return err
	}
	p.sub = sub
	return sub.SetPendingLimits(-1, -1)
}

// connection is called when the connection was lost or came back: what was asked for is forgotten by the broker.
func (p *puller) connection(away error) {
	p.mu.Lock()
	p.away = away
	p.torn = true
	clear(p.asked[:])
	p.mu.Unlock()
	p.wake()
}

func (p *puller) wake() {
	select {
	case p.events <- struct{}{}:
	default:
	}
}

// arrived gets messages and the ends of requests, one after the other.
func (p *puller) arrived(raw *nats.Msg) {
	defer p.wake()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !strings.HasPrefix(raw.Reply, "$JS.ACK.") {
		p.endedLocked(raw)
		return
	}
	class := classOf(raw.Subject)
	sent := p.s.held.Now()
	if r := &p.asked[class]; r.number != 0 {
		// The lease began when the broker sent the message: after a request for what is there, and some time after one that
		// waits. There a message that is long on its way, over a connection that hangs, gets some more than it has.
		if !r.waits {
			sent = r.sent
		}
		if r.left--; r.left == 0 {
			r.number = 0
		}
	}
	if m := p.s.deliver(raw, sent); m != nil {
		p.ahead[class] = append(p.ahead[class], m)
	}
}

// endedLocked handles what the broker says of a request: it still stands, nothing is there, it expired, or the consumer moved.
func (p *puller) endedLocked(raw *nats.Msg) {
	status := raw.Header.Get("Status")
	deleted := status == "409" && strings.Contains(raw.Header.Get("Description"), "Deleted")
	number, _ := strconv.Atoi(raw.Subject[strings.LastIndexByte(raw.Subject, '.')+1:])
	for class := range p.asked {
		r := &p.asked[class]
		switch {
		case r.number == 0 || r.number != number:
		case status == "100":
			r.until = time.Now().Add(silence)
		case status == "404" || status == "408" || deleted:
			r.number = 0
		default:
			p.torn = true
			r.until = time.Now().Add(again)
		}
	}
	if deleted {
		p.broken = fmt.Errorf("%w: the consumer of the queue was deleted", source.ErrUnavailable)
		p.s.tuned.Store(false)
	}
}

// ask sends a request to a class's consumer, unless one is open. A wait of 0 asks for what is there now.
func (p *puller) ask(class, n int, wait time.Duration) error {
	p.mu.Lock()
	if r := p.asked[class]; r.number != 0 && time.Now().Before(r.until) {
		p.mu.Unlock()
		return nil
	}
	p.torn = p.torn || p.asked[class].number != 0 // it was never answered
	p.last++
	r := request{number: p.last, left: n, until: time.Now().Add(2 * time.Second), sent: p.s.held.Now(), waits: wait > 0}
	var every time.Duration
	if r.waits {
		every, r.until = beat, time.Now().Add(silence)
	}
	p.asked[class] = r
	reply := fmt.Sprintf("%s.%d", p.inbox, p.last)
	p.mu.Unlock()
	body := struct {
		Batch   int           `json:"batch"`
		Expires time.Duration `json:"expires,omitempty"`
		NoWait  bool          `json:"no_wait,omitempty"`
		Beat    time.Duration `json:"idle_heartbeat,omitempty"`
	}{n, wait, wait == 0, every}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return p.s.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+streamName(p.s.cfg.Queue)+"."+durable(class), reply, data)
}

func (p *puller) receive(ctx context.Context, max int, classes *source.Classes) ([]*source.Message, error) {
	if err := p.whole(); err != nil {
		return nil, err
	}
	if ms, err := p.take(ctx, max, classes); len(ms) > 0 || err != nil {
		return ms, err
	}
	// First what is there, shared between the classes; then, for what they left, one after the other.
	parts := p.shares.Split(max)
	var any []int
	for class := range classes.N {
		if parts[class] > 0 {
			any = append(any, class)
		}
	}
	if err := p.now(ctx, any, func(class int) int { return parts[class] }); err != nil {
		return nil, err
	}
	for class := classes.N - 1; class >= 0 && p.count() < max && classes.N > 1; class-- {
		if err := p.now(ctx, []int{class}, func(int) int { return max - p.count() }); err != nil {
			return nil, err
		}
	}
	for {
		ms, err := p.take(ctx, max, classes)
		if len(ms) > 0 || err != nil {
			return ms, err
		}
		for class := range classes.N {
			if err := p.ask(class, 1, waitFor); err != nil {
				return nil, explain(err)
			}
		}
		if err := p.wait(ctx, p.forgotten()); err != nil {
			return nil, err
		}
	}
}

// now asks some classes for what they have and waits for their answers.
func (p *puller) now(ctx context.Context, classes []int, n func(int) int) error {
	var asked []int
	for _, class := range classes {
		p.mu.Lock()
		open := p.asked[class].number != 0 && time.Now().Before(p.asked[class].until)
		p.mu.Unlock()
		if open {
			continue // one that waits: the class had nothing
		}
		if err := p.ask(class, n(class), 0); err != nil {
			return explain(err)
		}
		asked = append(asked, class)
	}
	for _, class := range asked {
		for p.open(class) {
			if err := p.wait(ctx, 2*time.Second); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *puller) open(class int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[class].number != 0 && time.Now().Before(p.asked[class].until)
}

// forgotten is how long it is until the first request is to be repeated.
func (p *puller) forgotten() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := silence
	for _, r := range p.asked {
		if r.number != 0 {
			first = min(first, time.Until(r.until))
		}
	}
	return max(first, time.Millisecond)
}

// wait returns when something changed, or after a time.
func (p *puller) wait(ctx context.Context, limit time.Duration) error {
	if err := p.connected(); err != nil {
		return err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.events:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-p.s.closed:
		return source.ErrClosed
	}
	p.mu.Lock()
	err := p.broken
	p.broken = nil
	p.mu.Unlock()
	return cmp.Or(err, p.whole())
}

// whole is an error where an ordered queue may have lost a message on the way.
func (p *puller) whole() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.torn && p.s.cfg.Order {
		return ledger.ErrTorn
	}
	return nil
}

// connected says why there is no connection. Of a write to none the client says only that its buffer is full.
func (p *puller) connected() error {
	if p.s.nc.IsConnected() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Errorf("%w: not connected: %w", source.ErrUnavailable, cmp.Or(p.away, nats.ErrDisconnected))
}

// take hands out what has arrived and is still ours. In an ordered queue the rest goes back: the broker may see the end of a lease a
// moment later than we do, and send what is behind.
func (p *puller) take(ctx context.Context, max int, classes *source.Classes) ([]*source.Message, error) {
	ms, over := p.split(max, classes)
	if len(over) > 0 && p.s.cfg.Order {
		if err := p.s.back(ctx, over); err != nil && len(ms) == 0 {
			return nil, explain(err)
		}
	}
	return ms, nil
}

func (p *puller) split(max int, classes *source.Classes) (ms []*source.Message, over []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(ms) < max {
		class := classes.Next(func(class int) bool { return len(p.ahead[class]) > 0 })
		if class < 0 {
			break
		}
		m := p.ahead[class][0]
		p.ahead[class] = p.ahead[class][1:]
		if _, ok := p.s.held.Get(m); !ok {
			gone := []*source.Message{m}
			if p.s.cfg.Order { // what is behind it would come before it
				gone, p.ahead[class] = append(gone, p.ahead[class]...), nil
			}
			for _, m := range gone {
				if reply, ok := p.s.held.Remove(m); ok {
					over = append(over, reply)
				}
			}
			continue
		}
		ms = append(ms, m)
	}
	return ms, over
}

func (p *puller) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, ms := range p.ahead {
		n += len(ms)
	}
	return n
}

// idle withdraws what was asked for and gives back what arrived. The broker works off a connection's lines in order: once it
// has answered a flush behind the end of the subscription, nothing more can come.
func (p *puller) idle(ctx context.Context) error {
	p.mu.Lock()
	sub := p.sub
	p.sub = nil
	p.mu.Unlock()
	if sub == nil {
		return nil
	}
	if err := sub.Drain(); err != nil {
		return err
	}
	if err := p.s.nc.FlushTimeout(5 * time.Second); err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); sub.IsValid() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	p.s.tuned.Store(false) // subscribe again with the next Receive
	p.mu.Lock()
	clear(p.asked[:])
	var back []*source.Message
	for class := range p.ahead {
		back = append(back, p.ahead[class]...)
		p.ahead[class] = nil
	}
	p.mu.Unlock()
	var replies []string
	for _, m := range back {
		if reply, ok := p.s.held.Remove(m); ok {
			replies = append(replies, reply)
		}
	}
	return p.s.back(ctx, replies)
}

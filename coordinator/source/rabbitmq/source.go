package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
)

// Source is one consumer and producer of a queue.
type Source struct {
	cfg     Config
	held    *ledger.Ledger[*hold]
	classes source.Classes
	stamps  ledger.Stamps
	events  chan struct{}
	torn    atomic.Bool // a connection was lost that messages may have been on

	connecting sync.Mutex // one at a time
	turning    sync.Mutex // what was fetched goes back before anything else is fetched
	mu         sync.Mutex
	session    *session
	receiving  bool
	received   time.Time // end of the last Receive
	ahead      [source.MaxClasses][]arrival

	once   sync.Once
	closed chan struct{}
	tasks  sync.WaitGroup
}

// arrival is a message that was not handed out.
type arrival struct {
	m *source.Message
	h *hold
}

var _ source.Source = (*Source)(nil)

// Open connects and declares the queue.
func Open(ctx context.Context, c Config) (*Source, error) {
	if err := c.Complete(); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	if c.ConsumerTimeout == 0 {
		c.ConsumerTimeout = 30 * time.Minute
	}
	if c.fast == 0 {
		c.fast = fast
	}
	if c.grown == 0 {
		c.grown = grown
	}
	s := &Source{
		cfg: c, held: ledger.New[*hold](c.Lease), classes: source.Classes{N: c.Classes}, events: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	if _, err := s.connected(ctx); err != nil {
		return nil, fmt.Errorf("open queue %s on RabbitMQ: %w", c.Queue, err)
	}
	s.tasks.Go(s.sweep)
	return s, nil
}

// connected returns the session, a new one where the last is dead.
func (s *Source) connected(ctx context.Context) (*session, error) {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if se := s.current(); se != nil && se.alive() {
		return se, nil
	}
	se, err := s.newSession(ctx)
	if err != nil {
		return nil, explain(err)
	}
	s.mu.Lock()
	s.session = se
	s.mu.Unlock()
	return se, nil
}

func (s *Source) current() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

// lost forgets what was delivered over a session: the broker delivers it again.
func (s *Source) lost(se *session) {
	s.torn.Store(true)
	var gone []*source.Message
	s.held.Each(func(m *source.Message, h *hold) {
		if h.se == se {
			gone = append(gone, m)
		}
	})
	for _, m := range gone {
		s.held.Drop(m)
	}
	s.mu.Lock()
	for class, all := range s.ahead {
		var rest []arrival
		for _, a := range all {
			if a.h.se != se {
				rest = append(rest, a)
			}
		}
		s.ahead[class] = rest
	}
	s.mu.Unlock()
	s.wake()
}

func (s *Source) mark(receiving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receiving, s.received = receiving, time.Now()
}

// unused says that nobody has asked for messages for a second. Of a queue in order nobody else could have them, so only the broker's own limit counts.
func (s *Source) unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	patience := min(s.cfg.Lease, time.Second)
	if s.cfg.Order {
		patience = s.cfg.moveAt() / 2
	}
	return !s.receiving && time.Since(s.received) > patience
}

func (s *Source) wake() {
	select {
	case s.events <- struct{}{}:
	default:
	}
}

// sweep returns what nobody extends.
func (s *Source) sweep() {
	ticker := time.NewTicker(min(max(s.cfg.Lease/8, 20*time.Millisecond), time.Second))
	defer ticker.Stop()
	for {
		select {
		case <-s.closed:
			return
		case <-ticker.C:
		}
		for _, h := range s.held.Expired() {
			h.mu.Lock()
			if !h.gone {
				h.back() // an error is the end of the session, which returns it too
			}
			h.mu.Unlock()
		}
		// What was fetched ahead has no lease; others may want it.
		if se := s.current(); s.unused() && se != nil && se.consumes() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			s.giveBackIf(ctx, se, s.unused)
			cancel()
		}
	}
}

// Receive implements source.Source.
func (s *Source) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	s.mark(true)
	ms, err := s.receive(ctx, max)
	s.mark(false)
	if err == nil {
		return ms, nil
	}
	if closed := s.check(ctx); closed != nil {
		return nil, closed
	}
	return nil, fmt.Errorf("receive from %s: %w", s.cfg.Queue, explain(err))
}

func (s *Source) receive(ctx context.Context, max int) ([]*source.Message, error) {
	if s.cfg.Order && s.torn.Load() {
		return nil, ledger.ErrTorn
	}
	se, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.turn(se); err != nil {
		return nil, err
	}
	for {
		if ms := s.take(max); len(ms) > 0 {
			return ms, nil
		}
		select {
		case <-s.events:
		case <-se.dead:
			return nil, errLostConnection
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.closed:
			return nil, source.ErrClosed
		}
	}
}

func (s *Source) offer(a arrival) {
	s.mu.Lock()
	rests := a.h.se.resting.Load()
	if a.h.se.alive() && !rests {
		s.ahead[a.m.Class] = append(s.ahead[a.m.Class], a)
	}
	s.mu.Unlock()
	if rests { // it waited here for its time, and nobody asks any more
		a.h.back() // an error is the end of the session, which returns it too
	}
	s.wake()
}

// message makes a message of a delivery, and says when it is due.
func (s *Source) message(se *session, class int, d amqp.Delivery) (arrival, time.Time) {
	m := &source.Message{ID: d.MessageId, Body: d.Body, Deliveries: 1, Published: d.Timestamp}
	all := make(map[string]string, len(d.Headers))
	for name, value := range d.Headers {
		switch {
		case name == "x-delivery-count", name == headerCount:
			n, _ := strconv.Atoi(text(value))
			m.Deliveries += n
		case name == headerMove, strings.HasPrefix(name, "x-death"), strings.HasPrefix(name, "x-first-death"), strings.HasPrefix(name, "x-last-death"),
			name == "x-acquired-count", name == "x-opt-rabbitmq-acquired-count":
		case strings.HasPrefix(name, escape):
			all[name[len(escape):]] = text(value)
		default:
			all[name] = text(value)
		}
	}
	due := ledger.Read(m, all)
	m.Class = class
	if m.ID == "" {
		// Another producer's, without an id. Its bytes are all that is the same at each delivery.
		m.ID = bodyID(d.Body)
	}
	return arrival{m, &hold{se: se, d: d, since: time.Now()}}, due
}

// text is the value of a header, which other producers may give other types.
func text(value any) string {
	if s, ok := value.(string); ok {
		return s
	}
	return fmt.Sprint(value)
}

const (
	headerCount = "retinue-count" // deliveries of the message that this is a copy of
	escape      = "retinue-app-"  // protects headers of the application that the broker would take for its own
)

// take hands out what has arrived. The lease begins here: until now the message was only the broker's and ours.
func (s *Source) take(max int) []*source.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ms []*source.Message
	for len(ms) < max {
		class := s.classes.Next(func(class int) bool { return len(s.ahead[class]) > 0 })
		if class < 0 {
			break
		}
		a := s.ahead[class][0]
		s.ahead[class] = s.ahead[class][1:]
		if s.held.Add(a.m, a.h, s.held.Now()) {
			ms = append(ms, a.m)
		}
	}
	return ms
}

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	for _, m := range ms {
		h, ok := s.held.Get(m)
		if ok {
			now := s.held.Now()
			if err := s.renew(ctx, m, h); err != nil && (!h.se.alive() || errors.Is(err, source.ErrLost)) {
				ok = false
			} else if err != nil {
				failed[m] = fmt.Errorf("extend: %w", explain(err))
				continue
			}
			ok = ok && s.held.Extend(m, now)
		}
		if !ok {
			failed[m] = fmt.Errorf("extend: %w", source.ErrLost)
		}
	}
	return failed.Err()
}

// renew moves a message that comes near the broker's limit.
func (s *Source) renew(ctx context.Context, m *source.Message, h *hold) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over || h.gone || !h.se.alive() {
		return source.ErrLost
	}
	age := time.Since(h.since)
	if age < s.cfg.moveAt()/4 {
		return nil
	}
	if s.cfg.Order {
		if age < s.cfg.moveAt() {
			return nil
		}
		return s.retake(ctx, m, h)
	}
	// Our own queue is made long before it is needed, so that it has grown up then.
	old, err := h.se.consumeHeld(m.Class)
	if err != nil {
		return err
	}
	if age < s.cfg.moveAt() || old < min(s.cfg.grown, s.cfg.moveAt()/4) {
		return nil
	}
	// A move that was given up half way would leave a copy for others: it is ended, whatever the caller does.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	since := time.Now()
	d, err := h.se.move(ctx, m, copyOf(h.d, m.Deliveries)) // whoever else gets the copy is the next
	if err != nil {
		return err
	}
	if err := h.ack(); err != nil {
		return err
	}
	h.d, h.since, h.moved = d, since, true
	return nil
}

// copyOf is a delivery as a publication, after a number of earlier deliveries.
func copyOf(d amqp.Delivery, deliveries int) amqp.Publishing {
	headers := amqp.Table{}
	for name, value := range d.Headers {
		if !strings.HasPrefix(name, "x-") && name != headerMove {
			headers[name] = value
		}
	}
	headers[headerCount] = strconv.Itoa(deliveries)
	id := d.MessageId
	if id == "" {
		id = bodyID(d.Body)
	}
	return amqp.Publishing{
		Headers: headers, Body: d.Body, MessageId: id, Timestamp: d.Timestamp, ContentType: d.ContentType,
		ContentEncoding: d.ContentEncoding, DeliveryMode: amqp.Persistent,
	}
}

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	for _, out := range outs {
		if err := s.cfg.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, err)
		}
		switch {
		case len(out.Body) > maxBody:
			return fmt.Errorf("publish %s to %s: %w: %d bytes, %d are possible", out.ID, s.cfg.Queue, source.ErrTooLarge, len(out.Body), maxBody)
		case out.Delay > maxDelay:
			return fmt.Errorf("publish %s to %s: %w: delay %v, %v is possible", out.ID, s.cfg.Queue, source.ErrInvalid, out.Delay, maxDelay)
		}
	}
	if err := s.publish(ctx, outs); err != nil {
		if closed := s.check(ctx); closed != nil {
			err = closed
		}
		return fmt.Errorf("publish to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

func (s *Source) publish(ctx context.Context, outs []source.Out) error {
	se, err := s.connected(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	var pubs []publication
	for _, out := range outs {
		headers := amqp.Table{}
		for name, value := range ledger.Headers(out, s.stamps.Next()) {
			if strings.HasPrefix(name, "x-") {
				name = escape + name
			}
			headers[name] = value
		}
		msg := amqp.Publishing{Headers: headers, Body: out.Body, MessageId: out.ID, Timestamp: now, DeliveryMode: amqp.Persistent}
		queue := s.cfg.queue(out.Class)
		if out.Delay > 0 {
			if queue, err = se.parking(out.Class, msg, now.Add(out.Delay+time.Millisecond)); err != nil {
				return err
			}
		}
		pubs = append(pubs, publication{queue, msg})
	}
	return se.publish(ctx, pubs...)
}

// Depth implements source.Source.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	se, err := s.connected(ctx)
	if err != nil {
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.cfg.Queue, err)
	}
	d := source.Depth{InFlight: -1, Delayed: -1, Oldest: -1}
	ch, err := se.conn.Channel()
	if err == nil {
		defer ch.Close()
		for class := range s.cfg.Classes {
			var q amqp.Queue
			if q, err = ch.QueueDeclarePassive(s.cfg.queue(class), true, false, false, false, nil); err != nil {
				break
			}
			d.Ready += int64(q.Messages)
		}
	}
	if err != nil {
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.cfg.Queue, explain(err))
	}
	return d, nil
}

// Idle implements source.Source.
func (s *Source) Idle(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	se := s.current()
	if se == nil || !se.alive() {
		return nil // the broker has everything already
	}
	if err := s.giveBack(ctx, se); err != nil && se.alive() {
		return fmt.Errorf("give back to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

// giveBack stops fetching and returns what was fetched.
func (s *Source) giveBack(ctx context.Context, se *session) error {
	return s.giveBackIf(ctx, se, func() bool { return true })
}

// giveBackIf does so if it is still right: a Receive that has begun meanwhile would wait for ever.
func (s *Source) giveBackIf(ctx context.Context, se *session, right func() bool) error {
	s.turning.Lock()
	if !right() {
		s.turning.Unlock()
		return nil
	}
	err := se.rest()
	s.mu.Lock()
	var back []arrival
	for class := range s.ahead {
		back = append(back, s.ahead[class]...)
		s.ahead[class] = nil
	}
	s.mu.Unlock()
	for _, a := range back {
		err = errors.Join(err, a.h.back())
	}
	s.turning.Unlock()
	if err != nil {
		return err
	}
	return se.barrier(ctx)
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	return source.Caps{
		Broker: "rabbitmq", MaxBody: maxBody, Order: true, Deliveries: true, MaxDelay: maxDelay, DelayGrain: time.Second, Acks: acks,
		// A broken connection is noticed at once; one that hangs, after two heartbeats.
		Redelivery: max(s.cfg.Lease, 2*time.Second),
	}
}

// Close implements source.Source: the broker takes back what a connection had when it ends.
func (s *Source) Close(ctx context.Context) error {
	s.once.Do(func() {
		close(s.closed)
		if se := s.current(); se != nil {
			deadline := time.Now().Add(5 * time.Second)
			if at, ok := ctx.Deadline(); ok && at.Before(deadline) {
				deadline = at
			}
			se.conn.CloseDeadline(deadline) // it is closed whatever it says
		}
		s.tasks.Wait()
	})
	return nil
}

func (s *Source) check(ctx context.Context) error {
	select {
	case <-s.closed:
		return source.ErrClosed
	default:
		return ctx.Err()
	}
}

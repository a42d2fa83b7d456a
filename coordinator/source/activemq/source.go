package activemq

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

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

	connecting [2]sync.Mutex // one at a time of each
	asking     sync.Mutex    // one question about the broker at a time

	mu        sync.Mutex
	in        *session
	out       *conn // of its own: a broker whose memory is full stops reading from those who publish
	receiving bool
	received  time.Time // end of the last Receive
	ahead     [source.MaxClasses][]*hold
	schedules bool      // the broker has a scheduler
	counts    bool      // the broker has told its statistics
	silent    time.Time // until then it is not asked for them

	once   sync.Once
	closed chan struct{}
	tasks  sync.WaitGroup
}

var _ source.Source = (*Source)(nil)

// Open connects. The broker makes the queues when they are used first.
func Open(ctx context.Context, c Config) (*Source, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	s := &Source{
		cfg: c, held: ledger.New[*hold](c.Lease), classes: source.Classes{N: c.Classes}, events: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	if _, err := s.producer(ctx); err != nil {
		return nil, fmt.Errorf("open queue %s on ActiveMQ: %w", c.Queue, err)
	}
	s.tasks.Go(s.sweep)
	return s, nil
}

// producer returns the connection to publish over, a new one where the last is dead.
func (s *Source) producer(ctx context.Context) (*conn, error) {
	s.connecting[0].Lock()
	defer s.connecting[0].Unlock()
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	cn := s.out
	s.mu.Unlock()
	if cn != nil && cn.alive() {
		return cn, nil
	}
	cn, err := dial(ctx, &s.cfg, func(*frame) {})
	if err != nil {
		return nil, explain(err)
	}
	s.mu.Lock()
	s.out = cn
	s.mu.Unlock()
	return cn, s.unlessClosed(cn)
}

// consumer returns the session to receive over, a new one where the last is dead.
func (s *Source) consumer(ctx context.Context) (*session, error) {
	s.connecting[1].Lock()
	defer s.connecting[1].Unlock()
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if se := s.current(); se != nil && se.cn.alive() {
		return se, nil
	}
	se, err := s.newSession(ctx)
	if err != nil {
		return nil, explain(err)
	}
	s.mu.Lock()
	s.in = se
	s.mu.Unlock()
	return se, s.unlessClosed(se.cn)
}

// unlessClosed ends a connection that came up while the source was closed.
func (s *Source) unlessClosed(cn *conn) error {
	err := s.check(context.Background())
	if err != nil {
		cn.fail(err)
	}
	return err
}

func (s *Source) current() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in
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
		var rest []*hold
		for _, h := range all {
			if h.se != se {
				rest = append(rest, h)
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

// unused says that nobody has asked for messages for a second, although some are fetched. Of a queue in order nobody else could have them.
func (s *Source) unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.cfg.Order && s.in != nil && s.in.consuming && !s.receiving && time.Since(s.received) > min(s.cfg.Lease, time.Second)
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
			h.back() // nobody waits for the answer: an error is the end of the session, which returns it too
		}
		// What was fetched ahead has no lease; others may want it.
		if s.unused() {
			s.giveBackUnused()
		}
	}
}

// giveBackUnused returns what was fetched, unless somebody asks for it by now.
func (s *Source) giveBackUnused() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s.current().restIf(ctx, func() bool { return !s.receiving })
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
	se, err := s.consumer(ctx)
	if err != nil {
		return nil, err
	}
	se.consume()
	for {
		if ms := s.take(max); len(ms) > 0 {
			return ms, nil
		}
		select {
		case <-s.events:
		case <-se.cn.dead:
			return nil, se.cn.cause()
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.closed:
			return nil, source.ErrClosed
		}
	}
}

// offer makes a delivery ready to be handed out, where it is still ours.
func (s *Source) offer(h *hold) {
	s.mu.Lock()
	if h.slot.h == h && h.se.cn.alive() {
		s.ahead[h.m.Class] = append(s.ahead[h.m.Class], h)
	}
	s.mu.Unlock()
	s.wake()
}

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
		h := s.ahead[class][0]
		s.ahead[class] = s.ahead[class][1:]
		if s.held.Add(h.m, h, s.held.Now()) {
			h.out = true
			ms = append(ms, h.m)
		}
	}
	return ms
}

// Extend implements source.Source. The broker is asked once for all whether it still knows the connection: what came over it
// is ours as long as it does.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	known := map[*session]error{}
	now := s.held.Now()
	for _, m := range ms {
		h, ok := s.held.Get(m)
		if ok {
			err, asked := known[h.se]
			if !asked {
				err = h.se.cn.ping(ctx)
				known[h.se] = err
			}
			if err != nil && h.se.cn.alive() {
				failed[m] = fmt.Errorf("extend: %w", explain(err))
				continue
			}
			ok = err == nil && s.held.Extend(m, now)
		}
		if !ok {
			failed[m] = fmt.Errorf("extend: %w", source.ErrLost)
		}
	}
	return failed.Err()
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	s.finish(ctx, "ack", s.taken("ack", ms, failed), failed, (*hold).ack)
	return failed.Err()
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	if delay <= 0 {
		s.finish(ctx, "release", s.taken("release", ms, failed), failed, (*hold).back)
		return failed.Err()
	}
	if err := s.later(ctx, delay); err != nil {
		return fmt.Errorf("release: %w", explain(err))
	}
	s.delay(ctx, time.Now().Add(delay+time.Millisecond), s.taken("release", ms, failed), failed)
	return failed.Err()
}

// taken are the deliveries that are still ours. From here on this call alone has them.
func (s *Source) taken(verb string, ms []*source.Message, failed source.Failures) []*hold {
	var all []*hold
	for _, m := range ms {
		if h, ok := s.held.Take(m); ok {
			all = append(all, h)
		} else {
			failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost)
		}
	}
	return all
}

// finish gives verdicts and waits for their answers.
func (s *Source) finish(ctx context.Context, verb string, all []*hold, failed source.Failures, verdict func(*hold) chan error) {
	answers := make([]chan error, len(all))
	for i, h := range all {
		answers[i] = verdict(h)
	}
	for i, h := range all {
		err := h.se.cn.wait(ctx, answers[i])
		if refused(err) {
			err = fmt.Errorf("%w: %w", source.ErrLost, err) // the broker has ended this delivery
		}
		if err != nil {
			failed[h.m] = fmt.Errorf("%s: %w", verb, explain(err))
		}
	}
}

// delay publishes copies, then ends the originals. A death between the two delivers twice.
func (s *Source) delay(ctx context.Context, due time.Time, all []*hold, failed source.Failures) {
	cn, err := s.producer(ctx)
	answers := make([]chan error, len(all))
	for i, h := range all {
		if err == nil {
			answers[i] = cn.ask(s.copyOf(h, due))
		}
	}
	var stored []*hold
	for i, h := range all {
		failure := err
		if err == nil {
			failure = cn.wait(ctx, answers[i])
		}
		if failure != nil {
			// It is stored or not: the message comes again in any case.
			h.back()
			failed[h.m] = fmt.Errorf("release: %w", explain(failure))
			continue
		}
		stored = append(stored, h)
	}
	s.finish(ctx, "release", stored, failed, (*hold).ack)
}

func (s *Source) copyOf(h *hold, due time.Time) *frame {
	f := copyOf(h.f, h.m, s.cfg.destination(h.m.Class), due, h.m.Deliveries)
	schedule(f, time.Until(due))
	return f
}

// schedule has the broker hold a message back. What is left of its delay is waited for by who receives it.
func schedule(f *frame, delay time.Duration) {
	if delay > early {
		f.headers[headerDelay] = strconv.FormatInt((delay-early).Milliseconds()+1, 10)
	}
}

// later makes sure that the broker can do a delay.
func (s *Source) later(ctx context.Context, delay time.Duration) error {
	if delay <= early {
		return nil
	}
	return s.scheduler(ctx)
}

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	var longest time.Duration
	for _, out := range outs {
		if err := s.cfg.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, err)
		}
		if len(out.Body) > maxBody {
			return fmt.Errorf("publish %s to %s: %w: %d bytes, %d are possible", out.ID, s.cfg.Queue, source.ErrTooLarge, len(out.Body), maxBody)
		}
		longest = max(longest, out.Delay)
	}
	err := s.later(ctx, longest)
	if err == nil {
		err = s.publish(ctx, outs)
	}
	if err != nil {
		if closed := s.check(ctx); closed != nil {
			err = closed
		}
		return fmt.Errorf("publish to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

func (s *Source) publish(ctx context.Context, outs []source.Out) error {
	cn, err := s.producer(ctx)
	if err != nil {
		return err
	}
	var answers []chan error
	for _, out := range outs {
		f := send(s.cfg.destination(out.Class), ledger.Headers(out, s.stamps.Next()), out.Body)
		schedule(f, out.Delay)
		answers = append(answers, cn.ask(f))
	}
	return cn.waitAll(ctx, answers)
}

// Idle implements source.Source.
func (s *Source) Idle(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	se := s.current()
	if se == nil || !se.cn.alive() {
		return nil // the broker has everything already
	}
	if err := se.rest(ctx); err != nil && se.cn.alive() {
		return fmt.Errorf("give back to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	return source.Caps{
		Broker: "activemq", MaxBody: maxBody, Order: true, DelayGrain: time.Second,
		// A broken connection is noticed at once; one that hangs, after two heart-beats.
		Redelivery: max(s.cfg.Lease, 2*time.Second),
	}
}

// Close implements source.Source: the broker takes back what a connection had when it ends.
func (s *Source) Close(ctx context.Context) error {
	s.once.Do(func() {
		close(s.closed)
		s.mu.Lock()
		in, out := s.in, s.out
		s.mu.Unlock()
		if in != nil {
			in.cn.close(ctx)
		}
		out.close(ctx)
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

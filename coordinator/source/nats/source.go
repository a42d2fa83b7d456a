package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
	"retinue/internal/clock"
)

// Source is one consumer and producer of a queue.
type Source struct {
	cfg     Config
	nc      *nats.Conn
	js      jetstream.JetStream
	held    *ledger.Ledger[string] // subject to answer to
	stamps  ledger.Stamps
	pull    *puller
	classes source.Classes
	tuned   atomic.Bool // the consumers have our lease

	once   sync.Once
	closed chan struct{}
}

var _ source.Source = (*Source)(nil)

// Open connects and declares the queue. Brokers that are about to find each other, or have no leader, are waited for.
func Open(ctx context.Context, c Config) (*Source, error) {
	if err := c.Complete(); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	s := &Source{cfg: c, held: ledger.New[string](c.Lease), classes: source.Classes{N: c.Classes}, closed: make(chan struct{})}
	s.pull = newPuller(s)
	var err error
	if s.nc, err = c.connect(ctx, s.pull.connection); err != nil {
		return nil, fmt.Errorf("connect to NATS for queue %s: %w", c.Queue, err)
	}
	if s.js, err = jetstream.New(s.nc, jetstream.WithPublishAsyncTimeout(10*time.Second)); err == nil {
		err = c.declare(ctx, s.js)
		for end := time.Now().Add(together); errors.Is(err, source.ErrUnavailable) && time.Now().Before(end) && pause(ctx, again); {
			err = c.declare(ctx, s.js)
		}
	}
	if err != nil {
		s.nc.Close()
		return nil, fmt.Errorf("open queue %s: %w", c.Queue, err)
	}
	return s, nil
}

// together is how long Open waits for brokers to be one cluster: an election takes up to nine seconds.
const together = 12 * time.Second

// pause waits and says whether the context is still good.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Receive implements source.Source.
func (s *Source) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	ms, err := s.receive(ctx, max)
	if err != nil && ctx.Err() == nil && !errors.Is(err, source.ErrClosed) {
		return nil, fmt.Errorf("receive from %s: %w", s.cfg.Queue, err)
	}
	return ms, err
}

func (s *Source) receive(ctx context.Context, max int) ([]*source.Message, error) {
	if err := s.reach(ctx); err != nil {
		return nil, err
	}
	if !s.tuned.Load() {
		for class := range s.cfg.Classes {
			if err := s.cfg.tune(ctx, s.js, class); err != nil {
				return nil, explain(err)
			}
		}
		if err := s.pull.subscribe(s.nc); err != nil {
			return nil, explain(err)
		}
		s.tuned.Store(true)
	}
	return s.pull.receive(ctx, max, &s.classes)
}

// deliver turns what the broker sent into a message, or nil where it must not be handed out.
func (s *Source) deliver(raw *nats.Msg, sent clock.Instant) *source.Message {
	meta, err := raw.Metadata()
	if err != nil {
		return nil
	}
	m := &source.Message{
		ID: fmt.Sprintf("nats-%d", meta.Sequence.Stream), Body: raw.Data,
		Published: meta.Timestamp, Deliveries: int(meta.NumDelivered),
	}
	all := make(map[string]string, len(raw.Header))
	for name, values := range raw.Header {
		if strings.HasPrefix(name, "Nats-") || len(values) == 0 {
			continue // the server's own
		}
		all[strings.TrimPrefix(name, escape)] = values[0]
	}
	due := ledger.Read(m, all)
	m.Class = classOf(raw.Subject)
	if !due.IsZero() {
		if left := time.Until(due); left > 0 {
			// The broker cannot delay a publication, but it can delay a redelivery.
			_ = s.nc.Publish(raw.Reply, nak(left))
			return nil
		}
		m.Deliveries = max(1, m.Deliveries-1)
	}
	if !s.held.Add(m, raw.Reply, sent) {
		return nil
	}
	return m
}

// escape protects headers of the application that the server would take for its own.
const escape = "retinue-app-"

func classOf(subject string) int {
	last := subject[strings.LastIndexByte(subject, '.')+1:]
	if len(last) == 1 && last[0] >= '0' && last[0] <= '9' {
		return int(last[0] - '0')
	}
	return 0
}

func nak(delay time.Duration) []byte {
	if delay <= 0 {
		return []byte("-NAK")
	}
	return fmt.Appendf(nil, `-NAK {"delay": %d}`, delay.Nanoseconds())
}

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	sent := s.held.Now()
	return s.answer(ctx, "extend", []byte("+WPI"), ms, func(m *source.Message) { s.held.Extend(m, sent) })
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	return s.answer(ctx, "ack", []byte("+ACK"), ms, s.held.Drop)
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	return s.answer(ctx, "release", nak(delay), ms, s.held.Drop)
}

// answer tells the broker a verdict on each message and waits until it has confirmed it.
func (s *Source) answer(ctx context.Context, verb string, verdict []byte, ms []*source.Message, done func(*source.Message)) error {
	if err := s.reach(ctx); err != nil {
		return err
	}
	var mu sync.Mutex
	failed := source.Failures{}
	fail := func(m *source.Message, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed[m] = fmt.Errorf("%s: %w", verb, err)
	}
	one := func(m *source.Message) {
		reply, ok := s.held.Get(m)
		if !ok {
			fail(m, source.ErrLost)
			return
		}
		if err := s.request(ctx, reply, verdict); err != nil {
			fail(m, explain(err))
			return
		}
		done(m)
	}
	if len(ms) == 1 {
		one(ms[0])
		return failed.Err()
	}
	slots := make(chan struct{}, abreast)
	var wg sync.WaitGroup
	for _, m := range ms {
		slots <- struct{}{}
		wg.Go(func() { one(m); <-slots })
	}
	wg.Wait()
	return failed.Err()
}

// back gives messages back that nobody asks about any more. In an ordered queue it waits until the broker has done so: the next
// consumer may ask at once, and must get them first.
func (s *Source) back(ctx context.Context, replies []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, abreast)
	var wg sync.WaitGroup
	for _, reply := range replies {
		if !s.cfg.Order || ctx.Err() != nil {
			failed = cmp.Or(failed, s.nc.Publish(reply, nak(0)))
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			err := s.request(ctx, reply, nak(0))
			mu.Lock()
			failed = cmp.Or(failed, err)
			mu.Unlock()
			<-slots
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	return s.nc.FlushWithContext(ctx)
}

// abreast is how many messages are told of at the same time.
const abreast = 64

// request waits for the broker's answer, for as long as the lease could still be good at most. What a broker of several was told
// when it was killed is not answered, and can be told again.
func (s *Source) request(ctx context.Context, subject string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, min(max(s.cfg.Lease, time.Second), patience))
	defer cancel()
	_, err := s.nc.RequestWithContext(ctx, subject, data)
	return err
}

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	if err := s.reach(ctx); err != nil {
		return err
	}
	limit := s.Caps().MaxBody
	for _, out := range outs {
		if err := s.cfg.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, err)
		}
		if len(out.Body) > limit {
			return fmt.Errorf("publish %s to %s: %w: %d bytes, the server takes %d", out.ID, s.cfg.Queue, source.ErrTooLarge, len(out.Body), limit)
		}
	}
	// In steps, so that the client's window of unanswered publications is not exceeded.
	const step = 256
	for len(outs) > 0 {
		n := min(step, len(outs))
		if err := s.publish(ctx, outs[:n]); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, err)
		}
		outs = outs[n:]
	}
	return nil
}

func (s *Source) publish(ctx context.Context, outs []source.Out) error {
	var futures []jetstream.PubAckFuture
	var first error
	for _, out := range outs {
		msg := nats.NewMsg(s.subject(out.Class))
		msg.Data = out.Body
		for name, value := range ledger.Headers(out, s.stamps.Next()) {
			if len(name) >= 5 && strings.EqualFold(name[:5], "nats-") || name == "Status" {
				name = escape + name
			}
			msg.Header[name] = []string{value}
		}
		opts := []jetstream.PublishOpt{jetstream.WithMsgID(out.ID)}
		if s.cfg.Order {
			// While nobody leads the stream the client would try this one again, and the next could be there before it.
			opts = append(opts, jetstream.WithRetryAttempts(0))
		}
		f, err := s.js.PublishMsgAsync(msg, opts...)
		if err != nil {
			first = err
			break
		}
		futures = append(futures, f)
	}
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			if first == nil {
				first = err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closed:
			return source.ErrClosed
		}
	}
	return explain(first)
}

// Depth implements source.Source.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	if err := s.reach(ctx); err != nil {
		return source.Depth{}, err
	}
	d := source.Depth{Delayed: -1}
	err := bounded(ctx, func(ctx context.Context) error {
		st, err := s.js.Stream(ctx, streamName(s.cfg.Queue))
		if err != nil {
			return err
		}
		info, err := st.Info(ctx, jetstream.WithSubjectFilter("queue."+s.cfg.Queue+".*"))
		for class := 0; err == nil && class < s.cfg.Classes; class++ {
			err = s.count(ctx, st, class, int64(info.State.Subjects[s.subject(class)]), &d)
		}
		return err
	})
	if err != nil {
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.cfg.Queue, explain(err))
	}
	return d, nil
}

// count adds a class to d. What is in flight is what the stream has and does not wait, and what the consumer has delivered and
// has no answer to: the less of both, and nothing if the stream has nothing that the consumer has no answer to. Each alone can be
// too high for ever after a server 2.9 was killed. It forgets which messages it removed in the last two seconds, but not the
// consumer's state of a tenth of a second ago; and the consumer waits for answers to messages that are not there.
func (s *Source) count(ctx context.Context, st jetstream.Stream, class int, stored int64, d *source.Depth) error {
	c, err := st.Consumer(ctx, durable(class)) // it comes with its state
	if err != nil {
		return err
	}
	info := c.CachedInfo()
	ready := min(int64(info.NumPending), stored)
	d.Ready += ready
	if flying := min(stored-ready, int64(info.NumAckPending)); flying > 0 {
		_, err := st.GetMsg(ctx, info.AckFloor.Stream+1, jetstream.WithGetMsgSubject(s.subject(class)))
		if err == nil {
			d.InFlight += flying
		} else if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err
		}
	}
	if ready == 0 {
		return nil
	}
	next, err := st.GetMsg(ctx, info.Delivered.Stream+1, jetstream.WithGetMsgSubject(s.subject(class)))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // taken in between
	}
	if err != nil {
		return err
	}
	d.Oldest = max(d.Oldest, time.Since(next.Time))
	return nil
}

// Idle implements source.Source.
func (s *Source) Idle(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := s.pull.idle(ctx); err != nil {
		return fmt.Errorf("give back to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	const envelope = 24 << 10 // the largest headers that Publish lets pass; the server counts them
	return source.Caps{
		Broker: "nats", MaxBody: max(0, int(s.nc.MaxPayload())-envelope), Dedupe: dedupeWindow, Order: true, Deliveries: true,
		Redelivery: s.cfg.Lease, DelayGrain: 100 * time.Millisecond, Counts: source.Counts{InFlight: true, Oldest: true},
	}
}

// Close implements source.Source.
func (s *Source) Close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		if s.tuned.Load() {
			_ = s.pull.idle(ctx)
		}
		close(s.closed)
		if s.nc.IsConnected() {
			err = s.back(ctx, slices.Collect(maps.Values(s.held.Drain())))
		}
		s.nc.Close()
		if err != nil {
			err = fmt.Errorf("close queue %s: %w", s.cfg.Queue, explain(err))
		}
	})
	return err
}

// reach is check, and whether there is a connection.
func (s *Source) reach(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	return s.pull.connected()
}

func (s *Source) check(ctx context.Context) error {
	select {
	case <-s.closed:
		return source.ErrClosed
	default:
		return ctx.Err()
	}
}

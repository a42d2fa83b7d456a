package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
)

// anywhere is the partition of a record that has no partition yet.
const anywhere = -1

// headerCount is how often a copy was handed out before.
const headerCount = "retinue-count"

// Source is one consumer and producer of a queue.
type Source struct {
	cfg     Config
	place   place
	holder  string // of marks
	maxBody int

	producer *kgo.Client
	admin    *kadm.Client
	held     *ledger.Ledger[taken]
	classes  []*class
	turns    source.Classes
	events   chan struct{}

	mu        sync.Mutex
	watch     *watch
	receiving bool
	received  time.Time // end of the last Receive

	once   sync.Once
	closed chan struct{}
	tasks  sync.WaitGroup
}

// taken is a message that hangs on a mark of ours.
type taken struct {
	key string
	at  position
}

var _ source.Source = (*Source)(nil)

// Open connects and declares the topics.
func Open(ctx context.Context, c Config) (*Source, error) {
	place, err := c.complete()
	if err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	s := &Source{
		cfg: c, place: place, holder: source.NewID()[:16], held: ledger.New[taken](c.Lease), turns: source.Classes{N: c.Classes},
		events: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	for n := range c.Classes {
		s.classes = append(s.classes, newClass(s, n))
	}
	s.producer, err = s.client(
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(s.partitioner()), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(maxTopic), kgo.UnknownTopicRetries(20),
	)
	if err != nil {
		return nil, fmt.Errorf("open queue %s on Kafka: %w", c.Queue, err)
	}
	s.admin = kadm.NewClient(s.producer)
	try, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err = s.producer.Ping(try); err == nil {
		err = s.declare(try)
	}
	if err != nil {
		s.producer.Close()
		return nil, fmt.Errorf("open queue %s on Kafka: %w", c.Queue, explain(err))
	}
	s.tasks.Go(s.sweep)
	return s, nil
}

// partitioner puts a mark into its message's partition, a key where Kafka's own producer puts it, and all else around.
func (s *Source) partitioner() kgo.Partitioner {
	keyed := kgo.StickyKeyPartitioner(nil)
	return kgo.BasicConsistentPartitioner(func(topic string) func(*kgo.Record, int) int {
		if topic == s.marksTopic() {
			return func(r *kgo.Record, n int) int { return int(r.Partition) % n }
		}
		byKey := keyed.ForTopic(topic)
		var around atomic.Uint32
		return func(r *kgo.Record, n int) int {
			switch {
			case r.Partition != anywhere:
				return int(r.Partition) % n
			case r.Key != nil:
				return byKey.Partition(r, n)
			}
			return int(around.Add(1)) % n
		}
	})
}

func (s *Source) markRecord(at position, key string, value []byte) *kgo.Record {
	return &kgo.Record{Topic: s.marksTopic(), Partition: at.partition, Key: []byte(key), Value: value}
}

// produce waits until all are confirmed. What was sent and is in doubt when the context ends may be stored later.
func (s *Source) produce(ctx context.Context, records ...*kgo.Record) error {
	done := make(chan error, len(records))
	for _, r := range records {
		s.producer.Produce(ctx, r, func(_ *kgo.Record, err error) { done <- err })
	}
	var failed error
	for range records {
		select {
		case err := <-done:
			if err != nil && failed == nil {
				failed = err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closed:
			return source.ErrClosed
		}
	}
	return failed
}

// bounded is a context for one request.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, patience)
}

func (s *Source) wake() {
	select {
	case s.events <- struct{}{}:
	default:
	}
}

// message makes a message of a record.
func (s *Source) message(class int, r *kgo.Record) *arrival {
	m := &source.Message{Body: r.Value, Deliveries: 1}
	all := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		if h.Key == headerCount {
			n, _ := strconv.Atoi(string(h.Value))
			m.Deliveries += n
			continue
		}
		all[h.Key] = string(h.Value)
	}
	due := ledger.Read(m, all)
	m.Class = class
	if m.ID == "" {
		m.ID = idOf(r)
	}
	if m.Published.IsZero() {
		m.Published = r.Timestamp
	}
	if key := string(r.Key); m.Key == "" && s.cfg.Check(source.Out{ID: "x", Key: key}) == nil {
		m.Key = key
	}
	return &arrival{m: m, at: position{class, r.Partition, r.Offset}, due: due}
}

// idOf identifies a message whose producer gave it no id.
func idOf(r *kgo.Record) string { return fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset) }

// start takes part in the groups.
func (s *Source) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(context.Background()); err != nil {
		return err
	}
	s.receiving = true
	if s.watch == nil {
		w, err := newWatch(s)
		if err != nil {
			return err
		}
		s.watch = w
	}
	for _, c := range s.classes {
		if err := c.join(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Source) stopped() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receiving, s.received = false, time.Now()
}

// unused says that nobody has asked for messages for a lease.
func (s *Source) unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.receiving && time.Since(s.received) > s.cfg.Lease
}

// sweep gives partitions to others when nobody asks here, and forgets leases that are over.
func (s *Source) sweep() {
	ticker := time.NewTicker(max(s.cfg.Lease/8, 50*time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-s.closed:
			return
		case <-ticker.C:
		}
		s.held.Expired()
		if s.unused() {
			s.leave(context.Background())
		}
	}
}

func (s *Source) leave(ctx context.Context) error {
	var wg sync.WaitGroup
	failed := make([]error, len(s.classes))
	for i, c := range s.classes {
		wg.Go(func() { failed[i] = c.leave(ctx) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

// Receive implements source.Source.
func (s *Source) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	ms, err := s.receive(ctx, max)
	s.stopped()
	if err == nil {
		return ms, nil
	}
	if closed := s.check(ctx); closed != nil {
		return nil, closed
	}
	return nil, fmt.Errorf("receive from %s: %w", s.cfg.Queue, explain(err))
}

func (s *Source) receive(ctx context.Context, max int) ([]*source.Message, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	alive := time.NewTicker(patience)
	defer alive.Stop()
	for {
		// Each time: what nobody used was left, perhaps just now.
		if err := s.start(); err != nil {
			return nil, err
		}
		ms, some, err := s.take(ctx, max)
		if len(ms) > 0 || err != nil {
			return ms, err
		}
		if some { // all of them delayed
			continue
		}
		select {
		case <-s.events:
		case <-alive.C:
			try, cancel := context.WithTimeout(ctx, patience/2)
			err := s.producer.Ping(try)
			cancel()
			if err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.closed:
			return nil, source.ErrClosed
		}
	}
}

// take marks the next messages and commits behind them. It is not given up half way: what was marked is ours.
func (s *Source) take(ctx context.Context, n int) (ms []*source.Message, some bool, err error) {
	for _, c := range s.classes {
		c.taking.Lock()
		defer c.taking.Unlock()
	}
	var left [source.MaxClasses]int
	for i, c := range s.classes {
		if left[i], err = c.waiting(); err != nil && left[i] == 0 {
			return nil, false, err
		}
	}
	var wanted [source.MaxClasses]int
	for range n {
		class := s.turns.Next(func(class int) bool { return left[class] > 0 })
		if class < 0 {
			break
		}
		left[class]--
		wanted[class]++
	}
	ctx, cancel := bounded(context.WithoutCancel(ctx))
	defer cancel()
	for i, c := range s.classes {
		if wanted[i] == 0 {
			continue
		}
		some = true
		taken, err := s.takeFrom(ctx, c, wanted[i])
		ms = append(ms, taken...)
		if err != nil && len(ms) == 0 {
			return nil, false, err
		}
	}
	return ms, some, nil
}

func (s *Source) takeFrom(ctx context.Context, c *class, n int) ([]*source.Message, error) {
	all := c.choose(n)
	sent := s.held.Now()
	var marks []*kgo.Record
	for _, a := range all {
		m := mark{at: a.at, lease: s.cfg.Lease}
		if time.Now().Before(a.due) {
			m = mark{at: a.at, due: a.due}
		}
		marks = append(marks, s.markRecord(a.at, keyOf(a.at, s.holder), m.value()))
	}
	err := s.produce(ctx, marks...)
	if err == nil {
		err = c.commit(ctx, all)
	}
	if err != nil {
		// The same again has the same marks. If the partition goes before that, they deliver it twice.
		c.putBack(all)
		return nil, err
	}
	var ms []*source.Message
	for i, a := range all {
		if strings.HasPrefix(string(marks[i].Value), "held") && s.held.Add(a.m, taken{string(marks[i].Key), a.at}, sent) {
			ms = append(ms, a.m)
		}
	}
	return ms, nil
}

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	value := func(t taken) []byte { return mark{at: t.at, lease: s.cfg.Lease}.value() }
	sent := s.held.Now()
	return s.rewrite(ctx, "extend", ms, value, func(m *source.Message) { s.held.Extend(m, sent) })
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	return s.rewrite(ctx, "ack", ms, func(taken) []byte { return nil }, s.held.Drop)
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	var due time.Time
	if delay > 0 {
		due = time.Now().Add(delay + time.Millisecond)
	}
	return s.rewrite(ctx, "release", ms, func(t taken) []byte { return mark{at: t.at, due: due, handed: true}.value() }, s.held.Drop)
}

// rewrite writes the marks of messages again. A confirmation that comes after the end of the lease is worth nothing: the
// message may have been given to somebody else before.
func (s *Source) rewrite(ctx context.Context, verb string, ms []*source.Message, value func(taken) []byte, done func(*source.Message)) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	lost := func(m *source.Message) { failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost) }
	var ours []*source.Message
	var marks []*kgo.Record
	for _, m := range ms {
		t, ok := s.held.Get(m)
		if !ok {
			lost(m)
			continue
		}
		ours = append(ours, m)
		marks = append(marks, s.markRecord(t.at, t.key, value(t)))
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.produce(ctx, marks...); err != nil {
		for _, m := range ours {
			if _, ok := s.held.Get(m); ok {
				failed[m] = fmt.Errorf("%s: %w", verb, explain(err))
			} else {
				lost(m)
			}
		}
		return failed.Err()
	}
	for _, m := range ours {
		if _, ok := s.held.Get(m); !ok {
			lost(m)
			continue
		}
		done(m)
	}
	return failed.Err()
}

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	now := time.Now()
	var records []*kgo.Record
	for _, out := range outs {
		if err := s.cfg.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, err)
		}
		if len(out.Body) > s.maxBody {
			return fmt.Errorf("publish %s to %s: %w: %d bytes, %d are possible", out.ID, s.cfg.Queue, source.ErrTooLarge, len(out.Body), s.maxBody)
		}
		r := &kgo.Record{Topic: s.topic(out.Class), Partition: anywhere, Value: out.Body, Timestamp: now}
		if out.Key != "" {
			r.Key = []byte(out.Key)
		}
		for name, value := range ledger.Headers(out, now) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
		}
		records = append(records, r)
	}
	bound, cancel := bounded(ctx)
	defer cancel()
	if err := s.produce(bound, records...); err != nil {
		if closed := s.check(ctx); closed != nil {
			err = closed
		}
		return fmt.Errorf("publish to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

// Depth implements source.Source.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	if err := s.check(ctx); err != nil {
		return source.Depth{}, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	d, err := s.depth(ctx)
	if err != nil {
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.cfg.Queue, explain(err))
	}
	return d, nil
}

func (s *Source) depth(ctx context.Context) (source.Depth, error) {
	d := source.Depth{Oldest: -1}
	var topics []string
	for class := range s.cfg.Classes {
		topics = append(topics, s.topic(class))
	}
	starts, err := s.admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return d, err
	}
	ends, err := s.admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return d, err
	}
	for _, topic := range topics {
		done, err := s.committed(ctx, topic)
		if err != nil {
			return d, err
		}
		for p, end := range ends[topic] {
			from := starts[topic][p].Offset
			if at, ok := done.Lookup(topic, p); ok {
				from = max(from, at.At)
			}
			if err := errors.Join(end.Err, starts[topic][p].Err); err != nil {
				return d, err
			}
			d.Ready += end.Offset - from
		}
	}
	marks, err := s.committed(ctx, s.marksTopic())
	if err != nil {
		return d, err
	}
	for _, at := range marks[s.marksTopic()] {
		var flying, delayed int64
		fmt.Sscan(at.Metadata, &flying, &delayed)
		d.InFlight += flying
		d.Delayed += delayed
	}
	return d, nil
}

// committed is how far a group has come; nothing where nobody has received yet.
func (s *Source) committed(ctx context.Context, group string) (kadm.OffsetResponses, error) {
	all, err := s.admin.FetchOffsets(ctx, group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	return all, err
}

// Idle implements source.Source.
func (s *Source) Idle(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := s.leave(ctx); err != nil {
		return fmt.Errorf("give back to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	return source.Caps{
		Broker: "kafka", MaxBody: s.maxBody, Deliveries: true, DelayGrain: time.Second,
		// A dead consumer watches over marks until its session ends. Who is next counts the lease from when it reads them: two
		// clocks are not compared.
		Redelivery: s.cfg.Lease + s.cfg.Session + s.cfg.Session/4 + time.Second,
		Counts:     source.Counts{InFlight: true, Delayed: true},
	}
}

// Close implements source.Source.
func (s *Source) Close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = s.leave(try)
		var marks []*kgo.Record
		for _, t := range s.held.Drain() {
			marks = append(marks, s.markRecord(t.at, t.key, mark{at: t.at, handed: true}.value()))
		}
		err = errors.Join(err, s.produce(try, marks...))
		close(s.closed)
		s.mu.Lock()
		w := s.watch
		s.mu.Unlock()
		if w != nil {
			err = errors.Join(err, w.close(try))
		}
		// A Receive that was on its way into the group is out of it now.
		err = errors.Join(err, s.leave(try))
		s.producer.Close()
		s.tasks.Wait()
	})
	if err != nil {
		return fmt.Errorf("close %s: %w", s.cfg.Queue, explain(err))
	}
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

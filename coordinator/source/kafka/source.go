package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	shared  bool // the queue is read by share groups

	producer *kgo.Client
	admin    *kadm.Client
	held     *ledger.Ledger[taken]
	consumer consumer
	events   chan struct{}

	mu        sync.Mutex
	watch     *watch
	receiving bool
	received  time.Time // end of the last Receive

	once   sync.Once
	closed chan struct{}
	tasks  sync.WaitGroup
}

// consumer takes messages out of the topics and ends them, by groups of one kind.
type consumer interface {
	// join takes part in the groups.
	join() error
	// take hands out up to n messages. True: there were some, but they are delayed.
	take(ctx context.Context, n int) ([]*source.Message, bool, error)
	// enough says that nobody waits for messages just now.
	enough()
	// leave gives back what was fetched ahead.
	leave(ctx context.Context) error
	// end does one thing to messages; its errors are theirs in the same order.
	end(ctx context.Context, do deed, all []taken) []error
	// expired is told of messages that nobody extended.
	expired(all []taken)
	// close gives back what is held, and leaves.
	close(ctx context.Context, held []taken) error
	// finished is up to where a topic's partitions are finished, but for what hangs on marks.
	finished(ctx context.Context, topic string) (map[int32]int64, error)
	// waiting counts what is not finished and not on marks. True: with what is in flight.
	waiting(ctx context.Context) (n int64, inFlight bool, err error)
	// own is a good partition for a copy.
	own(class int) int32
	// redelivery is how long after its consumer's death a message comes again.
	redelivery() time.Duration
}

// taken is a message that is ours: it hangs on a mark, or on a lock of the broker.
type taken struct {
	key  string
	at   position
	grip *grip // of a share group
}

// deed is what is done to a message.
type deed struct {
	verb string // extend, ack, release
	due  time.Time
}

var _ source.Source = (*Source)(nil)

// Open connects and declares the topics.
func Open(ctx context.Context, c Config) (*Source, error) {
	place, err := c.complete()
	if err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	s := &Source{
		cfg: c, place: place, holder: source.NewID()[:16], held: ledger.New[taken](c.Lease),
		events: make(chan struct{}, 1), closed: make(chan struct{}),
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
	if s.shared {
		s.consumer = newSharing(s)
	} else {
		s.consumer = newClassic(s)
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
	return s.consumer.join()
}

func (s *Source) stopped() {
	s.consumer.enough()
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
		if over := s.held.Expired(); len(over) > 0 {
			s.consumer.expired(slices.Collect(maps.Values(over)))
		}
		if s.unused() {
			ctx, cancel := bounded(context.Background())
			s.consumer.leave(ctx)
			cancel()
		}
	}
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
		ms, some, err := s.consumer.take(ctx, max)
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

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	sent := s.held.Now()
	return s.end(ctx, deed{verb: "extend"}, ms, func(m *source.Message) { s.held.Extend(m, sent) })
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	return s.end(ctx, deed{verb: "ack"}, ms, s.held.Drop)
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	do := deed{verb: "release"}
	if delay > 0 {
		do.due = time.Now().Add(delay + time.Millisecond)
	}
	return s.end(ctx, do, ms, s.held.Drop)
}

// end does something to messages. A confirmation that comes after the end of the lease is worth nothing: the message may have
// been given to somebody else before.
func (s *Source) end(ctx context.Context, do deed, ms []*source.Message, done func(*source.Message)) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	lost := func(m *source.Message) { failed[m] = fmt.Errorf("%s: %w", do.verb, source.ErrLost) }
	var ours []*source.Message
	var all []taken
	for _, m := range ms {
		t, ok := s.held.Get(m)
		if !ok {
			lost(m)
			continue
		}
		ours, all = append(ours, m), append(all, t)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	errs := s.consumer.end(ctx, do, all)
	for i, m := range ours {
		_, still := s.held.Get(m)
		switch {
		case !still, errors.Is(errs[i], source.ErrLost):
			s.held.Drop(m)
			lost(m)
		case errs[i] != nil:
			failed[m] = fmt.Errorf("%s: %w", do.verb, explain(errs[i]))
		default:
			done(m)
		}
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
	waiting, inFlight, err := s.consumer.waiting(ctx)
	if err != nil {
		return d, err
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
	if inFlight {
		d.InFlight = min(d.InFlight, waiting) // of somebody who died it is told a little longer
		waiting -= d.InFlight
	}
	d.Ready = waiting
	return d, nil
}

func (s *Source) topics() (all []string) {
	for class := range s.cfg.Classes {
		all = append(all, s.topic(class))
	}
	return all
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
	if err := s.consumer.leave(ctx); err != nil {
		return fmt.Errorf("give back to %s: %w", s.cfg.Queue, explain(err))
	}
	return nil
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	return source.Caps{
		Broker: "kafka", MaxBody: s.maxBody, Deliveries: true, DelayGrain: time.Second,
		Redelivery: s.consumer.redelivery(), Counts: source.Counts{InFlight: true, Delayed: true},
	}
}

// Close implements source.Source.
func (s *Source) Close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = s.consumer.leave(try)
		err = errors.Join(err, s.consumer.close(try, slices.Collect(maps.Values(s.held.Drain()))))
		close(s.closed)
		s.mu.Lock()
		w := s.watch
		s.mu.Unlock()
		if w != nil {
			err = errors.Join(err, w.close(try))
		}
		// A Receive that was on its way into the group is out of it now.
		err = errors.Join(err, s.consumer.close(try, nil))
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

package sqs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
	"retinue/internal/clock"
)

// Source is one consumer and producer of a queue.
type Source struct {
	cfg  Config
	api  *sqs.Client
	urls [source.MaxClasses]string
	held *ledger.Ledger[*hold]
	poll *poller

	once   sync.Once
	closed chan struct{}
}

// hold is a delivery, and what a copy of it needs.
type hold struct {
	mu      sync.Mutex // one verdict or move at a time
	class   int
	url     string
	receipt string
	since   time.Time
	body    string
	attrs   map[string]types.MessageAttributeValue
	group   string
}

var _ source.Source = (*Source)(nil)

// Open connects and declares the queues of the classes.
func Open(ctx context.Context, c Config) (*Source, error) {
	if err := c.Complete(); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	if err := c.NoOrder("SQS"); err != nil {
		return nil, fmt.Errorf("open queue %s: %w", c.Queue, err)
	}
	if c.hold == 0 {
		c.hold = maxHold
	}
	c.Lease = time.Duration(seconds(c.Lease)) * time.Second
	api, err := c.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("open queue %s on SQS: %w", c.Queue, err)
	}
	s := &Source{cfg: c, api: api, held: ledger.New[*hold](c.Lease), closed: make(chan struct{})}
	for class := range c.Classes {
		if s.urls[class], err = c.url(ctx, api, class, false); err != nil {
			return nil, fmt.Errorf("open queue %s on SQS: %w", c.Queue, explain(err))
		}
	}
	s.poll = newPoller(s)
	return s, nil
}

// Receive implements source.Source.
func (s *Source) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	ms, err := s.poll.receive(ctx, max)
	if err == nil {
		return ms, nil
	}
	if closed := s.check(ctx); closed != nil {
		return nil, closed
	}
	return nil, fmt.Errorf("receive from %s: %w", s.cfg.Queue, explain(err))
}

// message makes a message of a delivery, and says when it is due.
func (s *Source) message(class int, url string, raw types.Message) (*source.Message, *hold, time.Time) {
	m := &source.Message{ID: *raw.MessageId, Deliveries: 1}
	var all map[string]string
	m.Body, all = decode(aws.ToString(raw.Body), raw.MessageAttributes)
	if n, err := strconv.Atoi(raw.Attributes["ApproximateReceiveCount"]); err == nil {
		m.Deliveries = n
	}
	if ms, err := strconv.ParseInt(raw.Attributes["SentTimestamp"], 10, 64); err == nil {
		m.Published = time.UnixMilli(ms)
	}
	if n, err := strconv.Atoi(all[headerCount]); err == nil {
		m.Deliveries += n
	}
	if id := all[headerOrigin]; id != "" {
		m.ID = id
	}
	due := ledger.Read(m, all)
	m.Class = class
	return m, &hold{
		class: class, url: url, receipt: *raw.ReceiptHandle, since: time.Now(), body: aws.ToString(raw.Body), attrs: raw.MessageAttributes,
		group: raw.Attributes["MessageGroupId"],
	}, due
}

const (
	headerCount  = "retinue-count"  // deliveries of the message that this is a copy of
	headerOrigin = "retinue-origin" // its id, where it has no own
)

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	sent := s.held.Now()
	var old []*source.Message
	for _, m := range ms {
		if h, ok := s.held.Get(m); ok && h.old(s.cfg.hold) {
			old = append(old, m)
		}
	}
	failed := source.Failures{}
	for _, m := range old {
		if err := s.move(ctx, m); err != nil {
			failed[m] = fmt.Errorf("extend: %w", explain(err))
		}
	}
	s.each(ctx, "extend", ms, failed, func(ctx context.Context, url string, hs []*hold) ([]types.BatchResultErrorEntry, error) {
		return s.visibility(ctx, url, hs, s.cfg.Lease)
	}, func(m *source.Message) { s.held.Extend(m, sent) })
	return failed.Err()
}

// at is where the delivery is now.
func (h *hold) at() (url, receipt string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.url, h.receipt
}

// age is how long ago it was delivered.
func (h *hold) age() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.since)
}

// old says that a delivery comes near the end that nobody can put off.
func (h *hold) old(limit time.Duration) bool {
	return h.age() > limit/2
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	s.each(ctx, "ack", ms, failed, s.remove, s.held.Drop)
	return failed.Err()
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if delay > maxDelay {
		return fmt.Errorf("release: %w: delay %v, %v is possible", source.ErrInvalid, delay, maxDelay)
	}
	failed := source.Failures{}
	var rest []*source.Message
	for _, m := range ms {
		h, ok := s.held.Get(m)
		if !ok {
			rest = append(rest, m)
			continue
		}
		if url, _ := h.at(); url == s.urls[h.class] && h.age()+delay < s.cfg.hold {
			rest = append(rest, m)
			continue
		}
		// Beyond the limit, or in the queue of what was moved: a copy goes where it came from.
		if err := s.copyBack(ctx, m, h, delay); err != nil {
			failed[m] = fmt.Errorf("release: %w", explain(err))
			continue
		}
		s.held.Drop(m)
	}
	s.each(ctx, "release", rest, failed, func(ctx context.Context, url string, hs []*hold) ([]types.BatchResultErrorEntry, error) {
		return s.visibility(ctx, url, hs, delay)
	}, s.held.Drop)
	return failed.Err()
}

// each does an operation on the messages of each queue, ten at once.
func (s *Source) each(ctx context.Context, verb string, ms []*source.Message, failed source.Failures,
	do func(context.Context, string, []*hold) ([]types.BatchResultErrorEntry, error), done func(*source.Message)) {
	byQueue := map[string][]*source.Message{}
	for _, m := range ms {
		h, ok := s.held.Get(m)
		if !ok {
			failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost)
			continue
		}
		url, _ := h.at()
		byQueue[url] = append(byQueue[url], m)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for url, ms := range byQueue {
		for len(ms) > 0 {
			part := ms[:min(batch, len(ms))]
			ms = ms[len(part):]
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				s.part(ctx, verb, url, part, func(m *source.Message, err error) {
					mu.Lock()
					defer mu.Unlock()
					failed[m] = err
				}, do, done)
			})
		}
	}
	wg.Wait()
}

func (s *Source) part(ctx context.Context, verb, url string, ms []*source.Message, fail func(*source.Message, error),
	do func(context.Context, string, []*hold) ([]types.BatchResultErrorEntry, error), done func(*source.Message)) {
	var hs []*hold
	var sent []*source.Message
	for _, m := range ms {
		if h, ok := s.held.Get(m); ok {
			hs, sent = append(hs, h), append(sent, m)
		} else {
			fail(m, fmt.Errorf("%s: %w", verb, source.ErrLost))
		}
	}
	if len(hs) == 0 {
		return
	}
	bad, err := do(ctx, url, hs)
	wrong := map[int]error{}
	for _, b := range bad {
		i, _ := strconv.Atoi(aws.ToString(b.Id))
		wrong[i] = source.ErrLost
		if !b.SenderFault {
			wrong[i] = fmt.Errorf("%w: %s", source.ErrUnavailable, aws.ToString(b.Message))
		}
	}
	for i, m := range sent {
		switch {
		case err != nil:
			fail(m, fmt.Errorf("%s: %w", verb, explain(err)))
		case wrong[i] != nil:
			fail(m, fmt.Errorf("%s: %w", verb, wrong[i]))
		default:
			done(m)
		}
	}
}

func (s *Source) visibility(ctx context.Context, url string, hs []*hold, d time.Duration) ([]types.BatchResultErrorEntry, error) {
	in := &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &url}
	n := int32(0)
	if d > 0 {
		n = seconds(d)
	}
	for i, h := range hs {
		_, receipt := h.at()
		in.Entries = append(in.Entries, types.ChangeMessageVisibilityBatchRequestEntry{
			Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &receipt, VisibilityTimeout: n,
		})
	}
	out, err := s.api.ChangeMessageVisibilityBatch(ctx, in)
	if err != nil {
		return nil, err
	}
	return out.Failed, nil
}

func (s *Source) remove(ctx context.Context, url string, hs []*hold) ([]types.BatchResultErrorEntry, error) {
	in := &sqs.DeleteMessageBatchInput{QueueUrl: &url}
	for i, h := range hs {
		_, receipt := h.at()
		in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &receipt})
	}
	out, err := s.api.DeleteMessageBatch(ctx, in)
	if err != nil {
		return nil, err
	}
	return out.Failed, nil
}

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	now := time.Now()
	var byClass [source.MaxClasses][]types.SendMessageBatchRequestEntry
	for _, out := range outs {
		if err := s.cfg.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, err)
		}
		if len(out.Body) > maxBody {
			return fmt.Errorf("publish %s to %s: %w: %d bytes, SQS takes %d", out.ID, s.cfg.Queue, source.ErrTooLarge, len(out.Body), maxBody)
		}
		e, err := s.entry(out, now)
		if err != nil {
			return fmt.Errorf("publish %s to %s: %w", out.ID, s.cfg.Queue, err)
		}
		byClass[out.Class] = append(byClass[out.Class], e)
	}
	for class, all := range byClass {
		for len(all) > 0 {
			n := fits(all)
			if err := s.send(ctx, s.urls[class], all[:n]); err != nil {
				return fmt.Errorf("publish to %s: %w", s.cfg.Queue, explain(err))
			}
			all = all[n:]
		}
	}
	return nil
}

// fits is how many entries go into one request: ten, and all together no more than one message may have.
func fits(all []types.SendMessageBatchRequestEntry) int {
	size := 0
	for i, e := range all[:min(batch, len(all))] {
		size += len(*e.MessageBody) + len(*e.MessageAttributes[attrHeaders].StringValue) + 200
		if size > maxMessage && i > 0 {
			return i
		}
	}
	return min(batch, len(all))
}

func (s *Source) entry(out source.Out, now time.Time) (types.SendMessageBatchRequestEntry, error) {
	body, attrs, err := encode(out.Body, ledger.Headers(out, now))
	e := types.SendMessageBatchRequestEntry{MessageBody: &body, MessageAttributes: attrs}
	if s.cfg.FIFO {
		group := out.Key
		if group == "" {
			group = out.ID
		}
		e.MessageGroupId, e.MessageDeduplicationId = aws.String(name128(group)), aws.String(name128(out.ID))
	} else if d := min(out.Delay, maxSendDelay); d > 0 {
		e.DelaySeconds = int32(d / time.Second) // never too long; what is left is waited for at the arrival
	}
	return e, err
}

func (s *Source) send(ctx context.Context, url string, entries []types.SendMessageBatchRequestEntry) error {
	for i := range entries {
		entries[i].Id = aws.String(strconv.Itoa(i))
	}
	out, err := s.api.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: entries})
	if err != nil {
		return err
	}
	if len(out.Failed) > 0 {
		f := out.Failed[0]
		return fmt.Errorf("%w: %d of %d were refused: %s: %s", source.ErrUnavailable, len(out.Failed), len(entries), aws.ToString(f.Code), aws.ToString(f.Message))
	}
	return nil
}

// Depth implements source.Source.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	if err := s.check(ctx); err != nil {
		return source.Depth{}, err
	}
	d := source.Depth{Oldest: -1}
	for class := range s.cfg.Classes {
		out, err := s.api.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &s.urls[class], AttributeNames: []types.QueueAttributeName{
			types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible, types.QueueAttributeNameApproximateNumberOfMessagesDelayed,
		}})
		if err != nil {
			return source.Depth{}, fmt.Errorf("depth of %s: %w", s.cfg.Queue, explain(err))
		}
		number := func(name types.QueueAttributeName) int64 {
			n, _ := strconv.ParseInt(out.Attributes[string(name)], 10, 64)
			return n
		}
		d.Ready += number(types.QueueAttributeNameApproximateNumberOfMessages)
		d.InFlight += number(types.QueueAttributeNameApproximateNumberOfMessagesNotVisible)
		d.Delayed += number(types.QueueAttributeNameApproximateNumberOfMessagesDelayed)
	}
	return d, nil
}

// Idle implements source.Source.
func (s *Source) Idle(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if back := s.poll.idle(ctx); len(back) > 0 {
		if err := s.Release(ctx, 0, back...); err != nil && !errors.Is(err, source.ErrLost) {
			return fmt.Errorf("give back to %s: %w", s.cfg.Queue, err)
		}
	}
	return nil
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	c := source.Caps{
		Broker: "sqs", MaxBody: maxBody, Deliveries: true, Redelivery: s.cfg.Lease + 2*time.Second, MaxDelay: maxDelay,
		DelayGrain: 2 * time.Second, KeyOrder: s.cfg.FIFO, Counts: source.Counts{InFlight: true},
	}
	if s.cfg.FIFO {
		c.Dedupe = fifoWindow
	}
	return c
}

// Close implements source.Source.
func (s *Source) Close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		s.poll.end()
		s.poll.idle(ctx)
		var all []*source.Message
		s.held.Each(func(m *source.Message, _ *hold) { all = append(all, m) })
		if len(all) > 0 {
			if err = s.Release(ctx, 0, all...); errors.Is(err, source.ErrLost) {
				err = nil
			}
		}
		close(s.closed)
		if err != nil {
			err = fmt.Errorf("close queue %s: %w", s.cfg.Queue, err)
		}
	})
	return err
}

func (s *Source) check(ctx context.Context) error {
	select {
	case <-s.closed:
		return source.ErrClosed
	default:
		return ctx.Err()
	}
}

// add records a delivery that was asked for at an instant.
func (s *Source) add(m *source.Message, h *hold, sent clock.Instant) bool {
	return s.held.Add(m, h, sent)
}

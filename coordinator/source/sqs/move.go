package sqs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
)

// Headers of a copy in the queue of moved messages.
const (
	headerMove  = "retinue-move"  // names this copy
	headerOwner = "retinue-until" // milliseconds since 1970: until then only who made it takes it
)

// move puts a message into the queue of moved ones and takes it from there: a new delivery, with a new limit. The old one ends
// only when the new one is in hand.
func (s *Source) move(ctx context.Context, m *source.Message) error {
	h, ok := s.held.Get(m)
	if !ok {
		return source.ErrLost
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// Within this time it must be here, or somebody else has it too.
	wait := min(max(s.cfg.Lease, 5*time.Second), time.Minute)
	// A move that was given up half way would leave a copy for others: it is ended, whatever the caller does.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait+5*time.Second)
	defer cancel()
	url, err := s.cfg.url(ctx, s.api, h.class, true)
	if err != nil {
		return err
	}
	token, until := source.NewID(), time.Now().Add(wait)
	body, attrs := s.copyOf(m, h, map[string]string{headerMove: token, headerOwner: strconv.FormatInt(until.UnixMilli(), 10)})
	if _, err := s.api.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: &url, MessageBody: &body, MessageAttributes: attrs}); err != nil {
		return err
	}
	for time.Now().Before(until) {
		since := time.Now()
		all, err := s.ask(ctx, url, batch, time.Second)
		if err != nil {
			return err
		}
		var mine *types.Message
		for _, raw := range all {
			_, headers := decode(aws.ToString(raw.Body), raw.MessageAttributes)
			if headers[headerMove] == token {
				mine = &raw
				continue
			}
			s.hide(ctx, url, raw, time.Second)
		}
		if mine == nil {
			continue
		}
		if _, err := s.api.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &h.url, ReceiptHandle: &h.receipt}); err != nil {
			return err
		}
		h.url, h.receipt, h.since, h.body, h.attrs = url, *mine.ReceiptHandle, since, aws.ToString(mine.Body), mine.MessageAttributes
		return nil
	}
	return fmt.Errorf("%w: the moved copy did not arrive in %v", source.ErrUnavailable, wait)
}

// copyOf is a message's body and attributes with changed headers; an empty value takes a header away.
func (s *Source) copyOf(m *source.Message, h *hold, change map[string]string) (string, map[string]types.MessageAttributeValue) {
	_, headers := decode(h.body, h.attrs)
	headers[headerCount] = strconv.Itoa(m.Deliveries - 1)
	headers[headerOrigin] = m.ID
	for name, value := range change {
		if headers[name] = value; value == "" {
			delete(headers, name)
		}
	}
	attrs := maps.Clone(h.attrs)
	if attrs == nil {
		attrs = map[string]types.MessageAttributeValue{}
	}
	for name := range attrs {
		if name != attrEncoding {
			delete(attrs, name)
		}
	}
	all, _ := json.Marshal(headers) // text cannot fail
	attrs[attrHeaders] = text(string(all))
	return h.body, attrs
}

// copyBack ends a delivery by a copy in the queue of its class.
func (s *Source) copyBack(ctx context.Context, m *source.Message, h *hold, delay time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	change := map[string]string{headerMove: "", headerOwner: "", headerCount: strconv.Itoa(m.Deliveries)}
	if delay > 0 {
		change[ledger.HeaderDue] = strconv.FormatInt(time.Now().Add(delay+time.Millisecond).UnixMilli(), 10)
	}
	body, attrs := s.copyOf(m, h, change)
	in := &sqs.SendMessageInput{QueueUrl: &s.urls[h.class], MessageBody: &body, MessageAttributes: attrs}
	if s.cfg.FIFO {
		group := h.group
		if group == "" {
			group = m.Key
		}
		if group == "" {
			group = m.ID
		}
		in.MessageGroupId, in.MessageDeduplicationId = aws.String(name128(group)), aws.String(source.NewID())
	} else {
		in.DelaySeconds = int32(min(delay, maxSendDelay) / time.Second)
	}
	if _, err := s.api.SendMessage(ctx, in); err != nil {
		return err
	}
	_, err := s.api.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &h.url, ReceiptHandle: &h.receipt})
	return err
}

func (s *Source) hide(ctx context.Context, url string, raw types.Message, d time.Duration) {
	_, _ = s.api.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: &url, ReceiptHandle: raw.ReceiptHandle, VisibilityTimeout: seconds(d)})
}

// orphans looks for moved messages whose owner is gone: they are visible, and nobody waits for them any more. An error is no
// reason to stop: the next look comes soon.
func (s *Source) orphans(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for class := range s.cfg.Classes {
		name := s.cfg.name(class, true)
		got, err := s.api.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
		if err != nil {
			continue // nothing was ever moved, or not now
		}
		sent := s.held.Now()
		all, err := s.ask(ctx, *got.QueueUrl, 1, 0)
		if err != nil {
			continue
		}
		for _, raw := range all {
			_, headers := decode(aws.ToString(raw.Body), raw.MessageAttributes)
			if until, err := strconv.ParseInt(headers[headerOwner], 10, 64); err == nil && time.Now().UnixMilli() < until {
				s.hide(ctx, *got.QueueUrl, raw, time.Second)
				continue
			}
			m, h, _ := s.message(class, *got.QueueUrl, raw)
			if s.add(m, h, sent) {
				s.poll.offer(m)
			}
		}
	}
}

// name128 makes a name that FIFO queues accept of any text.
func name128(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

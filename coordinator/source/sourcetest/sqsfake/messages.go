package sqsfake

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"
)

// Limits of SQS.
const (
	maxBytes    = 1 << 20
	maxBatch    = 10
	maxAttrs    = 10
	maxInFlight = 120_000
	maxFIFO     = 20_000
	window      = 5 * time.Minute
)

type sendEntry struct {
	QueueUrl, Id, MessageBody, MessageGroupId, MessageDeduplicationId string
	DelaySeconds                                                      *int
	MessageAttributes                                                 map[string]attribute
}

func (e sendEntry) size() int {
	n := len(e.MessageBody)
	for name, a := range e.MessageAttributes {
		n += len(name) + len(a.DataType) + len(a.BinaryValue)
		if a.StringValue != nil {
			n += len(*a.StringValue)
		}
	}
	return n
}

func (s *Server) send(_ *http.Request, body []byte) (any, error) {
	in, err := parse[sendEntry](body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queueLocked(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	m, err := s.storeLocked(q, in)
	if err != nil {
		return nil, err
	}
	return map[string]string{"MessageId": m.ID, "MD5OfMessageBody": digest(m.Body)}, nil
}

func (s *Server) sendBatch(_ *http.Request, body []byte) (any, error) {
	in, err := parse[struct {
		QueueUrl string
		Entries  []sendEntry
	}](body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queueLocked(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, e := range in.Entries {
		size += e.size()
	}
	if size > maxBytes {
		return nil, refuse("BatchRequestTooLong", "Batch requests cannot be longer than %d bytes. You have sent %d bytes.", maxBytes, size)
	}
	return batchOf(in.Entries, func(e sendEntry) string { return e.Id }, func(e sendEntry) (map[string]string, error) {
		m, err := s.storeLocked(q, e)
		if err != nil {
			return nil, err
		}
		return map[string]string{"MessageId": m.ID, "MD5OfMessageBody": digest(m.Body)}, nil
	})
}

// batchOf answers each entry of a batch.
func batchOf[E any](entries []E, id func(E) string, do func(E) (map[string]string, error)) (any, error) {
	if len(entries) == 0 {
		return nil, refuse("EmptyBatchRequest", "There should be at least one entry in the request.")
	}
	if len(entries) > maxBatch {
		return nil, refuse("TooManyEntriesInBatchRequest", "Maximum number of entries per request are %d. You have sent %d.", maxBatch, len(entries))
	}
	seen := map[string]bool{}
	good, bad := []map[string]string{}, []map[string]any{}
	for _, e := range entries {
		if seen[id(e)] {
			return nil, refuse("BatchEntryIdsNotDistinct", "Id %s repeated.", id(e))
		}
		seen[id(e)] = true
		answer, err := do(e)
		if err != nil {
			f := &fault{"InternalError", err.Error(), 500}
			errors.As(err, &f)
			bad = append(bad, map[string]any{"Id": id(e), "Code": f.code, "Message": f.text, "SenderFault": f.status < 500})
			continue
		}
		if answer == nil {
			answer = map[string]string{}
		}
		answer["Id"] = id(e)
		good = append(good, answer)
	}
	return map[string]any{"Successful": good, "Failed": bad}, nil
}

func (s *Server) storeLocked(q *queue, e sendEntry) (*message, error) {
	switch {
	case e.MessageBody == "":
		return nil, refuse("MissingParameter", "The request must contain the parameter MessageBody.")
	case e.size() > maxBytes:
		return nil, refuse("InvalidParameterValue", "One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", maxBytes)
	case !isXML(e.MessageBody):
		return nil, refuse("InvalidMessageContents", "Invalid binary character was found in the message body.")
	case len(e.MessageAttributes) > maxAttrs:
		return nil, refuse("InvalidParameterValue", "Number of message attributes [%d] exceeds the allowed maximum [%d].", len(e.MessageAttributes), maxAttrs)
	case q.fifo() && e.MessageGroupId == "":
		return nil, refuse("MissingParameter", "The request must contain the parameter MessageGroupId.")
	case q.fifo() && e.MessageDeduplicationId == "":
		return nil, refuse("InvalidParameterValue", "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")
	case q.fifo() && e.DelaySeconds != nil && *e.DelaySeconds > 0:
		return nil, refuse("InvalidParameterValue", "Value %d for parameter DelaySeconds is invalid. Reason: The request include parameter that is not valid for this queue type.", *e.DelaySeconds)
	case e.DelaySeconds != nil && (*e.DelaySeconds < 0 || *e.DelaySeconds > 900):
		return nil, refuse("InvalidParameterValue", "Value %d for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900.", *e.DelaySeconds)
	}
	for name, a := range e.MessageAttributes {
		if a.DataType == "String" && (a.StringValue == nil || *a.StringValue == "") {
			return nil, refuse("InvalidParameterValue", "Message (user) attribute '%s' must contain a non-empty value of type 'String'.", name)
		}
	}
	now := time.Now()
	s.serial++
	m := &message{
		ID: fmt.Sprintf("%08x-0000-4000-8000-%012x", now.Unix(), s.serial), Body: e.MessageBody, Attrs: e.MessageAttributes,
		Group: e.MessageGroupId, Dedupe: e.MessageDeduplicationId, Sent: now.UnixMilli(), sequence: s.serial, visible: now,
	}
	if q.fifo() {
		if at, ok := q.deduped[m.Dedupe]; ok && now.Sub(at) < window {
			return m, nil // accepted, and not stored again
		}
		q.deduped[m.Dedupe] = now
	}
	if e.DelaySeconds != nil && *e.DelaySeconds > 0 {
		m.visible, m.delayed = now.Add(time.Duration(*e.DelaySeconds)*time.Second), true
	}
	if err := s.write(record{Op: "send", Queue: q.name, M: m}); err != nil {
		return nil, err
	}
	q.messages = append(q.messages, m)
	s.wakeLocked()
	return m, nil
}

func isXML(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return true
}

func (s *Server) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

type receiveInput struct {
	QueueUrl                             string
	MaxNumberOfMessages, WaitTimeSeconds *int
	VisibilityTimeout                    *int
}

func (s *Server) receive(r *http.Request, body []byte) (any, error) {
	in, err := parse[receiveInput](body)
	if err != nil {
		return nil, err
	}
	n, wait := 1, 0
	if in.MaxNumberOfMessages != nil {
		n = *in.MaxNumberOfMessages
	}
	if in.WaitTimeSeconds != nil {
		wait = *in.WaitTimeSeconds
	}
	if n < 1 || n > maxBatch || wait < 0 || wait > 20 {
		return nil, refuse("InvalidParameterValue", "MaxNumberOfMessages %d or WaitTimeSeconds %d is out of range", n, wait)
	}
	deadline := time.Now().Add(time.Duration(wait) * time.Second)
	for {
		got, changed, next, err := s.take(in, n)
		if err != nil || len(got) > 0 || !time.Now().Before(deadline) {
			return map[string]any{"Messages": got}, err
		}
		until := deadline
		if !next.IsZero() && next.Before(until) {
			until = next
		}
		timer := time.NewTimer(time.Until(until))
		select {
		case <-changed:
		case <-timer.C:
		case <-r.Context().Done():
			timer.Stop()
			return nil, r.Context().Err()
		}
		timer.Stop()
	}
}

// take hands out what is visible, and says when something becomes visible by itself.
func (s *Server) take(in receiveInput, n int) (got []map[string]any, changed <-chan struct{}, next time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queueLocked(in.QueueUrl)
	if err != nil {
		return nil, nil, next, err
	}
	now := time.Now()
	visibility := time.Duration(q.number("VisibilityTimeout", 30)) * time.Second
	if in.VisibilityTimeout != nil {
		visibility = time.Duration(*in.VisibilityTimeout) * time.Second
	}
	blocked, flying := map[string]bool{}, 0
	for _, m := range q.messages {
		if now.Before(m.visible) {
			// A FIFO group waits for its first message, be it in flight or delayed.
			blocked[m.Group] = true
			if !m.delayed {
				flying++
			}
			if next.IsZero() || m.visible.Before(next) {
				next = m.visible
			}
		}
	}
	if q.fifo() && flying >= maxFIFO || flying >= maxInFlight {
		return nil, nil, next, refuse("OverLimit", "Too many messages in flight.")
	}
	for _, m := range append([]*message(nil), q.messages...) {
		if len(got) == n {
			break
		}
		if now.Before(m.visible) || q.fifo() && blocked[m.Group] {
			continue
		}
		if s.redriveLocked(q, m) {
			continue
		}
		if m.count++; m.count == 1 {
			m.first = now.UnixMilli()
		}
		s.serial++
		m.receipt, m.taken, m.delayed = fmt.Sprintf("%s#%d", m.ID, s.serial), now, false
		m.visible = now.Add(min(visibility, s.Hold))
		got = append(got, m.answer(q))
	}
	return got, s.changed, next, nil
}

// redriveLocked moves a message that was received too often to the dead letter queue of the queue's policy.
func (s *Server) redriveLocked(q *queue, m *message) bool {
	var policy struct {
		DeadLetterTargetArn string      `json:"deadLetterTargetArn"`
		MaxReceiveCount     json.Number `json:"maxReceiveCount"`
	}
	if json.Unmarshal([]byte(q.attrs["RedrivePolicy"]), &policy) != nil {
		return false
	}
	limit, err := strconv.Atoi(policy.MaxReceiveCount.String())
	if err != nil || m.count < limit {
		return false
	}
	arn := policy.DeadLetterTargetArn
	for i := range arn {
		if arn[len(arn)-1-i] == ':' {
			arn = arn[len(arn)-i:]
			break
		}
	}
	to := s.queues[arn]
	if to == nil || s.write(record{Op: "send", Queue: to.name, M: m}) != nil || s.write(record{Op: "delete", Queue: q.name, ID: m.ID}) != nil {
		return false
	}
	q.remove(m.ID)
	to.messages = append(to.messages, m)
	s.wakeLocked()
	return true
}

func (m *message) answer(q *queue) map[string]any {
	attrs := map[string]string{
		"ApproximateReceiveCount": strconv.Itoa(m.count), "SentTimestamp": strconv.FormatInt(m.Sent, 10),
		"ApproximateFirstReceiveTimestamp": strconv.FormatInt(m.first, 10), "SenderId": "fake",
	}
	if q.fifo() {
		attrs["MessageGroupId"], attrs["MessageDeduplicationId"] = m.Group, m.Dedupe
		attrs["SequenceNumber"] = strconv.FormatInt(m.sequence, 10)
	}
	return map[string]any{
		"MessageId": m.ID, "ReceiptHandle": m.receipt, "Body": m.Body, "MD5OfBody": digest(m.Body), "Attributes": attrs, "MessageAttributes": m.Attrs,
	}
}

type handleEntry struct {
	QueueUrl, Id, ReceiptHandle string
	VisibilityTimeout           int
}

func (s *Server) delete(_ *http.Request, body []byte) (any, error) {
	in, err := parse[handleEntry](body)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.with(in.QueueUrl, func(q *queue) error { return s.deleteLocked(q, in) })
}

func (s *Server) change(_ *http.Request, body []byte) (any, error) {
	in, err := parse[handleEntry](body)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.with(in.QueueUrl, func(q *queue) error { return s.changeLocked(q, in) })
}

func (s *Server) with(url string, do func(*queue) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queueLocked(url)
	if err != nil {
		return err
	}
	return do(q)
}

type handleBatch struct {
	QueueUrl string
	Entries  []handleEntry
}

func (s *Server) deleteBatch(_ *http.Request, body []byte) (any, error) {
	return s.handles(body, s.deleteLocked)
}

func (s *Server) changeBatch(_ *http.Request, body []byte) (any, error) {
	return s.handles(body, s.changeLocked)
}

func (s *Server) handles(body []byte, do func(*queue, handleEntry) error) (answer any, err error) {
	in, err := parse[handleBatch](body)
	if err != nil {
		return nil, err
	}
	err = s.with(in.QueueUrl, func(q *queue) error {
		answer, err = batchOf(in.Entries, func(e handleEntry) string { return e.Id }, func(e handleEntry) (map[string]string, error) { return nil, do(q, e) })
		return err
	})
	return answer, err
}

// holder finds the message of a receipt; nil where another delivery came after it, or it is gone.
func (q *queue) holder(receipt string) *message {
	for _, m := range q.messages {
		if m.receipt == receipt {
			return m
		}
	}
	return nil
}

// deleteLocked succeeds for an old receipt too, and does nothing then.
func (s *Server) deleteLocked(q *queue, e handleEntry) error {
	m := q.holder(e.ReceiptHandle)
	if m == nil {
		return nil
	}
	q.remove(m.ID)
	s.wakeLocked()
	return s.write(record{Op: "delete", Queue: q.name, ID: m.ID})
}

func (s *Server) changeLocked(q *queue, e handleEntry) error {
	m := q.holder(e.ReceiptHandle)
	now := time.Now()
	d := time.Duration(e.VisibilityTimeout) * time.Second
	switch {
	case m == nil:
		return refuse("InvalidParameterValue", "Value %s for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.", e.ReceiptHandle)
	case !now.Before(m.visible):
		return refuse("MessageNotInflight", "The message is not in flight.")
	case now.Add(d).Sub(m.taken) > s.Hold:
		return refuse("InvalidParameterValue", "Value %d for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is beyond the limit.", e.VisibilityTimeout)
	}
	m.visible = now.Add(d)
	s.wakeLocked()
	return nil
}

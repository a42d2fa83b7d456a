package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	longFetch  = 500 * time.Millisecond
	shortFetch = 50 * time.Millisecond // while something is held: its end waits behind the fetch
	hiccup     = 100 * time.Millisecond
)

// fetch asks for up to n messages. Its error is the link's end.
func (l *link) fetch(n int) error {
	l.mu.Lock()
	parts, dry, holding := l.parts, l.dry, len(l.held) > 0
	l.mu.Unlock()
	wait := time.Duration(0)
	switch {
	case dry && holding:
		wait = shortFetch
	case dry:
		wait = longFetch
	}
	req := l.request(parts)
	req.MaxWaitMillis, req.MaxRecords, req.BatchSize = int32(wait.Milliseconds()), int32(n), int32(n)
	asked := time.Now()
	// It is never given up: what the broker locks for it would be nobody's.
	ctx, cancel := context.WithTimeout(context.Background(), wait+patience)
	defer cancel()
	resp, err := req.RequestWith(ctx, l.client.Broker(int(l.node)))
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return err
	}
	l.advance()
	l.locked(resp.AcquisitionLockTimeoutMillis)
	clear(l.session)
	for _, p := range parts {
		l.session[p] = true
	}
	var failed, unread error
	var all []*arrived
	for _, t := range resp.Topics {
		for i := range t.Partitions {
			p := &t.Partitions[i]
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				failed = err
				continue
			}
			some, err := l.read(p)
			if err != nil {
				unread = fmt.Errorf("read what partition %d of %s has: %w", p.Partition, l.p.topic, err)
			}
			all = append(all, some...)
		}
	}
	l.sort(all, asked)
	if len(all) == 0 {
		l.mu.Lock()
		l.dry = true
		l.mu.Unlock()
		l.p.g.s.wake()
	}
	if unread != nil {
		l.p.failed(unread)
	}
	switch {
	case failed == nil:
	case errors.Is(failed, kerr.TopicAuthorizationFailed), errors.Is(failed, kerr.GroupAuthorizationFailed), errors.Is(failed, kerr.UnknownTopicID):
		return failed
	default: // it is moving, or the group has not begun with it
		l.p.refresh()
		time.Sleep(hiccup)
	}
	return nil
}

func (l *link) request(parts []int32) *kmsg.ShareFetchRequest {
	req := kmsg.NewPtrShareFetchRequest()
	req.GroupID, req.MemberID, req.ShareSessionEpoch = &l.p.topic, &l.member, l.epoch
	req.MinBytes, req.MaxBytes, req.ShareAcquireMode = 1, 8*mebibyte, 1 // 1: no more records than MaxRecords
	t := kmsg.NewShareFetchRequestTopic()
	t.TopicID = l.topic
	for _, part := range parts {
		if !l.session[part] {
			p := kmsg.NewShareFetchRequestTopicPartition()
			p.Partition = part
			t.Partitions = append(t.Partitions, p)
		}
	}
	if len(t.Partitions) > 0 {
		req.Topics = append(req.Topics, t)
	}
	f := kmsg.NewShareFetchRequestForgottenTopicsData()
	f.TopicID = l.topic
	for part := range l.session {
		if !slices.Contains(parts, part) {
			f.Partitions = append(f.Partitions, part)
		}
	}
	if len(f.Partitions) > 0 {
		req.ForgottenTopicsData = append(req.ForgottenTopicsData, f)
	}
	return req
}

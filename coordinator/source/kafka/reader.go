package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"retinue/coordinator/source"
)

// reader reads single records at known offsets. What came along with one is kept for the next.
type reader struct {
	s      *Source
	topics kadm.TopicDetails // who leads what; nil: ask
	unpack kgo.Decompressor
	last   map[int64]*kgo.Record
	where  position // of last; its offset is not used
}

func newReader(s *Source) *reader { return &reader{s: s, unpack: kgo.DefaultDecompressor()} }

// record returns the record at a position; nil: it does not exist any more.
func (r *reader) record(ctx context.Context, at position) (*kgo.Record, error) {
	if r.where.class == at.class && r.where.partition == at.partition && r.last[at.offset] != nil {
		return r.last[at.offset], nil
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	all, err := r.fetch(ctx, at)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		return nil, r.deleted(ctx, at)
	}
	if err != nil {
		r.topics = nil
		return nil, err
	}
	r.where, r.last = at, map[int64]*kgo.Record{}
	above := false
	for _, record := range all {
		r.last[record.Offset] = record
		above = above || record.Offset > at.offset
	}
	if found := r.last[at.offset]; found != nil || above {
		return found, nil
	}
	return nil, fmt.Errorf("read %s/%d/%d: %w", r.s.topic(at.class), at.partition, at.offset, source.ErrUnavailable)
}

// deleted tells what was deleted from what the broker does not have yet or again.
func (r *reader) deleted(ctx context.Context, at position) error {
	topic := r.s.topic(at.class)
	starts, err := r.s.admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return err
	}
	if start := starts[topic][at.partition]; start.Err != nil || at.offset >= start.Offset {
		return fmt.Errorf("read %s/%d/%d: %w", topic, at.partition, at.offset, source.ErrUnavailable)
	}
	return nil
}

func (r *reader) fetch(ctx context.Context, at position) ([]*kgo.Record, error) {
	name := r.s.topic(at.class)
	if _, ok := r.topics[name]; !ok {
		meta, err := r.s.admin.Metadata(ctx, name)
		if err != nil {
			return nil, err
		}
		r.topics = meta.Topics
	}
	detail := r.topics[name]
	req := kmsg.NewPtrFetchRequest()
	req.MinBytes, req.MaxBytes = 1, mebibyte // at least one batch comes whatever its size
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = name, detail.ID
	part := kmsg.NewFetchRequestTopicPartition()
	part.Partition, part.FetchOffset, part.PartitionMaxBytes = at.partition, at.offset, mebibyte
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	answer, err := req.RequestWith(ctx, r.s.producer.Broker(int(detail.Partitions[at.partition].Leader)))
	if err != nil {
		return nil, err
	}
	if err := kerr.ErrorForCode(answer.ErrorCode); err != nil {
		return nil, err
	}
	if len(answer.Topics) != 1 || len(answer.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("read %s: the answer has %d topics", name, len(answer.Topics))
	}
	opts := kgo.ProcessFetchPartitionOpts{Offset: at.offset, Topic: name, Partition: at.partition}
	fetched, _ := kgo.ProcessFetchPartition(opts, &answer.Topics[0].Partitions[0], r.unpack, nil)
	return fetched.Records, fetched.Err
}

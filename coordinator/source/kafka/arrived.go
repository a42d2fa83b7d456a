package kafka

import (
	"context"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// arrived is a record that the broker has locked for us.
type arrived struct {
	grip
	due time.Time
	r   *kgo.Record // nil: there is none, as its place was compacted or controls a transaction
}

func (l *link) read(p *kmsg.ShareFetchResponseTopicPartition) (all []*arrived, err error) {
	if len(p.AcquiredRecords) == 0 {
		return nil, nil
	}
	opts := kgo.ProcessFetchPartitionOpts{Topic: l.p.topic, Partition: p.Partition, Offset: p.AcquiredRecords[0].FirstOffset}
	in := kmsg.NewFetchResponseTopicPartition()
	in.Partition, in.RecordBatches, in.HighWatermark = p.Partition, p.Records, math.MaxInt64
	fetched, _ := kgo.ProcessFetchPartition(opts, &in, kgo.DefaultDecompressor(), nil)
	records := map[int64]*kgo.Record{}
	for _, r := range fetched.Records {
		records[r.Offset] = r
	}
	for _, a := range p.AcquiredRecords {
		for offset := a.FirstOffset; offset <= a.LastOffset; offset++ {
			one := &arrived{r: records[offset]}
			one.grip = grip{link: l, at: position{l.p.n, p.Partition, offset}, count: int(a.DeliveryCount)}
			if one.r == nil && fetched.Err != nil {
				one.count = -1 // it cannot be read
			}
			if one.r != nil {
				message := l.p.g.s.message(l.p.n, one.r)
				one.m, one.due = message.m, message.due
				one.m.Deliveries += one.count - 1
			}
			all = append(all, one)
		}
	}
	return all, fetched.Err
}

// sort hands on what arrived. A record that was delivered before goes on as a copy whose count begins again, so the broker's
// limit ends none; one whose time has not come goes on as a mark.
func (l *link) sort(all []*arrived, asked time.Time) {
	if len(all) == 0 {
		return
	}
	s := l.p.g.s
	var good []*grip
	var later, aside []*op
	var out []*kgo.Record
	l.mu.Lock()
	if len(l.held) == 0 {
		l.renewed = asked
	}
	l.dry = false
	for _, a := range all {
		switch {
		case a.r == nil && a.count < 0:
			l.held[a.at] = &a.grip // and given back until the broker ends it, it would be lost
			continue
		case a.r == nil:
			later = append(later, newOp(gap, a.at))
			continue
		}
		l.held[a.at] = &a.grip
		switch {
		case time.Now().Before(a.due):
			out = append(out, s.markRecord(a.at, keyOf(a.at, s.holder), mark{at: a.at, due: a.due}.value()))
			aside = append(aside, newOp(accept, a.at))
		case a.count > 1:
			c := s.copyOf(a.r, a.count-1)
			c.Partition = anywhere
			out = append(out, c)
			aside = append(aside, newOp(accept, a.at))
		default:
			good = append(good, &a.grip)
		}
	}
	l.mu.Unlock()
	l.submit(later...)
	if len(out) > 0 {
		s.tasks.Go(func() { l.replace(out, aside) })
	}
	l.p.arrived(good)
}

// replace accepts records when what stands for them is stored. A death between delivers twice.
func (l *link) replace(out []*kgo.Record, originals []*op) {
	s := l.p.g.s
	for {
		ctx, cancel := bounded(context.Background())
		err := s.produce(ctx, out...)
		cancel()
		if err == nil {
			break
		}
		select {
		case <-s.closed:
			return
		case <-l.gone:
			return
		case <-time.After(again):
		}
		for i, r := range out { // the client has written into what it tried
			out[i] = &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}
			if r.Topic == l.p.topic {
				out[i].Partition = anywhere
			}
		}
	}
	l.submit(originals...)
}

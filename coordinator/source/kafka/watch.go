package kafka

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"retinue/coordinator/source/internal/ledger"
)

const (
	commitEvery = 200 * time.Millisecond
	again       = 500 * time.Millisecond // after something that did not work
	atOnce      = 500                    // copies
)

// watch takes part in the group over the marks: it delivers again what nobody holds any more.
type watch struct {
	s      *Source
	client *kgo.Client
	reader *reader
	ctx    context.Context // until the end
	cancel context.CancelFunc
	wake   chan struct{} // something was read, or a board came or went

	mu     sync.Mutex
	boards map[int32]*board
	lines  int64
}

func newWatch(s *Source) (*watch, error) {
	w := &watch{s: s, reader: newReader(s), wake: make(chan struct{}, 1), boards: map[int32]*board{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	var err error
	w.client, err = s.member(s.marksTopic(), kgo.OnPartitionsAssigned(w.assigned), kgo.OnPartitionsRevoked(w.revoked), kgo.OnPartitionsLost(w.revoked))
	if err != nil {
		return nil, err
	}
	s.tasks.Go(w.read)
	s.tasks.Go(w.work)
	s.tasks.Go(w.commitAll)
	return w, nil
}

func (w *watch) close(ctx context.Context) error {
	w.cancel()
	err := w.client.LeaveGroupContext(ctx)
	w.client.CloseAllowingRebalance()
	return err
}

func (w *watch) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watch) assigned(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range parts[w.s.marksTopic()] {
		w.boards[p] = newBoard(w.s.holder)
	}
	w.notify()
}

func (w *watch) revoked(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range parts[w.s.marksTopic()] {
		delete(w.boards, p)
	}
	w.notify()
}

// read keeps the boards as the marks are.
func (w *watch) read() {
	for {
		fs := w.client.PollRecords(context.Background(), 10_000)
		if fs.IsClientClosed() {
			return
		}
		w.mu.Lock()
		now := time.Now()
		fs.EachRecord(func(r *kgo.Record) {
			if b := w.boards[r.Partition]; b != nil {
				b.apply(r, now)
			}
		})
		w.mu.Unlock()
		w.client.AllowRebalance()
		w.notify()
	}
}

// work delivers what is due, one partition after the other.
func (w *watch) work() {
	trim := time.NewTicker(w.s.cfg.trim)
	defer trim.Stop()
	for w.ctx.Err() == nil {
		p, b, next := w.next()
		if b != nil {
			if err := w.settle(p, b); err != nil {
				pause(w.ctx, again)
			}
			continue
		}
		timer := time.NewTimer(min(time.Until(next), time.Minute))
		select {
		case <-w.ctx.Done():
		case <-w.wake:
		case <-timer.C:
		case <-trim.C:
			w.trim()
		}
		timer.Stop()
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// next is the partition in which something is due for the longest time, or when that will be.
func (w *watch) next() (partition int32, b *board, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	at = now.Add(time.Hour)
	for p, board := range w.boards {
		if alarm, ok := board.alarm(); ok && alarm.Before(at) {
			partition, b, at = p, board, alarm
		}
	}
	if at.After(now) {
		b = nil
	}
	return partition, b, at
}

// settle delivers what is due in a partition.
func (w *watch) settle(p int32, b *board) error {
	if ok, err := w.line(p, b); !ok {
		return err
	}
	w.mu.Lock()
	due := b.due(time.Now(), atOnce)
	w.mu.Unlock()
	var copies, ends []*kgo.Record
	var copied []string
	for key, e := range due {
		r, err := w.reader.record(w.ctx, e.at)
		if err != nil {
			w.mu.Lock()
			b.postpone(key, time.Now().Add(again))
			w.mu.Unlock()
			continue
		}
		copied = append(copied, key)
		if r != nil { // else somebody deleted it
			c := w.s.copyOf(r, e.handed)
			if c.Partition = anywhere; c.Key == nil {
				// Its old partition may be a dead consumer's, for as long as its session lasts.
				c.Partition = w.s.consumer.own(e.at.class)
			}
			copies = append(copies, c)
		}
		ends = append(ends, w.s.markRecord(e.at, key, nil))
	}
	if err := w.s.produce(w.ctx, copies...); err != nil {
		return err
	}
	w.mu.Lock()
	for _, key := range copied {
		if e := b.open[key]; e != nil {
			e.copied = true
		}
	}
	w.mu.Unlock()
	return w.s.produce(w.ctx, ends...)
}

// line waits until everything was read that was written to a partition before now. False: it is not ours any more.
func (w *watch) line(p int32, b *board) (bool, error) {
	w.mu.Lock()
	w.lines++
	n := w.lines
	w.mu.Unlock()
	ctx, cancel := bounded(w.ctx)
	defer cancel()
	r := &kgo.Record{Topic: w.s.marksTopic(), Partition: p, Key: []byte(lineKey), Value: fmt.Appendf(nil, "%s %d", w.s.holder, n)}
	if err := w.s.produce(ctx, r); err != nil {
		return false, err
	}
	for {
		w.mu.Lock()
		current, read := w.boards[p] == b, b.line >= n
		w.mu.Unlock()
		if !current || read {
			return current, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// copyOf is a message as a new record at the end of its class.
func (s *Source) copyOf(r *kgo.Record, handed int) *kgo.Record {
	c := &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
	count, known := 0, false
	for _, h := range r.Headers {
		switch h.Key {
		case ledger.HeaderDue:
			continue
		case headerCount:
			count, _ = strconv.Atoi(string(h.Value))
			continue
		case ledger.HeaderID:
			known = true
		}
		c.Headers = append(c.Headers, h)
	}
	if !known {
		c.Headers = append(c.Headers, kgo.RecordHeader{Key: ledger.HeaderID, Value: []byte(idOf(r))})
	}
	count += handed
	c.Headers = append(c.Headers, kgo.RecordHeader{Key: headerCount, Value: []byte(strconv.Itoa(count))})
	return c
}

// commitAll stores now and then where to continue, and how many messages are in flight and delayed.
func (w *watch) commitAll() {
	ticker := time.NewTicker(commitEvery)
	defer ticker.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-ticker.C:
		}
		ends, texts, old := w.changed()
		if len(ends) == 0 {
			continue
		}
		ctx, cancel := bounded(w.ctx)
		w.s.produce(ctx, old...) // it is tried again
		ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
			for t := range req.Topics {
				for i := range req.Topics[t].Partitions {
					p := &req.Topics[t].Partitions[i]
					text := texts[p.Partition]
					p.Metadata = &text
				}
			}
			return nil
		})
		if commit(ctx, w.client, w.s.marksTopic(), ends) != nil {
			w.spoiled(slices.Collect(maps.Keys(ends)))
		}
		cancel()
	}
}

// changed is what to commit.
func (w *watch) changed() (ends map[int32]kgo.EpochOffset, texts map[int32]string, old []*kgo.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ends, texts = map[int32]kgo.EpochOffset{}, map[int32]string{}
	for p, b := range w.boards {
		b.forget(time.Now())
		if !b.dirty {
			continue
		}
		b.dirty = false
		ends[p] = kgo.EpochOffset{Epoch: -1, Offset: b.low()}
		flying, delayed := b.counts()
		texts[p] = fmt.Sprint(flying, delayed)
		for key, m := range b.old(time.Now()) {
			old = append(old, w.s.markRecord(m.at, key, m.value()))
		}
	}
	return ends, texts, old
}

// spoiled commits again later.
func (w *watch) spoiled(parts []int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range parts {
		if b := w.boards[p]; b != nil {
			b.dirty = true
		}
	}
}

// trim deletes records that are finished, and all before them are.
func (w *watch) trim() {
	ctx, cancel := bounded(w.ctx)
	defer cancel()
	w.mu.Lock()
	boards := maps.Clone(w.boards)
	w.mu.Unlock()
	marks, err := w.s.admin.ListStartOffsets(ctx, w.s.marksTopic())
	if err != nil {
		return
	}
	n := int32(len(marks[w.s.marksTopic()]))
	for class := range w.s.cfg.Classes {
		topic := w.s.topic(class)
		// The position first: the marks of all before it are above the line that is written next.
		done, err := w.s.consumer.finished(ctx, topic)
		if err != nil || n == 0 {
			return
		}
		ready := map[int32]bool{}
		for p, b := range boards {
			ready[p], _ = w.line(p, b)
		}
		finished := kadm.Offsets{}
		w.mu.Lock()
		for p, at := range done {
			if b := boards[p%n]; b != nil && ready[p%n] {
				finished.AddOffset(topic, p, b.first(class, p, at), -1)
			}
		}
		w.mu.Unlock()
		w.s.admin.DeleteRecords(ctx, finished) // who may not do it has the topic's retention
	}
}

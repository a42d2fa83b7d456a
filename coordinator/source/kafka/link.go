package kafka

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// What is said to the broker about a record.
const (
	nothing int8 = -1 // only that all before is done
	gap     int8 = 0  // there is none
	accept  int8 = 1
	release int8 = 2
	renew   int8 = 4
)

// op is one thing to say about one record.
type op struct {
	kind int8
	at   position
	done chan error
	also []*op // the same, from others
}

func newOp(kind int8, at position) *op { return &op{kind: kind, at: at, done: make(chan error, 1)} }

func (o *op) answer(err error) {
	o.done <- err
	for _, other := range o.also {
		other.done <- err
	}
}

func (o *op) wait(ctx context.Context) error {
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// link is a member of a share group and its session with one broker. One goroutine sends its requests one after the other, as a
// session wants it. A link that breaks is not mended: the broker frees what it had, and the next one is another member.
//
// The share consumer of franz-go is not used: it accepts at each poll what was polled before and only renewed, so one client
// cannot hold some messages while it waits for others, and a client for each message costs connections and a member each.
type link struct {
	p      *pool
	client *kgo.Client
	node   int32
	topic  [16]byte
	member string
	wake   chan struct{}
	gone   chan struct{} // closed at the end

	// Of the goroutine.
	epoch   int32
	session map[int32]bool // partitions in the broker's session
	renewed time.Time
	lock    time.Duration

	mu     sync.Mutex
	parts  []int32
	ops    []*op
	held   map[position]*grip
	dry    bool // the broker had nothing more
	over   bool
	broken error // by the heartbeats
}

func newLink(p *pool, client *kgo.Client, node int32, topic [16]byte, parts []int32) *link {
	id := make([]byte, 16)
	rand.Read(id)
	id[0] &= 0x3f // Kafka's own begin with no dash, which its tools would take for an option
	return &link{
		p: p, client: client, node: node, topic: topic, parts: parts, member: base64.RawURLEncoding.EncodeToString(id),
		wake: make(chan struct{}, 1), gone: make(chan struct{}), session: map[int32]bool{}, held: map[position]*grip{},
	}
}

func (l *link) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *link) submit(ops ...*op) {
	l.mu.Lock()
	over := l.over
	if !over {
		l.ops = append(l.ops, ops...)
	}
	l.mu.Unlock()
	if !over {
		l.notify()
		return
	}
	for _, o := range ops {
		o.answer(fmt.Errorf("the session with broker %d is over: %w", l.node, source.ErrLost))
	}
}

// lead is told which partitions the broker leads.
func (l *link) lead(parts []int32) {
	l.mu.Lock()
	l.parts = parts
	l.mu.Unlock()
	l.notify()
}

func (l *link) ended() bool      { l.mu.Lock(); defer l.mu.Unlock(); return l.over }
func (l *link) empty() bool      { l.mu.Lock(); defer l.mu.Unlock(); return l.dry }
func (l *link) holds() bool      { l.mu.Lock(); defer l.mu.Unlock(); return len(l.held) > 0 }
func (l *link) has(h *grip) bool { l.mu.Lock(); defer l.mu.Unlock(); return l.held[h.at] == h }

// run serves until the link breaks or its pool stops.
func (l *link) run(life context.Context) {
	err := l.serve(life)
	l.mu.Lock()
	l.over = true
	ops, gone := l.ops, map[*grip]bool{}
	for _, h := range l.held {
		gone[h] = true
	}
	clear(l.held)
	l.mu.Unlock()
	l.p.lost(gone)
	for _, o := range ops {
		o.answer(errors.Join(err, source.ErrUnavailable))
	}
	if life.Err() == nil && err != nil && !forgotten(err) {
		l.p.failed(err)
	}
	l.leave(life.Err() == nil)
	close(l.gone)
	l.p.refresh()
}

// forgotten says that the broker does not know the session or the member any more, which a new link heals.
func forgotten(err error) bool {
	for _, known := range []error{kerr.ShareSessionNotFound, kerr.InvalidShareSessionEpoch, kerr.UnknownMemberID, kerr.FencedMemberEpoch} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// leave ends session and membership, so that nobody waits for them. Broken: the session may be gone.
func (l *link) leave(broken bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if l.epoch > 0 && !broken {
		req := l.acknowledgement()
		req.ShareSessionEpoch = -1
		req.RequestWith(ctx, l.client.Broker(int(l.node)))
	}
	req := kmsg.NewPtrShareGroupHeartbeatRequest()
	req.GroupID, req.MemberID, req.MemberEpoch = l.p.topic, l.member, -1
	req.RequestWith(ctx, l.client)
}

func (l *link) serve(life context.Context) error {
	every, epoch, err := l.heartbeat(0)
	if err != nil {
		if errors.Is(err, kerr.GroupIDNotFound) || errors.Is(err, kerr.InconsistentGroupProtocol) {
			err = hint.Wrap(fmt.Errorf("%w: group %s is no share group: %w", source.ErrConfig, l.p.topic, err),
				"a consumer of an older version may have made it: stop all of them and delete the group")
		}
		if errors.Is(err, kerr.GroupMaxSizeReached) {
			err = hint.Wrap(err, "each coordinator is a member for each broker: raise group.share.max.size, Kafka's default is 200")
		}
		return err
	}
	beating, stop := context.WithCancel(life)
	var beats sync.WaitGroup
	beats.Go(func() { l.beat(beating, every, epoch) })
	defer beats.Wait()
	defer stop()
	for {
		if life.Err() != nil {
			return nil
		}
		if ops, err := l.pending(); err != nil {
			return err
		} else if len(ops) > 0 {
			if err := l.say(ops); err != nil {
				return err
			}
			continue
		}
		if n := l.p.room(); n > 0 {
			if err := l.fetch(n); err != nil {
				return err
			}
			continue
		}
		timer := time.NewTimer(l.untilRenewal())
		select {
		case <-life.Done():
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// heartbeat tells the group that this member lives.
func (l *link) heartbeat(epoch int32) (every time.Duration, next int32, err error) {
	req := kmsg.NewPtrShareGroupHeartbeatRequest()
	req.GroupID, req.MemberID, req.MemberEpoch = l.p.topic, l.member, epoch
	if epoch == 0 {
		req.SubscribedTopicNames = []string{l.p.topic}
	}
	ctx, cancel := bounded(context.Background())
	defer cancel()
	resp, err := req.RequestWith(ctx, l.client)
	if err != nil {
		return 0, epoch, err
	}
	every = max(time.Duration(resp.HeartbeatIntervalMillis)*time.Millisecond, 100*time.Millisecond)
	return every, resp.MemberEpoch, kerr.ErrorForCode(resp.ErrorCode)
}

func (l *link) beat(ctx context.Context, every time.Duration, epoch int32) {
	for wait := every; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		next, now, err := l.heartbeat(epoch)
		switch {
		case err == nil:
			wait, epoch = next, now
		case forgotten(err), errors.Is(err, kerr.GroupIDNotFound):
			l.mu.Lock()
			l.broken = kerr.UnknownMemberID
			l.mu.Unlock()
			l.notify()
			return
		default: // the group's broker is moving, or away: the session is another matter
			wait = min(every, time.Second)
		}
	}
}

// pending is what is to be said next, renewals included.
func (l *link) pending() ([]*op, error) {
	due := l.untilRenewal() <= 0
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return nil, l.broken
	}
	ops := l.ops
	l.ops = nil
	if due {
		l.renewed = time.Now()
		for at := range l.held {
			ops = append(ops, newOp(renew, at))
		}
	}
	return ops, nil
}

func (l *link) untilRenewal() time.Duration {
	if l.lock == 0 || !l.holds() {
		return time.Minute
	}
	return time.Until(l.renewed.Add(l.lock / 3))
}

// say sends what is to be said: first what ends records, then renewals of the others.
func (l *link) say(ops []*op) error {
	if err := l.acknowledge(l.choose(ops, false)); err != nil {
		fail(l.choose(ops, true), err)
		return err
	}
	return l.acknowledge(l.choose(ops, true))
}

// choose are the renewals or all else of ops, at most one for each record. What cannot be said is answered.
func (l *link) choose(ops []*op, renewals bool) (chosen []*op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := map[position]*op{}
	for _, o := range ops {
		if (o.kind == renew) != renewals {
			continue
		}
		switch f := first[o.at]; {
		case o.kind == nothing:
			o.answer(nil)
		case f != nil && f.kind == o.kind:
			f.also = append(f.also, o)
		case f != nil, o.kind != gap && l.held[o.at] == nil:
			o.answer(source.ErrLost) // it has ended in another way, or is not ours
		default:
			first[o.at] = o
			chosen = append(chosen, o)
		}
	}
	return chosen
}

func fail(ops []*op, err error) {
	for _, o := range ops {
		o.answer(fmt.Errorf("%w: %w", source.ErrUnavailable, err))
	}
}

func (l *link) acknowledgement() *kmsg.ShareAcknowledgeRequest {
	req := kmsg.NewPtrShareAcknowledgeRequest()
	req.GroupID, req.MemberID, req.ShareSessionEpoch = &l.p.topic, &l.member, l.epoch
	return req
}

// acknowledge says things about records and answers who waits. Its error is the link's end.
func (l *link) acknowledge(ops []*op) error {
	if len(ops) == 0 {
		return nil
	}
	byPart := map[int32][]*op{}
	req := l.acknowledgement()
	for _, o := range ops {
		byPart[o.at.partition] = append(byPart[o.at.partition], o)
		req.IsRenewAck = req.IsRenewAck || o.kind == renew
	}
	t := kmsg.NewShareAcknowledgeRequestTopic()
	t.TopicID = l.topic
	for part, ops := range byPart {
		p := kmsg.NewShareAcknowledgeRequestTopicPartition()
		p.Partition, p.AcknowledgementBatches = part, batches(ops)
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	ctx, cancel := bounded(context.Background())
	defer cancel()
	resp, err := req.RequestWith(ctx, l.client.Broker(int(l.node)))
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		fail(ops, err)
		return err
	}
	l.advance()
	l.locked(resp.AcquisitionLockTimeoutMillis)
	var doubt [][]*op
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			ops := byPart[p.Partition]
			delete(byPart, p.Partition)
			switch err := kerr.ErrorForCode(p.ErrorCode); {
			case err == nil:
				l.settled(ops)
			case len(ops) > 1 && (errors.Is(err, kerr.InvalidRecordState) || errors.Is(err, kerr.InvalidRequest)):
				doubt = append(doubt, ops) // one of them is wrong, and all were refused
			case errors.Is(err, kerr.InvalidRecordState), errors.Is(err, kerr.InvalidRequest), errors.Is(err, kerr.NotLeaderForPartition),
				errors.Is(err, kerr.FencedLeaderEpoch), errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
				l.lost(ops)
				if !errors.Is(err, kerr.InvalidRecordState) {
					l.p.refresh()
				}
			default:
				for _, o := range ops {
					o.answer(err) // it is still ours, as far as known
				}
			}
		}
	}
	for _, ops := range byPart {
		fail(ops, errors.New("the broker left it out of its answer"))
	}
	for _, ops := range doubt {
		for _, half := range [][]*op{ops[:len(ops)/2], ops[len(ops)/2:]} {
			if err := l.acknowledge(half); err != nil {
				return err
			}
		}
	}
	return nil
}

// batches are ranges of records of which the same is said.
func batches(ops []*op) (all []kmsg.ShareAcknowledgeRequestTopicPartitionAcknowledgementBatch) {
	slices.SortFunc(ops, func(a, b *op) int { return int(a.at.offset - b.at.offset) })
	for _, o := range ops {
		if n := len(all) - 1; n >= 0 && all[n].LastOffset == o.at.offset-1 && all[n].AcknowledgeTypes[0] == o.kind {
			all[n].LastOffset++
			continue
		}
		b := kmsg.NewShareAcknowledgeRequestTopicPartitionAcknowledgementBatch()
		b.FirstOffset, b.LastOffset, b.AcknowledgeTypes = o.at.offset, o.at.offset, []int8{o.kind}
		all = append(all, b)
	}
	return all
}

func (l *link) settled(ops []*op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range ops {
		if o.kind != renew {
			delete(l.held, o.at)
		}
		o.answer(nil)
	}
}

func (l *link) lost(ops []*op) {
	gone := map[*grip]bool{}
	l.mu.Lock()
	for _, o := range ops {
		if h := l.held[o.at]; h != nil {
			gone[h] = true
		}
		delete(l.held, o.at)
	}
	l.mu.Unlock()
	l.p.lost(gone)
	for _, o := range ops {
		o.answer(source.ErrLost)
	}
}

func (l *link) advance() {
	if l.epoch++; l.epoch == math.MaxInt32 {
		l.epoch = 1
	}
}

func (l *link) locked(millis int32) {
	if millis > 0 {
		l.lock = time.Duration(millis) * time.Millisecond
		l.p.g.lock.Store(int64(l.lock))
	}
}

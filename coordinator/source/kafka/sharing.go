package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// sharing takes messages by share groups: the broker leases single records.
type sharing struct {
	s     *Source
	pools []*pool
	turns source.Classes
	lock  atomic.Int64 // how long the broker's lasts; 0: not known yet

	ticking sync.Once
}

func newSharing(s *Source) *sharing {
	g := &sharing{s: s, turns: source.Classes{N: s.cfg.Classes}}
	for n := range s.cfg.Classes {
		g.pools = append(g.pools, newPool(g, n))
	}
	return g
}

func (g *sharing) join() error {
	for _, p := range g.pools {
		if err := p.join(); err != nil {
			return err
		}
	}
	g.ticking.Do(func() { g.s.tasks.Go(g.tick) })
	return nil
}

// begin makes new groups start at the oldest record. Kafka's default is the end: what was published before the first consumer
// came would never arrive.
func (g *sharing) begin(ctx context.Context, group string) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	c.Name, c.Value = "share.auto.offset.reset", kmsg.StringPtr("earliest")
	r.Configs = append(r.Configs, c)
	req.Resources = append(req.Resources, r)
	resp, err := req.RequestWith(ctx, g.s.producer)
	if err != nil {
		return err
	}
	for _, r := range resp.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			err = fmt.Errorf("set share.auto.offset.reset of group %s: %w", group, err)
			if errors.Is(err, kerr.GroupAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed) {
				return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err), "the user needs AlterConfigs on the groups that begin with the prefix")
			}
			return err
		}
	}
	return nil
}

func (g *sharing) enough() {
	for _, p := range g.pools {
		p.ask(0)
	}
}

// take hands out what has arrived. Where one class has something, the others are waited for as long as their brokers need to
// say whether they have.
func (g *sharing) take(ctx context.Context, n int) ([]*source.Message, bool, error) {
	for _, p := range g.pools {
		p.ask(n)
	}
	var left [source.MaxClasses]int
	late := time.NewTimer(100 * time.Millisecond)
	defer late.Stop()
	for waited := false; ; {
		some, settled := false, true
		for i, p := range g.pools {
			ready, known, err := p.state()
			if err != nil && ready == 0 {
				return nil, false, err
			}
			left[i] = ready
			some, settled = some || ready > 0, settled && known
		}
		if !some {
			return nil, false, nil
		}
		if settled || waited {
			break
		}
		select {
		case <-g.s.events:
		case <-late.C:
			waited = true
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	var ms []*source.Message
	for range n {
		class := g.turns.Next(func(class int) bool { return left[class] > 0 })
		if class < 0 {
			break
		}
		left[class]--
		h := g.pools[class].next()
		if h == nil {
			continue // lost just now
		}
		// The broker's lock is held until the message ends or nobody extends it. So the lease begins here.
		if g.s.held.Add(h.m, taken{at: h.at, grip: h}, g.s.held.Now()) {
			ms = append(ms, h.m)
		}
		if !h.link.has(h) {
			g.s.held.Drop(h.m)
		}
	}
	return ms, false, nil
}

func (g *sharing) leave(ctx context.Context) error {
	return g.each(func(p *pool) error { return p.leave(ctx) })
}

func (g *sharing) close(ctx context.Context, _ []taken) error {
	err := g.each(func(p *pool) error { return p.close(ctx) })
	select {
	case <-g.s.closed: // the counts go with their time
	default:
		err = errors.Join(err, g.s.produce(ctx, g.countMark(nil)))
	}
	return err
}

func (g *sharing) each(do func(*pool) error) error {
	var wg sync.WaitGroup
	failed := make([]error, len(g.pools))
	for i, p := range g.pools {
		wg.Go(func() { failed[i] = do(p) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

func (g *sharing) end(ctx context.Context, do deed, all []taken) []error {
	kind := map[string]int8{"extend": renew, "ack": accept, "release": release}[do.verb]
	if do.due.IsZero() {
		return perform(ctx, kind, all)
	}
	// The mark first: a death after it delivers twice.
	var marks []*kgo.Record
	for _, t := range all {
		marks = append(marks, g.s.markRecord(t.at, keyOf(t.at, g.s.holder), mark{at: t.at, due: do.due, handed: t.grip.count}.value()))
	}
	if err := g.s.produce(ctx, marks...); err != nil {
		failed := make([]error, len(all))
		for i := range failed {
			failed[i] = err
		}
		return failed
	}
	failed := perform(ctx, accept, all)
	var spare []*kgo.Record
	for i, err := range failed {
		if errors.Is(err, source.ErrLost) { // the broker delivers it again
			marks[i].Value = nil
			spare = append(spare, g.s.markRecord(all[i].at, string(marks[i].Key), nil))
		}
	}
	g.s.produce(ctx, spare...) // where it fails it is delivered twice
	return failed
}

// perform does one thing to messages, in one request to each broker where that is possible.
func perform(ctx context.Context, kind int8, all []taken) []error {
	ops := make([]*op, len(all))
	byLink := map[*link][]*op{}
	for i, t := range all {
		ops[i] = newOp(kind, t.at)
		byLink[t.grip.link] = append(byLink[t.grip.link], ops[i])
	}
	for l, ops := range byLink {
		l.submit(ops...)
	}
	failed := make([]error, len(all))
	for i, o := range ops {
		failed[i] = o.wait(ctx)
	}
	return failed
}

func (g *sharing) expired(all []taken) {
	for _, t := range all {
		t.grip.link.submit(newOp(release, t.at))
	}
}

// described are the start and lag of a group's partitions, where it has begun with them.
func (g *sharing) described(ctx context.Context, topics ...string) (map[string]map[int32]kadm.ShareOffset, error) {
	groups, err := g.s.admin.DescribeShareGroupOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	all := map[string]map[int32]kadm.ShareOffset{}
	for _, topic := range topics {
		group := groups[topic]
		if group.Err != nil && !errors.Is(group.Err, kerr.GroupIDNotFound) {
			return nil, group.Err
		}
		all[topic] = map[int32]kadm.ShareOffset{}
		for p, o := range group.Offsets[topic] {
			if o.Err != nil {
				return nil, o.Err
			}
			if o.StartOffset >= 0 {
				all[topic][p] = o
			}
		}
	}
	return all, nil
}

func (g *sharing) finished(ctx context.Context, topic string) (map[int32]int64, error) {
	all, err := g.described(ctx, topic)
	done := map[int32]int64{}
	for p, o := range all[topic] {
		done[p] = o.StartOffset
	}
	return done, err
}

// waiting includes what is in flight: a share group does not tell it.
func (g *sharing) waiting(ctx context.Context) (n int64, inFlight bool, err error) {
	topics := g.s.topics()
	begun, err := g.described(ctx, topics...)
	if err != nil {
		return 0, true, err
	}
	starts, err := g.s.admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return 0, true, err
	}
	ends, err := g.s.admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return 0, true, err
	}
	for _, topic := range topics {
		for p, end := range ends[topic] {
			if err := errors.Join(end.Err, starts[topic][p].Err); err != nil {
				return 0, true, err
			}
			switch o, ok := begun[topic][p]; {
			case !ok:
				n += end.Offset - starts[topic][p].Offset
			case o.Lag >= 0:
				n += o.Lag
			default:
				n += end.Offset - o.StartOffset
			}
		}
	}
	return n, true, nil
}

func (g *sharing) own(int) int32 { return anywhere }

// redelivery: the broker frees what a broken connection had, and at the end of the lock what one had that hangs.
func (g *sharing) redelivery() time.Duration {
	lock := time.Duration(g.lock.Load())
	if lock == 0 {
		lock = 30 * time.Second // Kafka's default
	}
	return lock + time.Second
}

const (
	countEvery = 500 * time.Millisecond
	countFor   = 4 * time.Second // without news, as who died tells none
)

// tick tells the watchers how many messages are in flight here, and gives back what came too late to be wanted.
func (g *sharing) tick() {
	ticker := time.NewTicker(countEvery)
	defer ticker.Stop()
	told, at := 0, time.Time{}
	for {
		select {
		case <-g.s.closed:
			return
		case <-ticker.C:
		}
		for _, p := range g.pools {
			p.overdue()
		}
		n := 0
		g.s.held.Each(func(*source.Message, taken) { n++ })
		if n == told && (n == 0 || time.Since(at) < countFor/3) {
			continue
		}
		var value []byte
		if n > 0 {
			value = fmt.Appendf(nil, "%d %d", n, countFor.Milliseconds())
		}
		ctx, cancel := bounded(context.Background())
		if g.s.produce(ctx, g.countMark(value)) == nil {
			told, at = n, time.Now()
		}
		cancel()
	}
}

func (g *sharing) countMark(value []byte) *kgo.Record {
	h := fnv.New32a()
	h.Write([]byte(g.s.holder))
	return &kgo.Record{Topic: g.s.marksTopic(), Partition: int32(h.Sum32() >> 1), Key: []byte(countKey + g.s.holder), Value: value}
}

package kafka

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"retinue/coordinator/source"
)

// classic takes messages by classic groups and marks.
type classic struct {
	s       *Source
	classes []*class
	turns   source.Classes
}

func newClassic(s *Source) *classic {
	g := &classic{s: s, turns: source.Classes{N: s.cfg.Classes}}
	for n := range s.cfg.Classes {
		g.classes = append(g.classes, newClass(s, n))
	}
	return g
}

func (g *classic) join() error {
	for _, c := range g.classes {
		if err := c.join(); err != nil {
			return err
		}
	}
	return nil
}

func (g *classic) enough() {}

func (g *classic) leave(ctx context.Context) error {
	var wg sync.WaitGroup
	failed := make([]error, len(g.classes))
	for i, c := range g.classes {
		wg.Go(func() { failed[i] = c.leave(ctx) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

// take marks the next messages and commits behind them. It is not given up half way: what was marked is ours.
func (g *classic) take(ctx context.Context, n int) (ms []*source.Message, some bool, err error) {
	for _, c := range g.classes {
		c.taking.Lock()
		defer c.taking.Unlock()
	}
	var left [source.MaxClasses]int
	for i, c := range g.classes {
		if left[i], err = c.waiting(); err != nil && left[i] == 0 {
			return nil, false, err
		}
	}
	var wanted [source.MaxClasses]int
	for range n {
		class := g.turns.Next(func(class int) bool { return left[class] > 0 })
		if class < 0 {
			break
		}
		left[class]--
		wanted[class]++
	}
	ctx, cancel := bounded(context.WithoutCancel(ctx))
	defer cancel()
	for i, c := range g.classes {
		if wanted[i] == 0 {
			continue
		}
		some = true
		taken, err := g.takeFrom(ctx, c, wanted[i])
		ms = append(ms, taken...)
		if err != nil && len(ms) == 0 {
			return nil, false, err
		}
	}
	return ms, some, nil
}

func (g *classic) takeFrom(ctx context.Context, c *class, n int) ([]*source.Message, error) {
	all := c.choose(n)
	sent := g.s.held.Now()
	var marks []*kgo.Record
	for _, a := range all {
		m := mark{at: a.at, lease: g.s.cfg.Lease}
		if time.Now().Before(a.due) {
			m = mark{at: a.at, due: a.due}
		}
		marks = append(marks, g.s.markRecord(a.at, keyOf(a.at, g.s.holder), m.value()))
	}
	err := g.s.produce(ctx, marks...)
	if err == nil {
		err = c.commit(ctx, all)
	}
	if err != nil {
		// The same again has the same marks. If the partition goes before that, they deliver it twice.
		c.putBack(all)
		return nil, err
	}
	var ms []*source.Message
	for i, a := range all {
		if strings.HasPrefix(string(marks[i].Value), "held") && g.s.held.Add(a.m, taken{key: string(marks[i].Key), at: a.at}, sent) {
			ms = append(ms, a.m)
		}
	}
	return ms, nil
}

// end writes the marks of messages again.
func (g *classic) end(ctx context.Context, do deed, all []taken) []error {
	var marks []*kgo.Record
	for _, t := range all {
		var value []byte
		switch do.verb {
		case "extend":
			value = mark{at: t.at, lease: g.s.cfg.Lease}.value()
		case "release":
			value = mark{at: t.at, due: do.due, handed: 1}.value()
		}
		marks = append(marks, g.s.markRecord(t.at, t.key, value))
	}
	failed := make([]error, len(all))
	if err := g.s.produce(ctx, marks...); err != nil {
		for i := range failed {
			failed[i] = err
		}
	}
	return failed
}

func (g *classic) expired([]taken) {} // the marks say it too

func (g *classic) close(ctx context.Context, held []taken) error {
	err := g.leave(ctx)
	if len(held) > 0 {
		err = errors.Join(append(g.end(ctx, deed{verb: "release"}, held), err)...)
	}
	return err
}

// finished is what the group has committed: what is before hangs on marks.
func (g *classic) finished(ctx context.Context, topic string) (map[int32]int64, error) {
	done, err := g.s.committed(ctx, topic)
	all := map[int32]int64{}
	for p, at := range done[topic] {
		all[p] = at.At
	}
	return all, err
}

func (g *classic) waiting(ctx context.Context) (n int64, inFlight bool, err error) {
	topics := g.s.topics()
	starts, err := g.s.admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return 0, false, err
	}
	ends, err := g.s.admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return 0, false, err
	}
	for _, topic := range topics {
		done, err := g.finished(ctx, topic)
		if err != nil {
			return 0, false, err
		}
		for p, end := range ends[topic] {
			if err := errors.Join(end.Err, starts[topic][p].Err); err != nil {
				return 0, false, err
			}
			n += end.Offset - max(starts[topic][p].Offset, done[p])
		}
	}
	return n, false, nil
}

func (g *classic) own(class int) int32 { return g.classes[class].own() }

// redelivery: a dead consumer watches over marks until its session ends. Who is next counts the lease from when it reads them:
// two clocks are not compared.
func (g *classic) redelivery() time.Duration {
	return g.s.cfg.Lease + g.s.cfg.Session + g.s.cfg.Session/4 + time.Second
}

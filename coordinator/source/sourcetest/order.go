package sourcetest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"retinue/coordinator/source"
)

// orderCases hold Caps.Order against a queue with one consumer at a time. Little is fetched ahead and much is there, so that a
// message at the wrong end of the queue shows.
var orderCases = []namedCase{
	{"an order that the broker cannot keep is refused", func(r *rig) {
		if s := r.open(); s.Caps().Order {
			r.Skip("it can")
		}
		s, err := r.h.Open(r.Context(), "", r.options(ordered))
		if err == nil {
			s.Close(r.Context())
		}
		if !errors.Is(err, source.ErrConfig) {
			r.Errorf("opened with an order: %v", err)
		}
	}},
	{"first deliveries come in the order of publication", func(r *rig) {
		p := r.producer()
		l := r.line()
		published := make(chan error, 1)
		const n = 600
		outs := items("o", n)
		go func() {
			for i, rest := 0, outs; len(rest) > 0; i++ {
				part := min(len(rest), 1+i*7%37)
				if err := p.Publish(r.Context(), rest[:part]...); err != nil {
					published <- err
					return
				}
				rest = rest[part:]
				if i%5 == 0 {
					pause(r.Context(), 20*time.Millisecond)
				}
			}
			published <- nil
		}()
		var got, open []*source.Message
		for i := 0; len(got) < n; i++ {
			// Acknowledged late and one by one, at once and all together: what the broker sends next differs.
			max := min(1+i*3%20, orderPrefetch-len(open), n-len(got))
			ms := r.receive(l, max, max, patience)
			if i%4 == 3 && len(open)+max < orderPrefetch && len(got)+max < n {
				ms = append(ms, r.receive(l, 1, 1+i%20, patience)...)
			}
			got, open = append(got, ms...), append(open, ms...)
			if i%3 == 0 {
				r.ack(l, open[0])
				open = open[1:]
			}
			if i%3 == 2 || len(open) >= orderPrefetch-1 {
				r.ack(l, open...)
				open = nil
			}
		}
		r.ack(l, open...)
		if err := <-published; err != nil {
			r.Fatalf("publish: %v", err)
		}
		r.inOrder(got, outs)
		r.stamped(got, outs)
		r.empty(p)
	}},
	{"what a closed consumer had comes first", func(r *rig) {
		outs, p := r.stock()
		a, b := r.line(), r.line()
		ms := r.receive(a, 6, 3, patience)
		r.ack(a, ms[0], ms[2])
		r.close(a)
		r.comesFirst(b, rest(outs, ms[0], ms[2]), ms[1], ms[3], ms[4], ms[5])
		r.empty(p)
	}},
	{"what was released comes first", func(r *rig) {
		outs, p := r.stock()
		a, b := r.line(), r.line()
		ms := r.receive(a, 8, 8, patience)
		r.release(a, 0, ms[6])
		r.release(a, 0, ms[1], ms[4])
		r.release(a, 0, ms[2])
		r.ack(a, ms[3])
		r.close(a)
		r.comesFirst(b, rest(outs, ms[3]), slices.Delete(slices.Clone(ms), 3, 4)...)
		r.empty(p)
	}},
	{"what Idle gave back comes first", func(r *rig) {
		outs, p := r.stock()
		a := r.line()
		ms := r.receive(a, 5, 1, patience)
		r.ack(a, ms[0])
		r.release(a, 0, ms[4], ms[2])
		stop := keep(r.Context(), a, r.h.Lease, ms[1], ms[3])
		if err := a.Idle(r.Context()); err != nil {
			r.Fatalf("idle: %v", err)
		}
		pause(r.Context(), 2*r.h.Lease)
		// The first of them is taken alone: a reader that looks for more than it was asked for shows.
		first := r.receive(a, 1, 1, patience)
		if err := stop(); err != nil {
			r.Errorf("extend: %v", err)
		}
		r.ack(a, ms[1], ms[3])
		r.comesFirst(&resumed{a, first}, rest(outs, ms[0], ms[1], ms[3]), ms[2], ms[4])
		r.empty(p)
	}},
	{"a consumer that asked for nothing changes nothing", func(r *rig) {
		outs, p := r.stock()
		a := r.line()
		r.ack(a, r.receive(a, 2, 2, patience)...)
		if err := a.Idle(r.Context()); err != nil {
			r.Fatalf("idle: %v", err)
		}
		r.close(a)
		r.comesFirst(r.line(), outs[2:])
		r.empty(p)
	}},
	{"what many consumers had one after the other comes first", func(r *rig) {
		outs, p := r.stock()
		var done []*source.Message
		had := map[string]*source.Message{}
		for round := range 8 {
			a := r.line()
			ms := r.receive(a, len(had)+3, 1+rand.IntN(6), patience)
			left := maps.Clone(had)
			for _, m := range ms {
				if delete(left, m.ID); m.Deliveries == 1 && len(left) > 0 {
					r.Errorf("round %d: %s came before %d that had been handed out: %s", round, m.ID, len(left), ids(ms))
				}
				had[m.ID] = m
			}
			r.stamped(ms, outs)
			rand.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
			n := len(ms) / 2
			r.ack(a, ms[:n]...)
			for _, m := range ms[:n] {
				delete(had, m.ID)
				done = append(done, m)
			}
			if round%2 == 0 {
				r.release(a, 0, ms[n:n+1]...)
			}
			if round%3 == 0 {
				if err := a.Idle(r.Context()); err != nil {
					r.Fatalf("idle: %v", err)
				}
			}
			r.close(a)
		}
		var first []*source.Message
		for _, m := range had {
			first = append(first, m)
		}
		r.comesFirst(r.line(), rest(outs, done...), first...)
		r.empty(p)
	}},
	{"the time of publication stays", func(r *rig) {
		outs, p := r.stock()
		a := r.line()
		ms := r.receive(a, 3, 3, patience)
		r.release(a, 300*time.Millisecond, ms[1])
		r.close(a)
		b := r.line()
		var all []*source.Message
		for len(all) < len(outs) {
			part := r.receive(b, 1, 1, patience)
			r.ack(b, part...)
			all = append(all, part...)
		}
		r.once(all, outs)
		r.stamped(all, outs)
		for _, m := range ms {
			i := slices.IndexFunc(all, func(again *source.Message) bool { return again.ID == m.ID })
			if i >= 0 && !all[i].Published.Equal(m.Published) {
				r.Errorf("%s was published at %v, and then at %v", m.ID, m.Published, all[i].Published)
			}
		}
		r.empty(p)
	}},
}

// orderFaultCases break the consumer of an ordered queue.
var orderFaultCases = []namedCase{
	{"what a killed consumer had comes first", func(r *rig) {
		if r.h.Child == nil {
			r.Skip("a source of one process")
		}
		outs, p := r.stock()
		d := r.startDoomed(5, ordered)
		d.kill()
		b := r.open(ordered)
		pause(r.Context(), r.h.Lease+p.Caps().Redelivery+r.h.Lease/2)
		var had []*source.Message
		for _, id := range d.ids {
			had = append(had, &source.Message{ID: id})
		}
		r.comesFirst(b, outs, had...)
		r.empty(p)
	}},
}

func (r *rig) holdInOrder(limit time.Duration, busy bool) {
	outs, p := r.stock()
	a, b := r.open(ordered, lease(3*r.h.Lease)), r.line() // with a short lease: what nobody asks for must go back long before the limit
	ms := r.receive(a, 5, 5, patience)
	stop := keep(r.Context(), a, r.h.Lease, ms...)
	var done []*source.Message
	for end := time.Now().Add(5 * limit / 2); time.Now().Before(end); pause(r.Context(), r.h.Lease/5) {
		if busy {
			m := r.receive(a, 1, 1, patience)
			r.ack(a, m...)
			done = append(done, m...)
		}
	}
	if err := stop(); err != nil {
		r.Errorf("extend: %v", err)
	}
	if len(done) > 0 {
		r.inOrder(done, outs[5:5+len(done)])
	}
	r.ack(a, ms[1])
	r.release(a, 0, ms[3])
	r.close(a)
	r.comesFirst(b, rest(outs, append(done, ms[1])...), ms[0], ms[2], ms[3], ms[4])
	r.empty(p)
}

const (
	orderPrefetch = 8
	orderStock    = 200
)

func ordered(o *source.Options) { o.Order, o.Prefetch = true, orderPrefetch }

// line opens the one consumer of an ordered queue, with the leases of an ordinary one: nothing has to wait for their end.
func (r *rig) line() source.Source {
	r.Helper()
	return r.open(ordered, lease(2*time.Minute))
}

// producer opens a producer of an ordered queue, or skips the case. Who uses a queue must say that it is ordered.
func (r *rig) producer() source.Source {
	r.Helper()
	if s := r.open(func(o *source.Options) { o.Queue += "-other" }); !s.Caps().Order {
		r.Skip("this broker does not")
	}
	return r.open(ordered)
}

// stock publishes what an ordered queue has to begin with, in portions.
func (r *rig) stock() ([]source.Out, source.Source) {
	r.Helper()
	p := r.producer()
	outs := items("s", orderStock)
	for i := 0; i < len(outs); i += 40 {
		r.publish(p, outs[i:i+40]...)
	}
	return outs, p
}

func (r *rig) close(s source.Source) {
	r.Helper()
	if err := s.Close(r.Context()); err != nil {
		r.Fatalf("close: %v", err)
	}
}

// resumed is a source of which some messages were received before.
type resumed struct {
	source.Source
	before []*source.Message
}

// rest is outs without what is done.
func rest(outs []source.Out, done ...*source.Message) []source.Out {
	return slices.DeleteFunc(slices.Clone(outs), func(o source.Out) bool {
		return slices.ContainsFunc(done, func(m *source.Message) bool { return m.ID == o.ID })
	})
}

// comesFirst takes all that is left of a queue and holds it against the order: at first what was handed out before, and with it what
// a consumer may have fetched ahead, which are the next ones; then all others as they were published.
func (r *rig) comesFirst(s source.Source, outs []source.Out, had ...*source.Message) []*source.Message {
	r.Helper()
	var all []*source.Message
	if again, ok := s.(*resumed); ok {
		s, all = again.Source, again.before
		r.ack(s, all...)
	}
	for i := 0; len(all) < len(outs); i++ {
		ms := r.receive(s, 1+min(i%6, len(outs)-len(all)-1), 1+i%6, patience)
		r.ack(s, ms...)
		all = append(all, ms...)
	}
	r.once(all, outs)
	r.stamped(all, outs)
	// Up to the last of those that were handed out all must have been, or lie before one of them.
	last := 0
	for _, m := range had {
		last = max(last, 1+slices.IndexFunc(all, func(again *source.Message) bool { return again.ID == m.ID }))
	}
	index := indexes(outs)
	back := len(all)
	for back > 0 && index[all[back-1].ID] == back-1 {
		back--
	}
	// What follows is in order; what is before is not, and so was given back.
	back = max(back, last)
	r.Logf("%d had been handed out, %d came first", len(had), back)
	const ahead = 3 * orderPrefetch // RabbitMQ is asked for two times as many, and one or two may be on their way
	if back > len(had)+ahead {
		r.Errorf("%d messages had been handed out, and the last of them or another one out of order came as number %d: %s", len(had), back, ids(all))
	}
	for _, m := range all[:back] {
		if index[m.ID] >= back {
			r.Errorf("%s came before one that had been handed out: %s", m.ID, ids(all[:back]))
		}
	}
	for i, m := range all {
		seen := slices.ContainsFunc(had, func(before *source.Message) bool { return before.ID == m.ID })
		if seen && m.Deliveries < 2 || i >= len(had)+ahead && m.Deliveries > 1 {
			r.Errorf("%s, number %d: delivery %d", m.ID, i, m.Deliveries)
		}
	}
	return all
}

func indexes(outs []source.Out) map[string]int {
	index := map[string]int{}
	for i, o := range outs {
		index[o.ID] = i
	}
	return index
}

func ids(ms []*source.Message) string {
	var all []string
	for _, m := range ms {
		all = append(all, fmt.Sprintf("%s(%d)", m.ID, m.Deliveries))
	}
	return strings.Join(all, " ")
}

// inOrder fails the test unless ms are outs, one after the other.
func (r *rig) inOrder(ms []*source.Message, outs []source.Out) {
	r.Helper()
	r.once(ms, outs)
	for i, m := range ms {
		if m.ID != outs[i].ID {
			r.Fatalf("number %d is %s: %s", i, m.ID, ids(ms[max(0, i-5):min(len(ms), i+20)]))
		}
	}
}

// stamped fails the test unless each message was published after those before it.
func (r *rig) stamped(ms []*source.Message, outs []source.Out) {
	r.Helper()
	index := indexes(outs)
	ms = slices.Clone(ms)
	slices.SortFunc(ms, func(a, b *source.Message) int { return cmp.Compare(index[a.ID], index[b.ID]) })
	for i, m := range ms {
		if i > 0 && !m.Published.After(ms[i-1].Published) {
			r.Errorf("%s was published at %v, %s at %v", ms[i-1].ID, ms[i-1].Published, m.ID, m.Published)
		}
	}
}

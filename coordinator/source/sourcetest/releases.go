package sourcetest

import (
	"fmt"
	"slices"
	"time"

	"retinue/coordinator/source"
)

var releaseCases = []namedCase{
	{"a released message comes again at once", func(r *rig) {
		a, b := r.open(lease(time.Minute)), r.open(lease(time.Minute))
		r.publish(a, items("r", 5)...)
		ms := r.receive(a, 5, 5, patience)
		r.release(a, 0, ms...)
		if err := a.Idle(r.Context()); err != nil {
			r.Fatal(err)
		}
		again := r.receive(b, 5, 5, patience)
		r.once(again, items("r", 5))
		r.ack(b, again...)
		r.empty(a)
	}},
	{"a delay is kept", func(r *rig) {
		s := r.open()
		const delay = 1500 * time.Millisecond
		r.publish(s, source.Out{ID: "late", Body: []byte("b"), Headers: map[string]string{"h": "v"}, Key: "k1"})
		m := r.receive(s, 1, 1, patience)[0]
		start := time.Now()
		r.release(s, delay, m)
		r.publish(s, source.Out{ID: "other"})
		other := r.receive(s, 1, 1, patience)[0]
		if other.ID != "other" {
			r.Errorf("%s came before the other message, after %v", other.ID, time.Since(start))
		}
		r.ack(s, other)
		again := r.receive(s, 1, 1, delay+patience)[0]
		took := time.Since(start)
		if took < delay-5*time.Millisecond || took > delay+s.Caps().DelayGrain+patience/3 {
			r.Errorf("released with %v, delivered after %v", delay, took)
		}
		if again.ID != "late" || string(again.Body) != "b" || again.Headers["h"] != "v" || again.Key != "k1" || again.Deliveries < 2 {
			r.Errorf("delivered again as %+v", again)
		}
		r.ack(s, again)
		r.nothing(s, delay+r.h.Lease)
		r.empty(s)
	}},
	{"a delayed publication is kept back", func(r *rig) {
		s := r.open()
		const delay = 1500 * time.Millisecond
		start := time.Now()
		r.publish(s, source.Out{ID: "later", Delay: delay, Body: []byte("x")}, source.Out{ID: "now"})
		if m := r.receive(s, 1, 1, patience)[0]; m.ID != "now" {
			r.Errorf("%s came first, after %v", m.ID, time.Since(start))
		} else {
			r.ack(s, m)
		}
		m := r.receive(s, 1, 1, delay+patience)[0]
		if took := time.Since(start); m.ID != "later" || took < delay-5*time.Millisecond || took > delay+s.Caps().DelayGrain+patience/3 {
			r.Errorf("%s after %v", m.ID, took)
		}
		r.ack(s, m)
		r.empty(s)
	}},
	{"delays of any length do not disturb each other", func(r *rig) {
		s := r.open(lease(time.Minute))
		// A long one first: a queue that only looks at its head would hold the short ones back for an hour. Nobody promises the order
		// of those that are due: a busy machine may be late with any of them.
		delays := []time.Duration{time.Hour, 3 * time.Second, 300 * time.Millisecond, 1200 * time.Millisecond, 10 * time.Millisecond}
		var outs []source.Out
		for i, d := range delays {
			if max := s.Caps().MaxDelay; max > 0 {
				d = min(d, max)
			}
			outs = append(outs, source.Out{ID: fmt.Sprintf("d%d", i), Delay: d})
		}
		start := time.Now()
		r.publish(s, outs...)
		var ms []*source.Message
		for range outs[1:] {
			m := r.receive(s, 1, 1, patience)[0]
			ms = append(ms, m)
			took := time.Since(start)
			if i := slices.IndexFunc(outs, func(o source.Out) bool { return o.ID == m.ID }); i < 1 || took < delays[i]-5*time.Millisecond {
				r.Errorf("%s after %v", m.ID, took)
			}
			r.ack(s, m)
		}
		r.once(ms, outs[1:])
	}},
	{"many releases neither lose nor double", func(r *rig) {
		s := r.open(prefetch(100), lease(time.Minute))
		outs := items("m", 100)
		r.publish(s, outs...)
		for round := range 3 {
			ms := r.receive(s, len(outs), 20, 2*patience)
			r.once(ms, outs)
			for i, m := range ms {
				r.release(s, time.Duration((i+round)%4)*100*time.Millisecond, m)
			}
		}
		ms := r.receive(s, len(outs), 20, 2*patience)
		r.once(ms, outs)
		r.ack(s, ms...)
		r.nothing(s, time.Second)
		r.empty(s)
	}},
}

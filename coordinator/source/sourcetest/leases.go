package sourcetest

import (
	"errors"
	"time"

	"retinue/coordinator/source"
)

var leaseCases = []namedCase{
	{"extension keeps a message far over the lease", func(r *rig) {
		a, b := r.open(), r.open()
		r.publish(a, items("e", 3)...)
		ms := r.receive(a, 3, 3, patience)
		stop := keep(r.Context(), a, r.h.Lease, ms...)
		r.nothing(b, 5*r.h.Lease)
		if err := stop(); err != nil {
			r.Errorf("extend: %v", err)
		}
		r.ack(a, ms...)
		r.nothing(b, 2*r.h.Lease)
		r.empty(a)
	}},
	{"a message that nobody extends comes again, and its first owner is told", func(r *rig) {
		a := r.open()
		r.publish(a, items("l", 2)...)
		ms := r.receive(a, 2, 2, patience)
		b := r.open()
		again := r.receive(b, 2, 2, 3*r.h.Lease+patience)
		r.once(again, items("l", 2))
		for _, m := range again {
			if m.Deliveries < 2 {
				r.Errorf("%s: delivery %d", m.ID, m.Deliveries)
			}
		}
		for _, m := range ms {
			if err := source.ErrorOf(a.Extend(r.Context(), m), m); !errors.Is(err, source.ErrLost) {
				r.Errorf("extend after the lease: %v", err)
			}
			if err := source.ErrorOf(a.Ack(r.Context(), m), m); !errors.Is(err, source.ErrLost) {
				r.Errorf("ack after the lease: %v", err)
			}
			if err := source.ErrorOf(a.Release(r.Context(), 0, m), m); !errors.Is(err, source.ErrLost) {
				r.Errorf("release after the lease: %v", err)
			}
		}
		r.ack(b, again...)
		r.empty(b)
	}},
	{"an acknowledged message does not come again", func(r *rig) {
		s := r.open()
		outs := items("a", 30)
		r.publish(s, outs...)
		ms := r.receive(s, 30, 7, patience)
		r.once(ms, outs)
		r.ack(s, ms...)
		if err := s.Ack(r.Context(), ms[0]); err != nil && !errors.Is(err, source.ErrLost) {
			r.Errorf("a repeated ack: %v", err)
		}
		r.nothing(s, 3*r.h.Lease)
		r.empty(s)
	}},
	{"deliveries are counted", func(r *rig) {
		s := r.open()
		r.publish(s, source.Out{ID: "n"})
		for i := 1; i <= 4; i++ {
			m := r.receive(s, 1, 1, patience)[0]
			if s.Caps().Deliveries && m.Deliveries != i || (m.Deliveries == 1) != (i == 1) {
				r.Errorf("delivery %d says %d", i, m.Deliveries)
			}
			r.release(s, 0, m)
		}
	}},
	{"one consumer's leases are its own", func(r *rig) {
		a, b := r.open(), r.open()
		r.publish(a, items("o", 10)...)
		ma := r.receive(a, 5, 5, patience)
		stop := keep(r.Context(), a, r.h.Lease, ma...)
		if err := a.Idle(r.Context()); err != nil {
			r.Fatalf("idle: %v", err)
		}
		mb := r.receive(b, 5, 5, patience)
		r.ack(b, mb...)
		if err := stop(); err != nil {
			r.Errorf("extend: %v", err)
		}
		r.once(append(ma, mb...), items("o", 10))
		start := time.Now()
		r.ack(a, ma...)
		if d := time.Since(start); d > patience/2 {
			r.Errorf("ack took %v", d)
		}
		r.empty(a)
	}},
}

package sourcetest

import (
	"context"
	"errors"
	"time"

	"retinue/coordinator/source"
)

var closeCases = []namedCase{
	{"close gives back what was leased, at once", func(r *rig) {
		// With a lease so long that its end is no explanation.
		a, b := r.open(lease(10*time.Minute)), r.open(lease(10*time.Minute))
		outs := items("z", 20)
		r.publish(a, outs...)
		r.receive(a, 5, 5, patience)
		if err := a.Close(r.Context()); err != nil {
			r.Errorf("close: %v", err)
		}
		ms := r.receive(b, len(outs), 20, 2*patience)
		r.once(ms, outs)
		r.ack(b, ms...)
		if err := a.Close(r.Context()); err != nil {
			r.Errorf("a second close: %v", err)
		}
		if _, err := a.Receive(r.Context(), 1); !errors.Is(err, source.ErrClosed) {
			r.Errorf("receive after close: %v", err)
		}
		if err := a.Publish(r.Context(), source.Out{ID: "x"}); !errors.Is(err, source.ErrClosed) {
			r.Errorf("publish after close: %v", err)
		}
		r.empty(b)
	}},
	{"close ends a receive that waits", func(r *rig) {
		s := r.open()
		done := make(chan error, 1)
		go func() { _, err := s.Receive(r.Context(), 1); done <- err }()
		pause(r.Context(), 200*time.Millisecond)
		if err := s.Close(r.Context()); err != nil {
			r.Errorf("close: %v", err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, source.ErrClosed) {
				r.Errorf("receive: %v", err)
			}
		case <-time.After(patience):
			r.Fatal("Receive does not end")
		}
	}},
	{"idle gives back what was fetched ahead", func(r *rig) {
		a, b := r.open(lease(10*time.Minute), prefetch(20)), r.open(lease(10*time.Minute))
		outs := items("i", 20)
		r.publish(a, outs...)
		ms := r.receive(a, 1, 1, patience)
		if err := a.Idle(r.Context()); err != nil {
			r.Fatalf("idle: %v", err)
		}
		rest := r.receive(b, len(outs)-1, 20, patience)
		r.once(append(ms, rest...), outs)
		r.ack(a, ms...)
		r.ack(b, rest...)
		r.publish(b, source.Out{ID: "after"})
		if err := b.Idle(r.Context()); err != nil {
			r.Fatalf("idle: %v", err)
		}
		if m := r.receive(a, 1, 1, patience)[0]; m.ID != "after" {
			r.Errorf("received %s", m.ID)
		} else {
			r.ack(a, m)
		}
	}},
}

var accessCases = []namedCase{
	{"wrong credentials are told as such", func(r *rig) {
		if r.h.Denied == nil {
			r.Skip("the server checks none")
		}
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		s, err := r.h.Denied(ctx, r.options())
		if err == nil {
			defer s.Close(context.Background())
			_, err = s.Receive(ctx, 1)
		}
		if !errors.Is(err, source.ErrAccess) {
			r.Errorf("%v", err)
		}
	}},
	{"an unknown host is told as such", func(r *rig) { r.unreachable("no-such-host.invalid:4222") }},
	{"a closed port is told as such", func(r *rig) { r.unreachable("127.0.0.1:1") }},
	{"options that do not fit are refused", func(r *rig) {
		for _, change := range []func(*source.Options){
			func(o *source.Options) { o.Queue = "" },
			func(o *source.Options) { o.Queue = "a b" },
			func(o *source.Options) { o.Queue = "a.*" },
			func(o *source.Options) { o.Classes = 11 },
			func(o *source.Options) { o.Lease = time.Millisecond },
			func(o *source.Options) { o.Prefetch = -1 },
			func(o *source.Options) { o.Consumer = "a\nb" },
		} {
			if _, err := r.h.Open(r.Context(), "", r.options(change)); !errors.Is(err, source.ErrConfig) {
				r.Errorf("%+v: %v", r.options(change), err)
			}
		}
	}},
}

// unreachable opens a source where nobody listens.
func (r *rig) unreachable(addr string) {
	r.Helper()
	if r.h.Addr == "" {
		r.Skip("the server has no address")
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	start := time.Now()
	s, err := r.h.Open(ctx, addr, r.options())
	if err == nil {
		defer s.Close(context.Background())
		_, err = s.Receive(ctx, 1)
	}
	if !errors.Is(err, source.ErrUnavailable) {
		r.Errorf("after %v: %v", time.Since(start), err)
	} else {
		r.Logf("after %v: %v", time.Since(start).Round(time.Millisecond), err)
	}
}

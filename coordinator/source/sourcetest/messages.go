package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"retinue/coordinator/source"
)

var messageCases = []namedCase{
	{"a message arrives as it was published", func(r *rig) {
		s := r.open(classes(3))
		every := make([]byte, 256)
		for i := range every {
			every[i] = byte(i)
		}
		outs := []source.Out{
			{ID: "plain", Body: []byte("hello")},
			{ID: "empty"},
			{ID: "binary", Body: every},
			{ID: "lines", Body: []byte("\r\n\x00\n\n")},
			{ID: "a/b:c.d+e=f@g~h", Body: []byte("x"), Key: "customer 7, Zürich", Class: 2, Headers: map[string]string{
				"Content-Type": "text/plain; charset=utf-8", "lower": "ä ö : \\ ü = % \" '", "UPPER_case.x-1": "1", "empty": "", "long": strings.Repeat("v", 4000),
			}},
		}
		r.publish(s, outs...)
		got := map[string]*source.Message{}
		for _, m := range r.receive(s, len(outs), 10, patience) {
			got[m.ID] = m
		}
		for _, o := range outs {
			m := got[o.ID]
			if m == nil {
				r.Errorf("%s did not arrive", o.ID)
				continue
			}
			if !bytes.Equal(m.Body, o.Body) || m.Body == nil {
				r.Errorf("%s: body %q, published %q", o.ID, m.Body, o.Body)
			}
			if !maps.Equal(m.Headers, o.Headers) || m.Headers == nil {
				r.Errorf("%s: headers %q, published %q", o.ID, m.Headers, o.Headers)
			}
			if m.Key != o.Key || m.Class != o.Class || m.Deliveries != 1 {
				r.Errorf("%s: key %q class %d deliveries %d, published %q %d", o.ID, m.Key, m.Class, m.Deliveries, o.Key, o.Class)
			}
			if age := time.Since(m.Published); age < -time.Minute || age > time.Minute {
				r.Errorf("%s: published %v ago", o.ID, age)
			}
			r.ack(s, m)
		}
		r.empty(s)
	}},
	{"a body of 1 MiB arrives", func(r *rig) {
		s := r.open()
		body := make([]byte, 1<<20)
		if max := s.Caps().MaxBody; max > 0 && max < len(body) {
			body = body[:max]
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range body {
			body[i] = byte(rnd.Uint32())
		}
		r.publish(s, source.Out{ID: "big", Body: body}, source.Out{ID: "big2", Body: body})
		for _, m := range r.receive(s, 2, 2, patience) {
			if !bytes.Equal(m.Body, body) {
				r.Errorf("the body of %s is another, of %d bytes", m.ID, len(m.Body))
			}
			r.ack(s, m)
		}
	}},
	{"what the contract forbids is refused", func(r *rig) {
		s := r.open()
		ctx := r.Context()
		for name, out := range map[string]source.Out{
			"no id":          {},
			"space in id":    {ID: "a b"},
			"newline in id":  {ID: "a\nb"},
			"wildcard in id": {ID: "a*"},
			"long id":        {ID: strings.Repeat("x", 201)},
			"class":          {ID: "a", Class: 1},
			"negative class": {ID: "a", Class: -1},
			"delay":          {ID: "a", Delay: -1},
			"key":            {ID: "a", Key: "a\nb"},
			"header name":    {ID: "a", Headers: map[string]string{"a b": "c"}},
			"own header":     {ID: "a", Headers: map[string]string{"Retinue-Id": "c"}},
			"newline":        {ID: "a", Headers: map[string]string{"a": "b\r\nc"}},
			"not UTF-8":      {ID: "a", Headers: map[string]string{"a": "\xff"}},
			"large headers":  {ID: "a", Headers: map[string]string{"a": strings.Repeat("x", 17<<10)}},
		} {
			if err := s.Publish(ctx, source.Out{ID: "good"}, out); !errors.Is(err, source.ErrInvalid) {
				r.Errorf("%s: %v", name, err)
			}
		}
		if max := s.Caps().MaxBody; max > 0 && max <= 64<<20 {
			if err := s.Publish(ctx, source.Out{ID: "large", Body: make([]byte, max+1)}); !errors.Is(err, source.ErrTooLarge) {
				r.Errorf("a body of %d bytes: %v", max+1, err)
			}
		}
		r.nothing(s, r.h.Lease/2)
	}},
	{"another producer's message arrives", func(r *rig) {
		if r.h.Foreign == nil {
			r.Skip("no other producer")
		}
		s := r.open()
		if err := r.h.Foreign(r.Context(), r.queue, []byte("not ours")); err != nil {
			r.Fatal(err)
		}
		m := r.receive(s, 1, 1, patience)[0]
		if string(m.Body) != "not ours" || m.ID == "" || m.Headers == nil {
			r.Errorf("received %+v", m)
		}
		r.release(s, 0, m)
		again := r.receive(s, 1, 1, patience)[0]
		if again.ID != m.ID || string(again.Body) != "not ours" {
			r.Errorf("delivered as %s, then as %s with %q", m.ID, again.ID, again.Body)
		}
		r.ack(s, again)
		r.empty(s)
	}},
	{"a repeated publish is dropped where the broker says so", func(r *rig) {
		s := r.open()
		if s.Caps().Dedupe == 0 {
			r.Skip("this broker does not")
		}
		outs := items("d", 20)
		for range 3 {
			r.publish(s, outs...)
		}
		ms := r.receive(s, len(outs), 10, patience)
		r.once(ms, outs)
		r.ack(s, ms...)
		r.publish(s, outs...)
		r.nothing(s, r.h.Lease)
	}},
	{"queues are apart", func(r *rig) {
		a := r.open()
		b := r.open(func(o *source.Options) { o.Queue += "-b" })
		r.publish(a, source.Out{ID: "x", Body: []byte("a")})
		r.publish(b, source.Out{ID: "x", Body: []byte("b")})
		ma, mb := r.receive(a, 1, 5, patience)[0], r.receive(b, 1, 5, patience)[0]
		if string(ma.Body) != "a" || string(mb.Body) != "b" {
			r.Errorf("received %q and %q", ma.Body, mb.Body)
		}
		r.ack(a, ma)
		r.ack(b, mb)
	}},
	{"a publish after its context is not answered as done", func(r *rig) {
		s := r.open()
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		if err := s.Publish(ctx, source.Out{ID: "late"}); err == nil {
			r.Error("published with a context that was over")
		}
	}},
}

package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// What waits for a delay survives a kill -9 of the broker at any moment: in queues of delays that have just been asked for, and in
// older ones whose messages are passed on at that moment.
func TestDelaysSurviveKill(t *testing.T) {
	t.Parallel()
	h := harness(t, 30*time.Minute, 0)
	ctx := t.Context()
	open := func(queue string, grown time.Duration) *Source {
		t.Helper()
		s, err := Open(ctx, Config{URL: (&url.URL{Scheme: "amqp", User: url.UserPassword("guest", "guest"), Host: h.Addr}).String(), grown: grown,
			Options: source.Options{Queue: queue, Prefetch: 2000, Lease: time.Minute}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	queues := map[string]time.Duration{"young": 0, "old": time.Nanosecond}
	expected := map[string]map[string]bool{"young": {}, "old": {}}
	n := 0
	// publish notes what was confirmed. Each third is taken and released with a delay instead.
	publish := func(s *Source, queue string, count int, delay func() time.Duration) {
		t.Helper()
		try, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		var outs []source.Out
		for i := range count {
			out := source.Out{ID: fmt.Sprintf("i%d", n), Delay: delay()}
			if i%3 == 0 {
				out.Delay = 0
			}
			outs = append(outs, out)
			n++
		}
		if err := s.Publish(try, outs...); err != nil {
			t.Fatal(err)
		}
		for _, out := range outs {
			expected[queue][out.ID] = true
		}
		ms, err := s.Receive(try, count)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms {
			if err := s.Release(try, delay(), m); err != nil {
				t.Fatal(err)
			}
		}
	}
	for queue, grown := range queues {
		s := open(queue, grown)
		if queue == "old" {
			for _, d := range []time.Duration{1, 2} {
				publish(s, queue, 2, func() time.Duration { return d*time.Second + 500*time.Millisecond })
			}
		}
		s.Close(ctx)
	}
	// The queues of the classes have to survive too, and so have the old ones of delays.
	time.Sleep(h.Settle)
	for round := range 2 {
		for queue, grown := range queues {
			s := open(queue, grown)
			publish(s, queue, 150, func() time.Duration { return time.Duration(200+rand.IntN(2700)) * time.Millisecond })
			t.Cleanup(func() { s.Close(context.Background()) })
		}
		if round > 0 { // at first at once: what a young queue lacks the broker writes out within a second
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Millisecond)
		}
		h.Server.Kill()
		h.Server.Start()
	}
	for queue, grown := range queues {
		s := open(queue, grown)
		for missing := expected[queue]; len(missing) > 0; {
			try, cancel := context.WithTimeout(ctx, 40*time.Second)
			ms, err := s.Receive(try, 500)
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %d of %d messages are lost", queue, len(missing), n)
				break
			}
			if err != nil {
				t.Log(err)
				continue
			}
			for _, m := range ms {
				delete(missing, m.ID)
			}
			if err := s.Ack(ctx, ms...); err != nil {
				t.Log(err)
			}
		}
		s.Close(ctx)
	}
}

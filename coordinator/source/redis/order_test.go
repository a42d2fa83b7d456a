package redis

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"retinue/coordinator/source"
)

// An ordered queue keeps its order where the source and the server do not know the same.
func TestOrder(t *testing.T) {
	srv, addr := start(t)
	open := func(t *testing.T, lease time.Duration) *Source {
		t.Helper()
		name := strings.ReplaceAll(t.Name(), "/", "-")
		s, err := Open(t.Context(), Config{URL: at(addr, "p"), Options: source.Options{Queue: name, Consumer: "me", Lease: lease, Order: true}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close(context.Background()) })
		return s
	}
	publish := func(t *testing.T, s *Source, from, to int) {
		t.Helper()
		var outs []source.Out
		for i := from; i < to; i++ {
			outs = append(outs, source.Out{ID: fmt.Sprint(i)})
		}
		if err := s.Publish(t.Context(), outs...); err != nil {
			t.Fatal(err)
		}
	}
	// inOrder takes n messages two by two, as numbered.
	inOrder := func(t *testing.T, s *Source, n int) (all []*source.Message) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for len(all) < n {
			ms, err := s.Receive(ctx, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range ms {
				if m.ID != fmt.Sprint(len(all)) {
					t.Errorf("number %d is %s, delivery %d", len(all), m.ID, m.Deliveries)
				}
				all = append(all, m)
			}
		}
		return all
	}
	t.Run("an answer was lost", func(t *testing.T) {
		s := open(t, time.Minute)
		publish(t, s, 0, 10)
		ms, err := s.Receive(t.Context(), 2)
		if err != nil || len(ms) != 2 {
			t.Fatalf("%d, %v", len(ms), err)
		}
		// As a read whose answer nobody saw.
		if err := s.db.XReadGroup(t.Context(), s.read.args(-1, 3, 0)).Err(); err != nil {
			t.Fatal(err)
		}
		s.read.doubt.Store(true)
		again, err := s.Receive(t.Context(), 3)
		if err != nil || len(again) != 3 || again[0].ID != "2" || again[2].ID != "4" || again[0].Deliveries != 2 {
			t.Fatalf("%+v, %v", again, err)
		}
		if err := s.Ack(t.Context(), append(ms, again...)...); err != nil {
			t.Error(err)
		}
	})
	t.Run("messages lay here until their lease was over", func(t *testing.T) {
		s := open(t, 400*time.Millisecond)
		publish(t, s, 0, 10)
		if err := s.read.tick(t.Context(), 3); err != nil { // as before each read
			t.Fatal(err)
		}
		if err := s.read.now(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, m := range s.read.ahead[0] {
			at, _ := s.held.Get(m)
			ids = append(ids, at.id)
		}
		time.Sleep(300 * time.Millisecond)
		// At the server it began later.
		if err := s.db.XClaimJustID(t.Context(), &redis.XClaimArgs{Stream: s.cfg.stream(0), Group: group, Consumer: "me", Messages: ids}).Err(); err != nil || len(ids) != 3 {
			t.Fatal(ids, err)
		}
		time.Sleep(150 * time.Millisecond)
		inOrder(t, s, 10)
	})
	t.Run("what was given back is not in flight", func(t *testing.T) {
		s := open(t, time.Minute)
		publish(t, s, 0, 10)
		ms := inOrder(t, s, 4)
		if err := s.Ack(t.Context(), ms[0]); err != nil {
			t.Fatal(err)
		}
		if err := s.Release(t.Context(), 0, ms[1], ms[2]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		d, err := s.Depth(t.Context())
		if err != nil || d.Ready != 8 || d.InFlight != 1 || d.Oldest < 20*time.Millisecond {
			t.Errorf("%+v, %v", d, err)
		}
		// The oldest of all is among them.
		publish(t, s, 10, 11)
		for range 6 {
			if _, err := s.Receive(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			if d, err = s.Depth(t.Context()); err == nil && d.Ready == 0 {
				break
			}
		}
		if err != nil || d.Ready != 0 || d.InFlight != 10 {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("the server was killed after things were given back", func(t *testing.T) {
		s := open(t, time.Minute)
		publish(t, s, 0, 10)
		ms := inOrder(t, s, 5)
		if err := s.Release(t.Context(), 0, ms[3], ms[1]); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		srv.Kill()
		srv.Start()
		inOrder(t, open(t, time.Minute), 10)
	})
	t.Run("the scripts were forgotten", func(t *testing.T) {
		s := open(t, time.Minute)
		for i := range 5 {
			if err := s.db.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			publish(t, s, 3*i, 3*i+3)
		}
		inOrder(t, s, 15)
	})
}

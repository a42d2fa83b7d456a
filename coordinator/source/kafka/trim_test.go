package kafka

import (
	"context"
	"fmt"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// Finished records are deleted, and nothing that somebody may need.
func TestTrim(t *testing.T) {
	t.Parallel()
	addr, _ := start(t)
	for _, groups := range []string{groupsClassic, groupsShare} {
		t.Run(groups, func(t *testing.T) { t.Parallel(); trim(t, addr, groups) })
	}
}

func trim(t *testing.T, addr, groups string) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Open(ctx, Config{URL: at(addr, "p"), Partitions: 1, Session: session, Groups: groups, trim: 50 * time.Millisecond, Options: source.Options{Queue: groups, Lease: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	var outs []source.Out
	for i := range 10 {
		outs = append(outs, source.Out{ID: fmt.Sprint(i)})
	}
	if err := s.Publish(ctx, outs...); err != nil {
		t.Fatal(err)
	}
	var ms []*source.Message
	for len(ms) < 8 {
		more, err := s.Receive(ctx, 8-len(ms))
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, more...)
	}
	// 0, 1, 2 and 4 are finished, 3 is held, 5 waits, 8 and 9 are not taken.
	if err := s.Release(ctx, time.Hour, ms[5]); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 1, 2, 4} {
		if err := s.Ack(ctx, ms[i]); err != nil {
			t.Fatal(err)
		}
	}
	begins := func() int64 {
		starts, err := s.admin.ListStartOffsets(ctx, s.topic(0))
		if err != nil {
			t.Fatal(err)
		}
		return starts[s.topic(0)][0].Offset
	}
	trimmed := func(want int64) {
		t.Helper()
		for begins() < want && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(200 * time.Millisecond) // and not further
		if got := begins(); got != want {
			t.Errorf("it begins at %d, not %d", got, want)
		}
	}
	trimmed(3)
	for _, i := range []int{3, 6, 7} {
		if err := s.Ack(ctx, ms[i]); err != nil {
			t.Fatal(err)
		}
	}
	trimmed(5)
}

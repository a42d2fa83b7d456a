package kafkafake

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"retinue/coordinator/source"
	"retinue/coordinator/source/kafka"
)

// What share groups have finished is known after an end without notice, in whatever order it was finished.
func TestFinishedSurvives(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	open := func() source.Source {
		c, err := NewCluster(dir, kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		s, err := kafka.Open(ctx, kafka.Config{URL: "kafka://" + c.ListenAddrs()[0], Partitions: 2, Groups: "share", Options: source.Options{Queue: "q", Lease: time.Minute}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close(context.Background()) })
		return s
	}
	receive := func(s source.Source, n int) (all []*source.Message) {
		for len(all) < n {
			ms, err := s.Receive(ctx, n-len(all))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, ms...)
		}
		return all
	}
	s := open()
	left := map[string]int{} // deliveries expected
	for i := range 12 {
		id := fmt.Sprint(i)
		left[id] = 1
		if err := s.Publish(ctx, source.Out{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range receive(s, 8) {
		left[m.ID] = 2
		if i%2 == 0 {
			delete(left, m.ID)
			if err := s.Ack(ctx, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Nobody says goodbye. The kill hits a line that is being written.
	journal, err := os.OpenFile(filepath.Join(dir, "share.journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	journal.WriteString(`{"group":"queue.q.0","part`)
	journal.Close()
	s = open()
	for _, m := range receive(s, len(left)) {
		if left[m.ID] != m.Deliveries {
			t.Errorf("%s came, delivery %d; expected %d", m.ID, m.Deliveries, left[m.ID])
		}
		delete(left, m.ID)
		if err := s.Ack(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	for {
		d, err := s.Depth(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if d.Ready+d.InFlight+d.Delayed == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

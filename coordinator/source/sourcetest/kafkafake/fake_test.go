package kafkafake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"retinue/coordinator/source"
	"retinue/coordinator/source/kafka"
)

// opened is a broker in a folder, and a source of share groups on it.
func opened(ctx context.Context, t *testing.T, dir string) (source.Source, *kadm.Client) {
	t.Helper()
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
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return s, kadm.NewClient(cl)
}

func receive(ctx context.Context, t *testing.T, s source.Source, n int) (all []*source.Message) {
	t.Helper()
	for len(all) < n {
		ms, err := s.Receive(ctx, n-len(all))
		if err != nil {
			t.Fatalf("%d of %d: %v", len(all), n, err)
		}
		all = append(all, ms...)
	}
	return all
}

// What share groups have finished is known after an end without notice, in whatever order it was finished.
func TestFinishedSurvives(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	s, _ := opened(ctx, t, dir)
	left := map[string]int{} // deliveries at least; one that was fetched ahead may have been delivered too
	for i := range 12 {
		id := fmt.Sprint(i)
		left[id] = 1
		if err := s.Publish(ctx, source.Out{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range receive(ctx, t, s, 8) {
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
	s, _ = opened(ctx, t, dir)
	for _, m := range receive(ctx, t, s, len(left)) {
		if m.Deliveries < left[m.ID] || m.Deliveries > 2 || left[m.ID] == 0 {
			t.Errorf("%s came, delivery %d; expected %d, and 2 at most", m.ID, m.Deliveries, left[m.ID])
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

// A partition of which every record is finished and deleted goes on where it ended: from 0 again, a share group would take what
// comes next for finished.
func TestEndSurvives(t *testing.T) {
	for _, end := range []string{"its end", "-1"} {
		t.Run(end, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			dir := t.TempDir()
			s, admin := opened(ctx, t, dir)
			const n = 20
			publish := func() {
				for i := range n {
					if err := s.Publish(ctx, source.Out{ID: fmt.Sprint(i)}); err != nil {
						t.Fatal(err)
					}
				}
			}
			publish()
			if err := s.Ack(ctx, receive(ctx, t, s, n)...); err != nil {
				t.Fatal(err)
			}
			const topic = "queue.q.0"
			ends, err := admin.ListEndOffsets(ctx, topic)
			if err != nil {
				t.Fatal(err)
			}
			all := kadm.Offsets{}
			for p, o := range ends[topic] {
				if end == "-1" {
					o.Offset = -1
				}
				all.AddOffset(topic, p, o.Offset, -1)
			}
			deleted, err := admin.DeleteRecords(ctx, all)
			if err := errors.Join(err, deleted.Error()); err != nil {
				t.Fatal(err)
			}
			s, admin = opened(ctx, t, dir) // nobody said goodbye
			again, err := admin.ListEndOffsets(ctx, topic)
			if err != nil {
				t.Fatal(err)
			}
			for p, o := range ends[topic] {
				if got := again[topic][p].Offset; got != o.Offset {
					t.Errorf("partition %d ended at %d, and now at %d", p, o.Offset, got)
				}
			}
			publish()
			receive(ctx, t, s, n)
		})
	}
}

package coordinator

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// bubbleClock is the clock of a synctest bubble.
type bubbleClock struct{ began time.Time }

func (c bubbleClock) Now() clock.Instant { return clock.Instant(time.Hour + time.Since(c.began)) }

// A coordinator that runs removes, by itself, its old records and dead letters: not before their time, and not much after it.
func TestOldThingsGoByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quick()
		cfg.To, cfg.Keep, cfg.DeadKeep = "", 4*time.Hour, 2*time.Hour
		broker, point := memory.New(), commit.Journal{KV: &memoryKV{}}
		half := workerFunc(func(_ context.Context, task *item.Task) worker.Verdict {
			if string(task.Body) == "bad" {
				return worker.Verdict{Kind: worker.Dead, Reason: "exit code 65"}
			}
			return worker.Verdict{Kind: worker.Ack}
		})
		c, err := New(cfg, Parts{Open: func(o source.Options) (source.Source, error) { return broker.Open(o) }, Point: point, Worker: half,
			Clock: bubbleClock{time.Now()}, Log: hclog.NewNullLogger()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		go func() {
			if err := c.Run(ctx, t.Context()); err != nil {
				t.Error(err)
			}
		}()
		defer func() { stop(); <-c.ended }()
		src, err := broker.Open(source.Options{Queue: "q", Lease: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if err := src.Publish(t.Context(), source.Out{ID: "a", Body: []byte("bad")}, source.Out{ID: "b", Body: []byte("good")}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for _, c := range []struct {
			at            time.Duration
			dead, records int
		}{{time.Minute, 1, 2}, {119 * time.Minute, 1, 2}, {130 * time.Minute, 0, 2}, {239 * time.Minute, 0, 2}, {270 * time.Minute, 0, 0}} {
			time.Sleep(c.at - time.Since(began))
			synctest.Wait()
			records := 0
			for _, id := range []string{"a", "b"} {
				rec, err := point.Read(t.Context(), "q", id)
				if err != nil {
					t.Error(err)
				}
				if rec != nil {
					records++
				}
			}
			if dead := len(broker.Items("q-dead")); dead != c.dead || records != c.records {
				t.Errorf("after %s: %d dead letters, %d records; want %d and %d", c.at, dead, records, c.dead, c.records)
			}
		}
	})
}

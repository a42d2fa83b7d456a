package coordinator

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/worker"
)

// Items that are too short for a job each are told of once; what failed says nothing of how long an item takes.
func TestWorth(t *testing.T) {
	for name, c := range map[string]struct {
		least, took time.Duration
		kind        worker.Kind
		want        int
	}{
		"short":    {10 * time.Second, 2 * time.Second, worker.Ack, 1},
		"long":     {10 * time.Second, 11 * time.Second, worker.Ack, 0},
		"failures": {10 * time.Second, 2 * time.Second, worker.Retry, 0},
		"any mode": {0, time.Millisecond, worker.Ack, 0},
	} {
		var out bytes.Buffer
		w := &worth{least: c.least, log: hclog.New(&hclog.LoggerOptions{Output: &out})}
		for range 3 * worthSeen {
			w.note(c.took, c.kind)
		}
		if got := strings.Count(out.String(), "short for a job each: mean=2s worth_it_above=10s"); got != c.want {
			t.Errorf("%s: %d warnings, want %d: %s", name, got, c.want, &out)
		}
	}
}

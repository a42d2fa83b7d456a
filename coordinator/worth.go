package coordinator

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/worker"
)

// worth tells once when attempts take less time than it is worth to begin them.
type worth struct {
	least time.Duration // 0: any time is
	log   hclog.Logger

	mu    sync.Mutex
	seen  int
	total time.Duration
}

// worthSeen are how many attempts are looked at.
const worthSeen = 20

func (w *worth) note(took time.Duration, kind worker.Kind) {
	if w.least == 0 || kind != worker.Ack {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen >= worthSeen {
		return
	}
	w.seen++
	if w.total += took; w.seen == worthSeen && w.total < worthSeen*w.least {
		w.log.Warn("items are short for a job each", "mean", (w.total / worthSeen).Round(time.Millisecond).String(), "worth_it_above", w.least.String(),
			"advice", "workers that stay (mode exec, watch or http) do more of them; divert sends them only those that take long")
	}
}

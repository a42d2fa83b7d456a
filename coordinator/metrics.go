package coordinator

import (
	"context"
	"net/http"
	"time"

	"retinue/coordinator/partition"
	"retinue/coordinator/worker"
	prom "retinue/internal/metrics"
)

// metrics are what Prometheus sees of a coordinator.
type metrics struct {
	set       *prom.Set
	attempts  *prom.Histograms
	forgotten *prom.Counter
	buried    *prom.Counter
	ticks     *prom.Counters
	gathered  *prom.Counter
}

func newMetrics(c *Coordinator) *metrics {
	set := prom.New("queue", c.cfg.Queue)
	m := &metrics{
		set:       set,
		attempts:  set.Histograms("retinue_queue_attempt_seconds", "How long attempts took at the worker, by verdict.", prom.Exponential(0.001, 4, 12), "verdict"),
		forgotten: set.Counter("retinue_queue_records_forgotten_total", "Records of ended items that were removed here, with their files, because keep was over."),
		buried:    set.Counter("retinue_queue_dead_letters_forgotten_total", "Dead letters that were removed here because they had been kept for long enough."),
		ticks:     set.Counters("retinue_queue_ticks_total", "Ticks of schedules, by how: published here, elsewhere, failed (tried again), missed.", "schedule", "how"),
		gathered:  set.Counter("retinue_queue_groups_gathered_total", "Groups whose last part was committed, and whose item was published here."),
	}
	set.Scrape(c.show)
	if in, ok := c.parts.Worker.(*worker.Inputs); ok {
		set.Scrape(func(p *prom.Page) {
			hits, fetched, failed, bytes := in.Fetcher.Counts()
			count := func(outcome string, n uint64) {
				p.Counter("retinue_queue_inputs_total", "Inputs by reference that were in the cache, were fetched, or could not be had.", float64(n), "outcome", outcome)
			}
			count("hit", hits)
			count("fetched", fetched)
			count("failed", failed)
			p.Counter("retinue_queue_input_bytes_total", "Bytes of inputs that were fetched.", float64(bytes))
		})
	}
	return m
}

func (m *metrics) handler() http.Handler { return prom.Handler(m.set) }

func (m *metrics) attempt(took time.Duration, kind worker.Kind) {
	m.attempts.With(string(kind)).Observe(took)
}

// show asks the owner and the broker at scrape time.
func (c *Coordinator) show(p *prom.Page) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	st, err := c.stats(ctx)
	if err != nil {
		return // it is ending
	}
	p.Counter("retinue_queue_received_total", "Messages taken from the broker.", float64(st.Totals.Received))
	p.Counter("retinue_queue_released_total", "Messages given back.", float64(st.Totals.Released))
	p.Counter("retinue_queue_diverted_total", "Items handed over to the coordinators of the queue that divert names.", float64(st.Totals.Diverted))
	p.Counter("retinue_queue_leases_lost_total", "Leases lost while an item was in hand.", float64(st.Totals.Lost))
	p.Counter("retinue_queue_late_total", "Outputs thrown away because another attempt had committed.", float64(st.Totals.Late))
	for state, n := range st.Totals.Ended {
		p.Counter("retinue_queue_ended_total", "Items that ended here, by how.", float64(n), "state", string(state))
	}
	for class, n := range st.Totals.Failed {
		p.Counter("retinue_queue_failed_total", "Failed attempts, and failed steps of the infrastructure, by class.", float64(n), "class", string(class))
	}
	hand := func(state string, n int) {
		p.Gauge("retinue_queue_in_hand", "Items in hand, by state.", float64(n), "state", state)
	}
	hand("waiting", st.Waiting)
	hand("running", st.Running)
	hand("finishing", st.Finishing)
	p.Gauge("retinue_queue_limit", "Calls that the worker gets at once, now.", float64(st.Limit))
	running := 0.0
	if st.Status == "running" {
		running = 1
	}
	p.Gauge("retinue_queue_running", "1 while the stage takes items.", running)
	d := st.Depth
	if d == nil {
		return
	}
	for state, n := range map[string]int64{"ready": d.Ready, "delayed": d.Delayed, "in_flight": d.InFlight} {
		if n >= 0 {
			p.Gauge("retinue_queue_depth", "Messages at the broker.", float64(n), "state", state)
		}
	}
	if d.OldestS >= 0 {
		p.Gauge("retinue_queue_oldest_seconds", "Age of the oldest message that waits.", d.OldestS)
	}
}

// stats adds the broker's numbers; without them when it does not answer.
func (c *Coordinator) stats(ctx context.Context) (Stats, error) {
	st, err := c.Stats(ctx)
	if err != nil {
		return st, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if d, err := c.source.Depth(ctx); err == nil {
		st.Depth = &Depth{Ready: d.Ready, Delayed: d.Delayed, InFlight: d.InFlight, OldestS: d.Oldest.Seconds()}
		if d.Oldest < 0 {
			st.Depth.OldestS = -1
		}
	}
	if who, ok := c.parts.Owner.(interface{ View() partition.View }); ok {
		view := who.View()
		st.Partitions = &view
	}
	return st, nil
}

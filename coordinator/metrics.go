package coordinator

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"retinue/coordinator/worker"
)

// metrics are what Prometheus sees of a coordinator.
type metrics struct {
	registry  *prometheus.Registry
	attempts  *prometheus.HistogramVec
	forgotten prometheus.Counter
	ticks     *prometheus.CounterVec
	gathered  prometheus.Counter
}

func newMetrics(c *Coordinator) *metrics {
	labels := prometheus.Labels{"queue": c.cfg.Queue}
	desc := func(name, help string, by ...string) *prometheus.Desc {
		return prometheus.NewDesc("retinue_queue_"+name, help, by, labels)
	}
	m := &metrics{registry: prometheus.NewRegistry(), attempts: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "retinue_queue_attempt_seconds",
		Help: "How long attempts took at the worker, by verdict.", ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(0.001, 4, 12)}, []string{"verdict"})}
	m.forgotten = prometheus.NewCounter(prometheus.CounterOpts{Name: "retinue_queue_records_forgotten_total", Help: "Records of ended items that were removed here, with their files, because keep was over.", ConstLabels: labels})
	m.ticks = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "retinue_queue_ticks_total", Help: "Ticks of schedules, by how: published here, elsewhere, failed (tried again), missed.", ConstLabels: labels}, []string{"schedule", "how"})
	m.gathered = prometheus.NewCounter(prometheus.CounterOpts{Name: "retinue_queue_groups_gathered_total", Help: "Groups whose last part was committed, and whose item was published here.", ConstLabels: labels})
	m.registry.MustRegister(m.attempts, m.forgotten, m.ticks, m.gathered, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &statsCollector{c: c,
		received: desc("received_total", "Messages taken from the broker."),
		ended:    desc("ended_total", "Items that ended here, by how.", "state"),
		failed:   desc("failed_total", "Failed attempts, and failed steps of the infrastructure, by class.", "class"),
		released: desc("released_total", "Messages given back."),
		lost:     desc("leases_lost_total", "Leases lost while an item was in hand."),
		late:     desc("late_total", "Outputs thrown away because another attempt had committed."),
		hand:     desc("in_hand", "Items in hand, by state.", "state"),
		limit:    desc("limit", "Calls that the worker gets at once, now."),
		running:  desc("running", "1 while the stage takes items."),
		depth:    desc("depth", "Messages at the broker.", "state"),
		oldest:   desc("oldest_seconds", "Age of the oldest message that waits.")})
	if in, ok := c.parts.Worker.(*worker.Inputs); ok {
		m.registry.MustRegister(&inputsCollector{in.Fetcher, desc("inputs_total", "Inputs by reference that were in the cache, were fetched, or could not be had.", "outcome"),
			desc("input_bytes_total", "Bytes of inputs that were fetched.")})
	}
	return m
}

// inputsCollector counts inputs by reference.
type inputsCollector struct {
	fetcher       worker.Fetcher
	inputs, bytes *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (i *inputsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- i.inputs; ch <- i.bytes }

// Collect implements prometheus.Collector.
func (i *inputsCollector) Collect(ch chan<- prometheus.Metric) {
	hits, fetched, failed, bytes := i.fetcher.Counts()
	for outcome, n := range map[string]uint64{"hit": hits, "fetched": fetched, "failed": failed} {
		ch <- prometheus.MustNewConstMetric(i.inputs, prometheus.CounterValue, float64(n), outcome)
	}
	ch <- prometheus.MustNewConstMetric(i.bytes, prometheus.CounterValue, float64(bytes))
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) attempt(took time.Duration, kind worker.Kind) {
	m.attempts.WithLabelValues(string(kind)).Observe(took.Seconds())
}

// statsCollector asks the owner and the broker at scrape time.
type statsCollector struct {
	c                                                                                  *Coordinator
	received, ended, failed, released, lost, late, hand, limit, running, depth, oldest *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s *statsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.received, s.ended, s.failed, s.released, s.lost, s.late, s.hand, s.limit, s.running, s.depth, s.oldest} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *statsCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	st, err := s.c.stats(ctx)
	if err != nil {
		return // it is ending
	}
	count := func(d *prometheus.Desc, v uint64, by ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), by...)
	}
	gauge := func(d *prometheus.Desc, v float64, by ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, by...)
	}
	count(s.received, st.Totals.Received)
	count(s.released, st.Totals.Released)
	count(s.lost, st.Totals.Lost)
	count(s.late, st.Totals.Late)
	for state, n := range st.Totals.Ended {
		count(s.ended, n, string(state))
	}
	for class, n := range st.Totals.Failed {
		count(s.failed, n, string(class))
	}
	gauge(s.hand, float64(st.Waiting), "waiting")
	gauge(s.hand, float64(st.Running), "running")
	gauge(s.hand, float64(st.Finishing), "finishing")
	gauge(s.limit, float64(st.Limit))
	running := 0.0
	if st.Status == "running" {
		running = 1
	}
	gauge(s.running, running)
	if d := st.Depth; d != nil {
		for state, n := range map[string]int64{"ready": d.Ready, "delayed": d.Delayed, "in_flight": d.InFlight} {
			if n >= 0 {
				gauge(s.depth, float64(n), state)
			}
		}
		if d.OldestS >= 0 {
			gauge(s.oldest, d.OldestS)
		}
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
	return st, nil
}

package gather

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what Prometheus sees of a root.
type metrics struct {
	registry         *prometheus.Registry
	requests         *prometheus.CounterVec
	requestTime      prometheus.Histogram
	calls            map[outcome]prometheus.Counter
	callTime         prometheus.Histogram
	hedgesSent       prometheus.Counter
	hedgesWon        prometheus.Counter
	hedgesSuppressed prometheus.Counter
	retries          prometheus.Counter
	ejections        prometheus.Counter
	lastResort       prometheus.Counter
}

func newMetrics(root *Root) *metrics {
	labels := prometheus.Labels{"root": root.cfg.Name}
	m := &metrics{registry: prometheus.NewRegistry(), calls: map[outcome]prometheus.Counter{}}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "retinue_gather_" + name, Help: help, ConstLabels: labels})
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "retinue_gather_" + name, Help: help, ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)})
		m.registry.MustRegister(h)
		return h
	}
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "retinue_gather_requests_total", Help: "Requests of clients, by status and whether the answer was whole.", ConstLabels: labels}, []string{"status", "whole"})
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "retinue_gather_leaf_calls_total", Help: "Calls of leaves, by outcome.", ConstLabels: labels}, []string{"outcome"})
	m.registry.MustRegister(m.requests, calls)
	for _, o := range []outcome{gotAnswer, gotEmpty, gotPartial, refused, pushedBack, serverError, unreached, broken, malformed, tooLarge, timedOut, lostHedge, cancelled} {
		m.calls[o] = calls.WithLabelValues(string(o))
	}
	m.requestTime = histogram("request_seconds", "How long requests took.")
	m.callTime = histogram("leaf_call_seconds", "How long leaf calls took, or until they were given up.")
	m.hedgesSent = counter("hedges_sent_total", "Second copies of leaf calls.")
	m.hedgesWon = counter("hedges_won_total", "Second copies that answered first.")
	m.hedgesSuppressed = counter("hedges_suppressed_total", "Second copies not sent, for want of budget.")
	m.retries = counter("retries_total", "Leaf calls repeated on another replica after a failure, or when they were overdue.")
	m.ejections = counter("ejections_total", "Replicas left alone for a while.")
	m.lastResort = counter("last_resort_calls_total", "Leaf calls to instances that do not pass their check, because none of their shard does.")
	gauge := func(name, help string, f func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "retinue_gather_" + name, Help: help, ConstLabels: labels}, f))
	}
	gauge("requests_in_flight", "Requests under way.", func() float64 { return float64(root.busy.Load()) })
	gauge("memory_bytes", "Bytes of bodies held.", func() float64 { return float64(root.memory.Used()) })
	gauge("shards_expected", "Shards that there have to be.", func() float64 { return float64(root.cfg.Shards) })
	gauge("shards_served", "Shards with at least one instance.", func() float64 { return float64(root.fleet.served()) })
	gauge("shards_last_resort", "Shards of which no instance passes its check, so that others are asked.", func() float64 { return float64(len(root.fleet.lastResort())) })
	gauge("replicas", "Instances of all shards.", func() float64 { n, _ := root.fleet.count(); return float64(n) })
	gauge("replicas_ejected", "Instances left alone now.", func() float64 { _, out := root.fleet.count(); return float64(out) })
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) request(status int, degraded bool, took time.Duration) {
	m.requests.WithLabelValues(strconv.Itoa(status), strconv.FormatBool(!degraded)).Inc()
	m.requestTime.Observe(took.Seconds())
}

func (m *metrics) call(o outcome, took time.Duration) {
	m.calls[o].Inc()
	m.callTime.Observe(took.Seconds())
}

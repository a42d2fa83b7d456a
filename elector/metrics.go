package elector

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what Prometheus sees of an elector.
type metrics struct {
	registry    *prometheus.Registry
	transitions *prometheus.CounterVec
	renewals    *prometheus.CounterVec
	renewTime   prometheus.Histogram
	commits     *prometheus.CounterVec
	commitTime  prometheus.Histogram
	watches     prometheus.Counter
}

func newMetrics(el *Elector) *metrics {
	labels := prometheus.Labels{"app": el.cfg.App}
	counter := func(name, help string, by ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "retinue_elector_" + name, Help: help, ConstLabels: labels}, by)
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "retinue_elector_" + name, Help: help, ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)})
	}
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		transitions: counter("transitions_total", "Changes of elections, by kind.", "election", "event"),
		renewals:    counter("session_renewals_total", "Renewals of the Consul session, by outcome.", "outcome"),
		renewTime:   histogram("session_renewal_seconds", "How long Consul took to answer a renewal."),
		commits:     counter("transactions_total", "Transactions sent to Consul, by outcome.", "outcome"),
		commitTime:  histogram("transaction_seconds", "How long Consul took to answer a transaction."),
		watches:     counter("watch_wakeups_total", "Answers to the blocking query.").WithLabelValues(),
	}
	m.registry.MustRegister(m.transitions, m.renewals, m.renewTime, m.commits, m.commitTime, m.watches, &electionCollector{el: el,
		leader:    prometheus.NewDesc("retinue_elector_leader", "1 while this elector's application leads, by the clock.", []string{"election"}, labels),
		token:     prometheus.NewDesc("retinue_elector_fencing_token", "Token of the leadership held here; 0 when none.", []string{"election"}, labels),
		remaining: prometheus.NewDesc("retinue_elector_lease_remaining_seconds", "What is left of the lease held here.", []string{"election"}, labels),
		connected: prometheus.NewDesc("retinue_elector_connected", "1 while the Consul session is confirmed.", nil, labels)},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) event(ev Event) { m.transitions.WithLabelValues(ev.Election, string(ev.Type)).Inc() }

func (m *metrics) renewed(took time.Duration, err error) {
	m.renewTime.Observe(took.Seconds())
	m.renewals.WithLabelValues(outcome(err)).Inc()
}

func (m *metrics) committed(took time.Duration, err error) {
	m.commitTime.Observe(took.Seconds())
	m.commits.WithLabelValues(outcome(err)).Inc()
}

func (m *metrics) watched() { m.watches.Inc() }

func outcome(err error) string {
	switch {
	case err == nil:
		return "answered"
	case gone(err):
		return "session_gone"
	}
	return "no_answer"
}

// electionCollector reads the published views at scrape time: what it reports is true by the clock.
type electionCollector struct {
	el                                  *Elector
	leader, token, remaining, connected *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *electionCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.leader, c.token, c.remaining, c.connected} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *electionCollector) Collect(ch chan<- prometheus.Metric) {
	now := c.el.clock.Now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, name := range c.el.cfg.Elections {
		v := c.el.feed.view(name)
		leads, remaining := 0.0, 0.0
		if v.Role(now) == Leader {
			leads, remaining = 1, v.Deadline.Sub(now).Seconds()
		}
		gauge(c.leader, leads, name)
		gauge(c.token, float64(v.Token), name)
		gauge(c.remaining, remaining, name)
	}
	connected := 0.0
	if c.el.feed.info.Load().Connected {
		connected = 1
	}
	gauge(c.connected, connected)
}

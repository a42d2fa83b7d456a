package elector

import (
	"net/http"
	"time"

	prom "retinue/internal/metrics"
)

// metrics are what Prometheus sees of an elector.
type metrics struct {
	set         *prom.Set
	transitions *prom.Counters
	renewals    *prom.Counters
	renewTime   prom.Histogram
	commits     *prom.Counters
	commitTime  prom.Histogram
	watches     *prom.Counter
}

func newMetrics(el *Elector) *metrics {
	set, times := prom.New("app", el.cfg.App), prom.Exponential(0.0005, 2, 14)
	m := &metrics{
		set:         set,
		transitions: set.Counters("retinue_elector_transitions_total", "Changes of elections, by kind.", "election", "event"),
		renewals:    set.Counters("retinue_elector_session_renewals_total", "Renewals of the Consul session, by outcome.", "outcome"),
		renewTime:   set.Histogram("retinue_elector_session_renewal_seconds", "How long Consul took to answer a renewal.", times),
		commits:     set.Counters("retinue_elector_transactions_total", "Transactions sent to Consul, by outcome.", "outcome"),
		commitTime:  set.Histogram("retinue_elector_transaction_seconds", "How long Consul took to answer a transaction.", times),
		watches:     set.Counter("retinue_elector_watch_wakeups_total", "Answers to the blocking query."),
	}
	set.Scrape(el.show)
	return m
}

func (m *metrics) handler() http.Handler { return prom.Handler(m.set) }

func (m *metrics) event(ev Event) { m.transitions.With(ev.Election, string(ev.Type)).Inc() }

func (m *metrics) renewed(took time.Duration, err error) {
	m.renewTime.Observe(took)
	m.renewals.With(outcome(err)).Inc()
}

func (m *metrics) committed(took time.Duration, err error) {
	m.commitTime.Observe(took)
	m.commits.With(outcome(err)).Inc()
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

// show reads the published views at scrape time: what it reports is true by the clock.
func (el *Elector) show(p *prom.Page) {
	now := el.clock.Now()
	for _, name := range el.cfg.Elections {
		v := el.feed.view(name)
		leads, remaining := 0.0, 0.0
		if v.Role(now) == Leader {
			leads, remaining = 1, v.Deadline.Sub(now).Seconds()
		}
		p.Gauge("retinue_elector_leader", "1 while this elector's application leads, by the clock.", leads, "election", name)
		p.Gauge("retinue_elector_fencing_token", "Token of the leadership held here; 0 when none.", float64(v.Token), "election", name)
		p.Gauge("retinue_elector_lease_remaining_seconds", "What is left of the lease held here.", remaining, "election", name)
	}
	connected := 0.0
	if el.feed.info.Load().Connected {
		connected = 1
	}
	p.Gauge("retinue_elector_connected", "1 while the Consul session is confirmed.", connected)
}

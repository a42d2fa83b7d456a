package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"retinue/internal/hint"
	"retinue/internal/listen"
)

// Handler returns the HTTP interface of a process with one scaler or several: GET /v1/scale (a list with a Status of each), /metrics,
// /healthz, /readyz.
func Handler(scalers ...*Scaler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/scale", func(w http.ResponseWriter, _ *http.Request) {
		all := make([]Status, len(scalers))
		for i, s := range scalers {
			all[i] = s.Status()
		}
		answer(w, http.StatusOK, all)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		for _, s := range scalers {
			if !s.healthy() {
				verdict(w, false, "the scaler of "+s.cfg.Queue+" makes no steps")
				return
			}
		}
		verdict(w, true, "")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		for _, s := range scalers {
			if st := s.Status(); st.Leader == "" || st.Trouble != "" {
				verdict(w, false, st.Queue+": nobody leads, or "+st.Trouble)
				return
			}
		}
		verdict(w, true, "")
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, s := range scalers {
		registry.MustRegister(newCollector(s))
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return http.NewCrossOriginProtection().Handler(mux)
}

func verdict(w http.ResponseWriter, good bool, message string) {
	if good {
		answer(w, http.StatusOK, map[string]bool{"ok": true})
		return
	}
	answer(w, http.StatusServiceUnavailable, map[string]string{"error": "not_ready", "message": message})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone when it fails
}

// collector shows a status to Prometheus. Of the scalers of a queue, the one that leads shows the decision.
type collector struct {
	s                                                              *Scaler
	leader, items, service, count, running, wanted, trouble, total *prometheus.Desc
}

func newCollector(s *Scaler) *collector {
	labels := prometheus.Labels{"queue": s.cfg.Queue, "group": s.cfg.Group}
	desc := func(name, help string, by ...string) *prometheus.Desc {
		return prometheus.NewDesc("retinue_scaler_"+name, help, by, labels)
	}
	return &collector{s: s,
		leader:  desc("leader", "1 on the scaler that leads."),
		items:   desc("items", "Items that wait or are in flight."),
		service: desc("service_seconds", "Time of an item in a slot, by which the count is computed."),
		count:   desc("count", "Count of the group at Nomad."),
		running: desc("running", "Allocations of the group that run."),
		wanted:  desc("wanted", "Workers: formula is what the work asks for, limited what all limits allow.", "after"),
		trouble: desc("trouble", "1 while something keeps the scaler from working."),
		total:   desc("changes_total", "Changes of the count, and attempts at it, by what came of them.", "result")}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.leader, c.items, c.service, c.count, c.running, c.wanted, c.trouble, c.total} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Status()
	gauge := func(d *prometheus.Desc, v float64, by ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, by...)
	}
	leads := st.Leader == st.Scaler
	gauge(c.leader, one(leads))
	gauge(c.trouble, one(st.Trouble != ""))
	for result, n := range map[string]uint64{"up": st.Changes.Up, "down": st.Changes.Down, "blocked": st.Changes.Blocked, "failed": st.Changes.Failed} {
		ch <- prometheus.MustNewConstMetric(c.total, prometheus.CounterValue, float64(n), result)
	}
	if d := st.Decision; d != nil && leads {
		gauge(c.items, float64(d.Items))
		gauge(c.service, d.ServiceS)
		gauge(c.count, float64(d.Seen.Count))
		gauge(c.running, float64(d.Seen.Running))
		gauge(c.wanted, float64(d.Wanted), "formula")
		gauge(c.wanted, float64(d.Count), "limited")
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// Ask returns the status of each scaler at addr (unix:///path or http://127.0.0.1:PORT).
func Ask(ctx context.Context, addr string) (all []Status, err error) {
	a, err := listen.Parse(addr)
	if err != nil {
		return nil, err
	}
	client, base := listen.Client(a)
	client.Timeout = 10 * time.Second
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/scale", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("reach the scaler: %w", err), "is one running at %s? it is the task scaler of the job: nomad alloc exec -task scaler ALLOC retinue queue scale --why", addr)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the scaler's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the scaler answered %s", resp.Status)
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("read the scaler's answer: %w", err)
	}
	return all, nil
}

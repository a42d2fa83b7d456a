package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"retinue/internal/hint"
	"retinue/internal/listen"
	"retinue/internal/metrics"
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
	var sets []*metrics.Set
	for _, s := range scalers {
		set := metrics.New("queue", s.cfg.Queue, "group", s.cfg.Group)
		set.Scrape(s.show)
		sets = append(sets, set)
	}
	mux.Handle("GET /metrics", metrics.Handler(sets...))
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

// show tells Prometheus the status. Of the scalers of a queue, the one that leads shows the decision.
func (s *Scaler) show(p *metrics.Page) {
	st := s.Status()
	leads := st.Leader == st.Scaler
	p.Gauge("retinue_scaler_leader", "1 on the scaler that leads.", one(leads))
	p.Gauge("retinue_scaler_trouble", "1 while something keeps the scaler from working.", one(st.Trouble != ""))
	changes := func(result string, n uint64) {
		p.Counter("retinue_scaler_changes_total", "Changes of the count, and attempts at it, by what came of them.", float64(n), "result", result)
	}
	changes("up", st.Changes.Up)
	changes("down", st.Changes.Down)
	changes("blocked", st.Changes.Blocked)
	changes("failed", st.Changes.Failed)
	d := st.Decision
	if d == nil || !leads {
		return
	}
	p.Gauge("retinue_scaler_items", "Items that wait or are in flight.", float64(d.Items))
	p.Gauge("retinue_scaler_service_seconds", "Time of an item in a slot, by which the count is computed.", d.ServiceS)
	p.Gauge("retinue_scaler_count", "Count of the group at Nomad.", float64(d.Seen.Count))
	p.Gauge("retinue_scaler_running", "Allocations of the group that run.", float64(d.Seen.Running))
	const wanted = "Workers: formula is what the work asks for, limited what all limits allow."
	p.Gauge("retinue_scaler_wanted", wanted, float64(d.Wanted), "after", "formula")
	p.Gauge("retinue_scaler_wanted", wanted, float64(d.Count), "after", "limited")
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

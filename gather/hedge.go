package gather

import (
	"strings"
	"sync"
	"time"

	"retinue/internal/clock"
)

// maxClasses bounds how many path classes are measured apart; what comes later shares one.
const maxClasses = 64

// Hedger decides when a leaf call gets a second copy: after the measured quantile of calls of its class, while the budget lasts.
type Hedger struct {
	cfg    HedgeConfig
	budget *Budget

	mu      sync.RWMutex
	classes map[string]*Quantile
}

// NewHedger returns a hedger that has measured nothing yet.
func NewHedger(cfg HedgeConfig) *Hedger {
	return &Hedger{cfg: cfg, budget: NewBudget(cfg.Budget, fewTokens, true), classes: map[string]*Quantile{}}
}

// classOf is the method and the first segment of the path: calls that do the same thing.
func classOf(method, path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return method + " /" + first
}

// class returns the latencies of a class.
func (h *Hedger) class(name string) *Quantile {
	h.mu.RLock()
	q := h.classes[name]
	h.mu.RUnlock()
	if q != nil {
		return q
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.classes) >= maxClasses {
		name = "other"
	}
	if q = h.classes[name]; q == nil {
		q = &Quantile{}
		h.classes[name] = q
	}
	return q
}

// Delay says after how long a call of this class is hedged; false: not at all.
func (h *Hedger) Delay(q *Quantile, method string) (time.Duration, bool) {
	if h.cfg.Budget == 0 || !h.cfg.Methods[method] {
		return 0, false
	}
	d, ok := q.At(h.cfg.Quantile)
	return max(d, h.cfg.Min), ok
}

// probed is the quantile of latency after which a probe is hedged. A request to a few leaves waits for that long anyway.
const probed = 0.95

// ProbeDelay says after how long a call is hedged that is a probe, when others are after delay.
func (h *Hedger) ProbeDelay(q *Quantile, delay time.Duration) time.Duration {
	d, _ := q.At(probed)
	return min(d, delay)
}

// May takes a token for one hedge; again says that it was refused before.
func (h *Hedger) May(now clock.Instant, again bool) bool {
	if again {
		return h.budget.SpendAgain(now)
	}
	return h.budget.Spend(now)
}

// Want notes a hedge that would help, if it could be had: enough of them are an outage.
func (h *Hedger) Want(now clock.Instant) { h.budget.Want(now) }

// delays are the hedge delays by class, for people.
func (h *Hedger) delays() map[string]float64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := map[string]float64{}
	for name, q := range h.classes {
		if d, ok := q.At(h.cfg.Quantile); ok {
			out[name] = ms(max(d, h.cfg.Min))
		}
	}
	return out
}

package gather

import (
	"net/http"
	"strconv"
	"time"

	prom "retinue/internal/metrics"
)

// metrics are what Prometheus sees of a root.
type metrics struct {
	set              *prom.Set
	requests         *prom.Counters
	requestTime      prom.Histogram
	calls            map[outcome]*prom.Counter
	callTime         prom.Histogram
	hedgesSent       *prom.Counter
	hedgesWon        *prom.Counter
	hedgesSuppressed *prom.Counter
	retries          *prom.Counter
	ejections        *prom.Counter
	lastResort       *prom.Counter
}

func newMetrics(root *Root) *metrics {
	set, times := prom.New("root", root.cfg.Name), prom.Exponential(0.0005, 2, 14)
	m := &metrics{
		set:              set,
		requests:         set.Counters("retinue_gather_requests_total", "Requests of clients, by status and whether the answer was whole.", "status", "whole"),
		requestTime:      set.Histogram("retinue_gather_request_seconds", "How long requests took.", times),
		calls:            map[outcome]*prom.Counter{},
		callTime:         set.Histogram("retinue_gather_leaf_call_seconds", "How long leaf calls took, or until they were given up.", times),
		hedgesSent:       set.Counter("retinue_gather_hedges_sent_total", "Second copies of leaf calls."),
		hedgesWon:        set.Counter("retinue_gather_hedges_won_total", "Second copies that answered first."),
		hedgesSuppressed: set.Counter("retinue_gather_hedges_suppressed_total", "Second copies not sent, for want of budget."),
		retries:          set.Counter("retinue_gather_retries_total", "Leaf calls repeated on another replica after a failure, or when they were overdue."),
		ejections:        set.Counter("retinue_gather_ejections_total", "Replicas left alone for a while."),
		lastResort:       set.Counter("retinue_gather_last_resort_calls_total", "Leaf calls to instances that do not pass their check, because none of their shard does."),
	}
	calls := set.Counters("retinue_gather_leaf_calls_total", "Calls of leaves, by outcome.", "outcome")
	for _, o := range []outcome{gotAnswer, gotEmpty, gotPartial, refused, pushedBack, serverError, unreached, broken, malformed, tooLarge, timedOut, lostHedge, cancelled} {
		m.calls[o] = calls.With(string(o))
	}
	gauge := func(name, help string, read func() float64) { set.Gauge("retinue_gather_"+name, help, read) }
	gauge("requests_in_flight", "Requests under way.", func() float64 { return float64(root.busy.Load()) })
	gauge("memory_bytes", "Bytes of bodies held.", func() float64 { return float64(root.memory.Used()) })
	gauge("shards_expected", "Shards that there have to be.", func() float64 { return float64(root.cfg.Shards) })
	gauge("shards_served", "Shards with at least one instance.", func() float64 { return float64(root.fleet.served()) })
	gauge("shards_last_resort", "Shards of which no instance passes its check, so that others are asked.", func() float64 { return float64(len(root.fleet.lastResort())) })
	gauge("replicas", "Instances of all shards.", func() float64 { n, _ := root.fleet.count(); return float64(n) })
	gauge("replicas_ejected", "Instances left alone now.", func() float64 { _, out := root.fleet.count(); return float64(out) })
	return m
}

func (m *metrics) handler() http.Handler { return prom.Handler(m.set) }

func (m *metrics) request(status int, degraded bool, took time.Duration) {
	m.requests.With(strconv.Itoa(status), strconv.FormatBool(!degraded)).Inc()
	m.requestTime.Observe(took)
}

func (m *metrics) call(o outcome, took time.Duration) {
	m.calls[o].Inc()
	m.callTime.Observe(took)
}

package gather

import (
	_ "embed"
	"encoding/json"
	"math"
	"net/http"
	"time"

	"retinue/internal/clock"
)

// openAPI describes the admin API. A test generates it from the handlers and compares.
//
//go:embed openapi.json
var openAPI []byte

// StateView is the root as people see it.
type StateView struct {
	Name         string             `json:"name"`
	Started      time.Time          `json:"started"`
	Ready        bool               `json:"ready"`
	Why          string             `json:"not_ready_because,omitempty"`
	Policy       string             `json:"policy"`
	Merge        string             `json:"merge"`
	Shards       int                `json:"shards"`
	Served       int                `json:"shards_served"`
	InFlight     int64              `json:"requests_in_flight"`
	MemoryBytes  int64              `json:"memory_bytes"`
	MemoryLimit  int64              `json:"memory_limit_bytes"`
	RequestP50   float64            `json:"request_p50_ms"`
	RequestP99   float64            `json:"request_p99_ms"`
	MergeReserve float64            `json:"merge_reserve_ms"`
	HedgeAfter   map[string]float64 `json:"hedge_after_ms"`
	HedgeBudget  BudgetState        `json:"hedge_budget"`
	RetryBudget  BudgetState        `json:"retry_budget"`
	Catalog      *CatalogState      `json:"catalog,omitempty"`
	Leaves       []ShardView        `json:"leaves"`
}

// ShardView is one shard with its replicas.
type ShardView struct {
	Shard      int           `json:"shard"`
	Weight     float64       `json:"weight"`
	LastResort bool          `json:"last_resort"` // no instance passes its check: these are asked all the same
	Replicas   []ReplicaView `json:"replicas"`
}

// ReplicaView is one instance.
type ReplicaView struct {
	Name      string  `json:"name"`
	Node      string  `json:"node,omitempty"`
	URL       string  `json:"url"`
	InFlight  int64   `json:"in_flight"`
	LatencyMS float64 `json:"latency_ms"`
	Calls     uint64  `json:"calls_total"`
	Errors    uint64  `json:"errors_total"`
	Lost      uint64  `json:"too_slow_total"`
	State     string  `json:"state"` // in, suspect, out or probe
	OutMS     float64 `json:"out_for_ms,omitempty"`
	Check     string  `json:"check,omitempty"` // of a last resort: critical, warning or deregistered
}

// Admin returns the admin API. It belongs on local addresses only.
func (root *Root) Admin() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range root.adminRoutes() {
		mux.Handle(pattern, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, Problem{Status: http.StatusNotFound, Cause: "not_found", Detail: "no such path; GET /v1/state shows the root"})
	})
	return http.NewCrossOriginProtection().Handler(mux)
}

func (root *Root) adminRoutes() map[string]http.Handler {
	get := func(f func(r *http.Request) (any, *Problem)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, p := f(r)
			if p != nil {
				writeProblem(w, *p)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			json.NewEncoder(w).Encode(v)
		})
	}
	return map[string]http.Handler{
		"GET /v1/state":    get(func(*http.Request) (any, *Problem) { return root.State(), nil }),
		"GET /v1/requests": get(func(*http.Request) (any, *Problem) { return root.timelines.list(), nil }),
		"GET /v1/requests/{id}": get(func(r *http.Request) (any, *Problem) {
			if t := root.timelines.find(r.PathValue("id")); t != nil {
				return t, nil
			}
			return nil, &Problem{Status: http.StatusNotFound, Cause: "not_found", Detail: "no timeline of this request is kept: only slow ones, those that were not whole, and those with Retinue-Explain: 1 are, and the last 128 of them"}
		}),
		"GET /v1/openapi.json": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(openAPI)
		}),
		"GET /healthz": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { root.health(w, false) }),
		"GET /readyz":  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { root.health(w, true) }),
		"GET /metrics": root.metrics.handler(),
	}
}

// State describes the root now.
func (root *Root) State() StateView {
	now := root.clock.Now()
	ready, why := root.Ready()
	v := StateView{Name: root.cfg.Name, Started: root.started.UTC(), Ready: ready, Why: why, Policy: root.cfg.Policy.String(), Merge: root.cfg.Merge.String(),
		Shards: root.cfg.Shards, Served: root.fleet.served(), InFlight: root.busy.Load(), MemoryBytes: root.memory.Used(), MemoryLimit: root.cfg.MaxGathered,
		MergeReserve: ms(root.reserve(root.cfg.Deadline)), HedgeAfter: root.hedger.delays(), HedgeBudget: root.hedger.budget.State(now), RetryBudget: root.retries.State(now),
		Catalog: root.catalog.Load(), Leaves: make([]ShardView, 0, root.cfg.Shards)}
	if d, ok := root.total.At(0.5); ok {
		v.RequestP50 = ms(d)
	}
	if d, ok := root.total.At(0.99); ok {
		v.RequestP99 = ms(d)
	}
	for _, p := range root.fleet.pools {
		m := p.members()
		s := ShardView{Shard: p.shard, Weight: p.weighs(), LastResort: m.checks != nil, Replicas: []ReplicaView{}}
		for _, r := range m.replicas {
			v := r.view(now)
			v.Check = m.check(r)
			s.Replicas = append(s.Replicas, v)
		}
		v.Leaves = append(v.Leaves, s)
	}
	return v
}

func (r *replica) view(now clock.Instant) ReplicaView {
	v := ReplicaView{Name: r.name, Node: r.node, URL: r.base.String(), InFlight: r.inflight.Load(), LatencyMS: ms(time.Duration(math.Float64frombits(r.latency.Load()))),
		Calls: r.calls.Load(), Errors: r.errors.Load(), Lost: r.lost.Load(), State: "in"}
	if until := clock.Instant(r.outUntil.Load()); until != 0 {
		v.State = "probe"
		if left := until.Sub(now); left > 0 {
			v.State, v.OutMS = "out", ms(left)
		}
	} else if r.suspect() {
		v.State = "suspect"
	}
	return v
}

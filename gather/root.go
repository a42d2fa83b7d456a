package gather

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
	"retinue/internal/listen"
)

// Root is a running root.
type Root struct {
	cfg       Config
	clock     clock.Clock
	log       hclog.Logger
	started   time.Time
	fleet     *fleet
	hedger    *Hedger
	retries   *Budget
	memory    *Memory
	admission *Admission
	metrics   *metrics
	timelines *timelines
	mergeTime *Quantile
	total     *Quantile // of whole requests
	late      Lateness
	forwarded []string
	all       []int // shards

	leaves *http.Transport
	merge  *local // the merge container; nil when built in
	route  *local

	busy    atomic.Int64
	catalog atomic.Pointer[CatalogState]
}

// New returns a root that knows its static leaves. Watch tells it those of the catalog.
func New(cfg Config, clk clock.Clock, log hclog.Logger) (*Root, error) {
	root := &Root{cfg: cfg, clock: clk, log: log, started: time.Now(), hedger: NewHedger(cfg.Hedge), retries: NewBudget(cfg.Retry, retryReserve(&cfg), false),
		memory: NewMemory(cfg.MaxGathered), timelines: newTimelines(), mergeTime: &Quantile{}, total: &Quantile{}, forwarded: cfg.forwarded()}
	root.admission = NewAdmission(root.memory)
	root.fleet = newFleet(&root.cfg)
	for i := range cfg.Shards {
		root.all = append(root.all, i)
	}
	root.metrics = newMetrics(root)
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	root.leaves = &http.Transport{DialContext: dialer.DialContext, DisableCompression: true, MaxIdleConnsPerHost: cfg.MaxConcurrent, IdleConnTimeout: 90 * time.Second,
		ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: false}
	var err error
	if cfg.Merge.Kind == MergeContainer {
		root.merge = newLocal(cfg.Merge.endpoint, cfg.MaxConcurrent)
	}
	if cfg.Route != "" {
		var e endpoint
		if e, err = parseEndpoint(cfg.Route); err == nil {
			root.route = newLocal(e, cfg.MaxConcurrent)
		}
	}
	return root, err
}

// local is a container beside the root.
type local struct {
	url       string
	transport *http.Transport
}

func newLocal(e endpoint, conns int) *local {
	t := &http.Transport{}
	if e.socket != "" {
		c, _ := listen.Client(listen.Addr{Network: "unix", Path: e.socket})
		t = c.Transport.(*http.Transport)
	}
	t.MaxIdleConnsPerHost, t.DisableCompression, t.IdleConnTimeout = conns, true, 90*time.Second
	watched(t)
	return &local{url: e.url.String(), transport: t}
}

// Serve answers clients on l until ctx ends; then requests under way have until the longest deadline.
func (root *Root) Serve(ctx context.Context, l net.Listener) error {
	grace := root.cfg.DeadlineMax + time.Second
	srv := &http.Server{Handler: root, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		WriteTimeout: root.cfg.DeadlineMax + 30*time.Second, ErrorLog: root.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	<-done
	return nil
}

// Close lets go of idle connections.
func (root *Root) Close() {
	root.leaves.CloseIdleConnections()
	for _, l := range []*local{root.merge, root.route} {
		if l != nil {
			l.transport.CloseIdleConnections()
		}
	}
}

func (root *Root) earn(now clock.Instant, calls int) {
	root.hedger.budget.Earn(now, calls)
	root.retries.Earn(now, calls)
}

// blame notes a failure of a replica, and tells people when it was ejected for it.
func (root *Root) blame(p *pool, r *replica, now clock.Instant) {
	r.errors.Add(1)
	if p.bad(r, now) {
		root.metrics.ejections.Inc()
		root.log.Warn("replica ejected", "shard", p.shard, "replica", r.name, "node", r.node, "for", clock.Instant(r.outUntil.Load()).Sub(now).Round(time.Millisecond))
	}
}

// reserve is what the merge gets of a deadline: what it takes, and what the root is late by itself, within bounds.
func (root *Root) reserve(total time.Duration) time.Duration {
	if root.cfg.Reserve > 0 {
		return root.cfg.Reserve
	}
	return root.mergeReserve(total) + min(root.late.At(root.clock.Now()), latest(total))
}

func (root *Root) mergeReserve(total time.Duration) time.Duration {
	if d, ok := root.mergeTime.At(0.99); ok {
		return d + mergeMargin
	}
	if root.merge != nil {
		return total/10 + mergeMargin // not measured yet
	}
	return mergeMargin
}

// Ready says whether the root can answer: the leaves are known, and if every instance answered the policy would be met.
func (root *Root) Ready() (bool, string) {
	if !root.fleet.known.Load() {
		return false, "the catalog has not been read yet"
	}
	var c Coverage
	for _, p := range root.fleet.pools {
		state := OK
		if len(p.list()) == 0 {
			state = Missing
		}
		c.Add(state, p.weighs(), 1)
	}
	if c.OK == 0 || !root.cfg.Policy.Met(c) {
		return false, "shards without an instance: " + c.String()
	}
	return true, ""
}

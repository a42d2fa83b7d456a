package gather

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/consulkit"
)

const (
	watchWait  = 5 * time.Minute
	watchPause = 100 * time.Millisecond // between two answers: a flapping service must not make the root busy
	watchRetry = time.Second
	watchMax   = 15 * time.Second
)

// CatalogState is what is known of the catalog.
type CatalogState struct {
	Service  string    `json:"service"`
	Index    uint64    `json:"index"`
	Updated  time.Time `json:"updated"`
	Error    string    `json:"error,omitempty"` // of the last query; the last known set keeps serving
	Unusable []string  `json:"unusable,omitempty"`
}

// watcher follows the leaves' service.
type watcher struct {
	root   *Root
	client *consulkit.Client
	state  CatalogState
	pause  time.Duration // after an error
	leaves []instance
	forget time.Duration // after which leaves that left the catalog are forgotten; 0: none did
	leader bool          // the next answer has to be the leader's
}

// Watch follows the leaves' service in the Consul catalog until ctx ends. While Consul does not answer, the last known set serves.
func (root *Root) Watch(ctx context.Context, client *consulkit.Client) {
	w := watcher{root: root, client: client, state: CatalogState{Service: root.cfg.Service}, pause: watchRetry}
	for ctx.Err() == nil && sleep(ctx, w.step(ctx)) {
	}
}

// step asks once, which may take as long as nothing changes, and returns how long to wait before the next time.
func (w *watcher) step(ctx context.Context) time.Duration {
	entries, index, err := w.query(ctx)
	switch {
	case ctx.Err() != nil:
		return 0
	case err != nil:
		return w.failed(err)
	case index < w.state.Index:
		// Any server may answer, and this one knows less than we do: it lags behind, or they all were restored. Its leaves are
		// not believed; the leader's will be, whatever its index.
		w.state.Index, w.leader = 0, true
		return watchPause
	}
	if w.state.Error != "" {
		w.root.log.Info("the catalog answers again", "service", w.root.cfg.Service)
	}
	changed := index != w.state.Index || w.state.Updated.IsZero()
	w.pause, w.leader = watchRetry, false
	w.state.Index, w.state.Error = index, ""
	if changed {
		w.leaves, w.state.Unusable = readEntries(entries, w.root.cfg.Shards)
		w.state.Updated = time.Now().UTC()
	}
	if changed || w.forget > 0 {
		w.update(changed)
	}
	w.publish()
	return watchPause
}

// failed notes that Consul did not answer.
func (w *watcher) failed(err error) time.Duration {
	if w.state.Error == "" {
		w.root.log.Warn("the catalog does not answer; the last known leaves keep serving", "service", w.root.cfg.Service, "error", w.client.Advice(err))
	}
	w.state.Error = err.Error()
	w.publish()
	pause := w.pause
	w.pause = min(2*pause, watchMax)
	return pause/2 + rand.N(pause/2)
}

// update tells the fleet, and people.
func (w *watcher) update(changed bool) {
	f, log := w.root.fleet, w.root.log.With("service", w.root.cfg.Service)
	before := f.lastResort()
	w.forget = f.update(w.leaves, w.root.clock.Now())
	if changed {
		log.Info("leaves", "instances", len(w.leaves), "shards_served", f.served(), "shards", w.root.cfg.Shards, "unusable", len(w.state.Unusable))
	}
	if now := f.lastResort(); len(now) > 0 && !slices.Equal(now, before) {
		log.Warn("shards of which no instance passes its check: the others are asked as a last resort", "shards", now)
	} else if len(now) == 0 && len(before) > 0 {
		log.Info("no shard needs its last resort any more")
	}
}

func (w *watcher) publish() {
	state := w.state
	w.root.catalog.Store(&state)
}

// query asks for all instances, also for those whose check does not pass: when none does, they are what is left.
func (w *watcher) query(ctx context.Context) ([]*api.ServiceEntry, uint64, error) {
	token, err := w.client.Token()
	if err != nil {
		return nil, 0, err
	}
	opts := &api.QueryOptions{WaitIndex: w.state.Index, WaitTime: watchWait, Token: token, AllowStale: !w.leader}
	if w.forget > 0 {
		opts.WaitTime = w.forget
	}
	if w.state.Error != "" {
		opts.WaitIndex = 0 // whether Consul answers again is to be seen at once, not when something changes
	}
	entries, meta, err := w.client.Health().Service(w.root.cfg.Service, "", false, opts.WithContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	return entries, meta.LastIndex, nil
}

// sleep waits, and says whether there was time for it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// readEntries makes leaves of what the catalog says, and lists what is of no use, with the reason.
func readEntries(entries []*api.ServiceEntry, shards int) (instances []instance, unusable []string) {
	for _, e := range entries {
		in, err := readEntry(e, shards)
		if err != nil {
			unusable = append(unusable, fmt.Sprintf("%s on %s: %v", e.Service.ID, e.Node.Node, err))
			continue
		}
		instances = append(instances, in)
	}
	slices.SortFunc(instances, func(a, b instance) int { return cmp.Or(cmp.Compare(a.shard, b.shard), strings.Compare(a.key, b.key)) })
	return instances, unusable
}

func readEntry(e *api.ServiceEntry, shards int) (instance, error) {
	value := func(key string) string {
		if v := e.Service.Meta[key]; v != "" {
			return v
		}
		for _, tag := range e.Service.Tags {
			if v, ok := strings.CutPrefix(tag, key+"="); ok {
				return v
			}
		}
		return ""
	}
	in := instance{key: e.Node.Node + "/" + e.Service.ID, name: value("replica"), node: e.Node.Node, check: e.Checks.AggregatedStatus()}
	if in.name == "" {
		in.name = e.Service.ID
	}
	shard := value("shard")
	n, err := strconv.Atoi(shard)
	switch {
	case shard == "":
		return in, fmt.Errorf("no shard in its meta or tags")
	case err != nil || n < 0 || n >= shards:
		return in, fmt.Errorf("shard %q is not a number from 0 to %d", shard, shards-1)
	}
	in.shard = n
	if w := value("weight"); w != "" {
		if in.weight, err = parseWeight(w); err != nil {
			return in, err
		}
	}
	address := e.Service.Address
	if address == "" {
		address = e.Node.Address
	}
	if address == "" || e.Service.Port == 0 {
		return in, fmt.Errorf("no address and port")
	}
	in.url = "http://" + net.JoinHostPort(address, strconv.Itoa(e.Service.Port))
	return in, nil
}

package gather

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/clock"
)

// instance is a leaf as the catalog or the configuration names it.
type instance struct {
	shard  int
	key    string
	name   string
	node   string
	url    string
	weight float64 // 0: not said
	check  string  // passing, warning, critical or maintenance, as in Consul; or deregistered
}

const (
	// deregistered is an instance that has left the catalog. For a while it is kept as a last resort: leaves go on for two seconds
	// after they have left (shutdown_delay of the job specification), and the one that takes over may be known only later.
	deregistered = "deregistered"
	keepFor      = 2 * time.Second
)

// departed is an instance that has left the catalog.
type departed struct {
	instance
	until clock.Instant
}

// fleet holds all shards. The set of shards never changes; their replicas and weights do.
type fleet struct {
	cfg   *Config
	pools []*pool
	known atomic.Bool // the leaves were told at least once

	mu       sync.Mutex
	static   []instance
	catalog  []instance
	departed []departed
	remember map[int]float64 // the last weight seen of each shard
}

func newFleet(cfg *Config) *fleet {
	f := &fleet{cfg: cfg, remember: map[int]float64{}}
	for i := range cfg.Shards {
		p := &pool{shard: i, label: []string{fmt.Sprintf("%d/%d", i, cfg.Shards)}, cfg: &cfg.Eject}
		p.weight.Store(math.Float64bits(1))
		f.pools = append(f.pools, p)
	}
	for shard, urls := range cfg.Static {
		for _, u := range urls {
			f.static = append(f.static, instance{shard: shard, key: u, name: strings.TrimPrefix(u, "http://"), url: u, check: api.HealthPassing})
		}
	}
	slices.SortFunc(f.static, func(a, b instance) int { return strings.Compare(a.key, b.key) })
	f.apply()
	f.known.Store(cfg.Service == "")
	return f
}

// update takes what the catalog says now, and returns after how long it has to be called again; 0: when the catalog changes.
func (f *fleet) update(catalog []instance, now clock.Instant) (again time.Duration) {
	f.mu.Lock()
	for _, old := range f.catalog {
		if old.check != api.HealthMaint {
			f.departed = append(f.departed, departed{old, now.Add(keepFor)})
		}
	}
	f.departed = slices.DeleteFunc(f.departed, func(d departed) bool {
		return d.until <= now || slices.ContainsFunc(catalog, func(in instance) bool { return in.key == d.key })
	})
	for _, d := range f.departed {
		again = max(again, d.until.Sub(now))
	}
	f.catalog = catalog
	f.mu.Unlock()
	f.apply()
	f.known.Store(true)
	return again
}

// apply gives each shard its instances that pass their checks. Where there is none, those that do not are better than none, as
// the catalog may be late, or wrong; all but those that somebody has put into maintenance.
func (f *fleet) apply() {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := append(slices.Clone(f.static), f.catalog...)
	for _, d := range f.departed {
		d.check = deregistered
		all = append(all, d.instance)
	}
	good, others, checks := make([][]*replica, len(f.pools)), make([][]*replica, len(f.pools)), make([][]string, len(f.pools))
	for _, in := range all {
		base, err := url.Parse(in.url)
		if err != nil || in.shard < 0 || in.shard >= len(f.pools) {
			continue // the configuration and the catalog were checked where they were read
		}
		r := &replica{shard: in.shard, key: in.key + " " + in.url, name: in.name, node: in.node, base: base, weight: in.weight}
		switch in.check {
		case api.HealthPassing:
			good[in.shard] = append(good[in.shard], r)
		case api.HealthMaint:
		default:
			others[in.shard], checks[in.shard] = append(others[in.shard], r), append(checks[in.shard], in.check)
		}
	}
	for shard, use := range good {
		if len(use) > 0 {
			f.pools[shard].set(use)
		} else {
			use = others[shard]
			f.pools[shard].set(use, checks[shard]...)
		}
		largest := 0.0
		for _, r := range use {
			largest = max(largest, r.weight)
		}
		if largest > 0 {
			f.remember[shard] = largest
		}
	}
	f.weigh()
}

// weigh sets the weight of every shard: as configured, as last seen, or as the mean of those that are known.
func (f *fleet) weigh() {
	known := map[int]float64{}
	sum := 0.0
	for shard := range f.pools {
		w, ok := f.cfg.Weights[shard]
		if !ok {
			w, ok = f.remember[shard]
		}
		if ok {
			known[shard] = w
			sum += w
		}
	}
	mean := 1.0
	if len(known) > 0 {
		mean = sum / float64(len(known))
	}
	for shard, p := range f.pools {
		w, ok := known[shard]
		if !ok {
			w = mean
		}
		p.weight.Store(math.Float64bits(w))
	}
}

// served counts the shards that have an instance.
func (f *fleet) served() int {
	n := 0
	for _, p := range f.pools {
		if len(p.list()) > 0 {
			n++
		}
	}
	return n
}

// lastResort lists the shards of which no instance passes its check, but there are others.
func (f *fleet) lastResort() (shards []int) {
	for _, p := range f.pools {
		if p.members().checks != nil {
			shards = append(shards, p.shard)
		}
	}
	return shards
}

// count returns how many replicas there are, and how many of them are ejected.
func (f *fleet) count() (all, out int) {
	for _, p := range f.pools {
		for _, r := range p.list() {
			all++
			if r.ejected() {
				out++
			}
		}
	}
	return all, out
}

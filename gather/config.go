package gather

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"retinue/internal/hint"
)

// Config is what a root does. Settings.Config makes one.
type Config struct {
	// Name of the root: in metrics, in problems, in the request it sends to the merge.
	Name string
	// Listen is where clients reach the root, HOST:PORT. Admin are local addresses of the admin API.
	Listen string
	Admin  []string
	// Stream passes the merge's answer on while leaves are still answering.
	Stream bool
	// MaxHops is how many roots a request may pass.
	MaxHops int

	// Shards is how many shards there have to be: the expected set is configuration, so that one nobody serves is missing.
	Shards int
	// Service is the leaves' name in the Consul catalog; "" for none. Static are leaves by address, by shard.
	Service string
	Static  map[int][]string
	// Weights of shards that differ from what the catalog says, or from 1.
	Weights map[int]float64
	// Path is put before a request's path on its way to a leaf.
	Path string
	// Headers of the client that leaves get beside the standard ones.
	Headers []string

	// ShardBy sends a request that has a key to one shard. Route asks a local container instead; "" for none.
	ShardBy ShardBy
	Route   string

	// Merge is what makes one answer.
	Merge MergeSpec
	// Reserve is what the merge gets of the deadline; 0 measures it.
	Reserve time.Duration

	// Deadline is the default and the longest; PerLevel is what a level of a tree costs on the network.
	Deadline, DeadlineMax, PerLevel time.Duration

	Hedge   HedgeConfig
	Retry   float64 // of leaf calls
	Eject   EjectConfig
	Policy  Policy
	WaitMin float64 // of the time left, once the policy is met
	WaitMax float64

	// MaxRequest, MaxLeaf and MaxGathered bound bodies in bytes: of a request, of one leaf's answer, of all answers held at once.
	MaxRequest, MaxLeaf, MaxGathered int64
	// MaxConcurrent is how many requests are worked on at once.
	MaxConcurrent int
}

// HedgeConfig says when a slow leaf call gets a second copy.
type HedgeConfig struct {
	Quantile float64         // of leaf latency; a call that takes longer is hedged
	Budget   float64         // of leaf calls; 0 turns hedging off
	Min      time.Duration   // not before this
	Max      int             // per leaf call; 0: 1 up to 100 shards, 2 above
	Methods  map[string]bool // that may be sent twice
}

// EjectConfig says when a replica is left alone for a while.
type EjectConfig struct {
	Consecutive int           // failures in a row; 0 turns ejection off
	Ratio       float64       // of failures within a window
	Max         float64       // of a shard's replicas out at once; one may always be, the last never
	Base, Limit time.Duration // how long, doubling each time
}

const maxShards = 10000

var rootName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// Config reads the settings.
func (s Settings) Config() (Config, error) {
	c := Config{Name: s.Name, Listen: s.Listen, Admin: s.Admin, Stream: s.Stream, MaxHops: s.MaxHops,
		Service: s.Leaf.Service, Shards: s.Leaf.Shards, Path: strings.TrimSuffix(s.Leaf.Path, "/"),
		Route: s.Route.URL, MaxConcurrent: s.Limits.Concurrent}
	p := parser{}
	c.Static = p.leaves(s.Leaf.Static)
	c.Weights = p.weights(s.Leaf.Weights)
	c.Headers = p.headers(s.Leaf.Headers)
	c.ShardBy = read(&p, "shard_by", s.Route.ShardBy, ParseShardBy)
	c.Merge = read(&p, "merge", s.Merge.URL, func(url string) (MergeSpec, error) { return ParseMerge(url, s.Merge.Format) })
	if s.Merge.Reserve != "auto" {
		c.Reserve = p.duration("merge_reserve", s.Merge.Reserve)
	}
	c.Deadline = p.duration("deadline", s.Deadline.Default)
	c.DeadlineMax = p.duration("deadline_max", s.Deadline.Max)
	c.PerLevel = p.duration("per_level", s.Deadline.PerLevel)
	c.Hedge = HedgeConfig{Budget: p.fraction("hedge_budget", s.Hedge.Budget), Min: p.duration("hedge_min", s.Hedge.Min),
		Max: s.Hedge.MaxPerLeaf, Methods: p.methods(s.Hedge.Methods)}
	c.Hedge.Quantile = 1 - c.Hedge.Budget/2 // a budget below 1-q takes away most of the benefit
	if s.Hedge.Quantile != "auto" {
		c.Hedge.Quantile = p.fraction("hedge_quantile", s.Hedge.Quantile)
	}
	c.Retry = p.fraction("retry_budget", s.Retry.Budget)
	c.Eject = EjectConfig{Consecutive: s.Eject.Consecutive, Ratio: p.fraction("eject_ratio", s.Eject.Ratio), Max: p.fraction("eject_max", s.Eject.Max)}
	c.Eject.Base, c.Eject.Limit = p.durations("eject_for", s.Eject.For)
	c.Policy = read(&p, "partial", s.Partial.Policy, ParsePolicy)
	c.WaitMin, c.WaitMax = p.fractions("wait_after", s.Partial.WaitAfter)
	c.MaxRequest = p.bytes("limit_request", s.Limits.Request)
	c.MaxLeaf = p.bytes("limit_leaf", s.Limits.LeafResponse)
	c.MaxGathered = p.bytes("limit_gathered", s.Limits.Gathered)
	if p.err != nil {
		return c, p.err
	}
	return c, c.finish()
}

// finish fills in what follows from the rest, and says what is wrong.
func (c *Config) finish() error {
	if c.Shards == 0 {
		for shard := range c.Static {
			c.Shards = max(c.Shards, shard+1)
		}
		for shard := range min(c.Shards, maxShards) {
			if len(c.Static[shard]) == 0 && c.Service == "" {
				return hint.Wrap(fmt.Errorf("shard %d has no leaf, shard %d has", shard, c.Shards-1),
					"shards are counted from 0; where one is to be reported as missing, say how many there are: --shards %d", c.Shards)
			}
		}
	}
	if c.Merge.Kind == MergeFirst {
		c.Policy, c.WaitMin, c.WaitMax = Policy{Kind: PolicyQuorum, Quorum: 1}, 0, 0 // any one answer is the answer
	}
	if c.Hedge.Max == 0 {
		c.Hedge.Max = 1
		if c.Shards > 100 {
			c.Hedge.Max = 2 // with a thousand leaves two slow copies meet in every hundredth request
		}
	}
	return errors.Join(c.checkLeaves(), c.checkBounds())
}

func (c *Config) checkLeaves() error {
	switch {
	case !rootName.MatchString(c.Name):
		return hint.Wrap(fmt.Errorf("name %q", c.Name), "use 1 to 63 letters, digits, - or _")
	case c.Service == "" && len(c.Static) == 0:
		return hint.Wrap(errors.New("no leaves"), "give --service NAME --shards N (from Consul), or --leaf 0=http://HOST:PORT for each shard")
	case c.Shards < 1 || c.Shards > maxShards:
		return hint.Wrap(fmt.Errorf("%d shards", c.Shards), "give --shards N, 1 to %d: how many there have to be cannot be read from the catalog", maxShards)
	case c.Path != "" && !strings.HasPrefix(c.Path, "/"):
		return hint.Wrap(fmt.Errorf("path %q", c.Path), "it is put before a request's path, so it begins with /")
	case c.ShardBy.Kind != "" && c.Route != "":
		return hint.Wrap(errors.New("both --shard-by and --route"), "either a key says which shard, or a container does")
	case c.Policy.Kind == PolicyQuorum && c.Policy.Quorum > c.Shards:
		return hint.Wrap(fmt.Errorf("quorum(%d) of %d shards", c.Policy.Quorum, c.Shards), "no answer could reach it")
	}
	for shard := range c.Static {
		if shard >= c.Shards {
			return fmt.Errorf("leaf of shard %d, but there are %d shards, counted from 0", shard, c.Shards)
		}
	}
	for shard := range c.Weights {
		if shard >= c.Shards {
			return fmt.Errorf("weight of shard %d, but there are %d shards, counted from 0", shard, c.Shards)
		}
	}
	if c.Route != "" {
		if _, err := parseEndpoint(c.Route); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return hint.Wrap(fmt.Errorf("listen %q: %w", c.Listen, err), "write HOST:PORT or :PORT")
	}
	return nil
}

func (c *Config) checkBounds() error {
	switch {
	case c.Deadline <= 0 || c.DeadlineMax < c.Deadline:
		return hint.Wrap(fmt.Errorf("deadline %s, at most %s", c.Deadline, c.DeadlineMax), "the default is above 0 and not above the maximum: raise --deadline-max (deadline.max) too")
	case c.Reserve < 0 || c.Reserve >= c.Deadline:
		return hint.Wrap(fmt.Errorf("merge reserve %s of a deadline of %s", c.Reserve, c.Deadline), "leaves need some of it; auto measures the merge")
	case c.PerLevel < 0 || c.PerLevel >= c.Deadline:
		return fmt.Errorf("per-level %s of a deadline of %s", c.PerLevel, c.Deadline)
	case c.Hedge.Budget > 1 || c.Retry > 1:
		return errors.New("a budget is above 100%")
	case c.Hedge.Quantile <= 0 || c.Hedge.Quantile > 1:
		return hint.Wrap(fmt.Errorf("hedge quantile %g", c.Hedge.Quantile), "use auto, or a number like 0.985")
	case c.Hedge.Max < 0 || c.Hedge.Max > 3:
		return hint.Wrap(fmt.Errorf("%d hedges per leaf call", c.Hedge.Max), "1 to 3; 0 means 1 up to 100 shards and 2 above")
	case c.Eject.Consecutive < 0 || c.Eject.Ratio <= 0 || c.Eject.Ratio > 1 || c.Eject.Max > 1 || c.Eject.Base <= 0:
		return hint.Wrap(errors.New("ejection"), "consecutive is 0 (off) or more, ratio above 0%% and at most 100%%, max at most 100%%, for like 10s..5m")
	case c.WaitMax > 1:
		return hint.Wrap(fmt.Errorf("wait-after up to %g of the time left", c.WaitMax), "two fractions from 0 to 1, like 0..0.3")
	case c.MaxRequest < 0 || c.MaxLeaf < 1 || c.MaxGathered < c.MaxLeaf:
		return hint.Wrap(errors.New("limits"), "limit-gathered is at least limit-leaf, which is above 0")
	case c.MaxConcurrent < 1:
		return errors.New("limit-concurrent is below 1")
	case c.MaxHops < 1:
		return errors.New("max-hops is below 1")
	}
	return nil
}

// standardHeaders of a client go to every leaf.
var standardHeaders = []string{"Accept", "Accept-Language", "Authorization", "Baggage", "Content-Type", "Content-Encoding", "Tracestate", "User-Agent"}

// ownHeaders are set by the root, never passed through.
func ownHeader(name string) bool {
	return strings.HasPrefix(name, "Retinue-") || slices.Contains([]string{"Connection", "Content-Length", "Host", "Keep-Alive", "Te", "Traceparent", "Trailer",
		"Transfer-Encoding", "Upgrade", "Accept-Encoding", "Range", "If-Range", "Proxy-Connection"}, name)
}

// forwarded are the canonical names of the headers that leaves get.
func (c *Config) forwarded() []string {
	all := slices.Clone(standardHeaders)
	for _, h := range c.Headers {
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	return all
}

// endpoint is a local container: an HTTP URL, or a Unix socket and a path on it.
type endpoint struct {
	socket string // of a Unix socket; "" for TCP
	url    *url.URL
}

func (e endpoint) String() string {
	if e.socket != "" {
		return "unix://" + e.socket
	}
	return e.url.String()
}

// parseEndpoint reads http://host:port/path or unix:///path/to/socket.
func parseEndpoint(s string) (endpoint, error) {
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return endpoint{}, hint.Wrap(fmt.Errorf("address %q", s), "write unix:///path/to/socket, with three slashes")
		}
		return endpoint{socket: path, url: &url.URL{Scheme: "http", Host: "localhost", Path: "/"}}, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil {
		return endpoint{}, hint.Wrap(fmt.Errorf("address %q", s), "write http://HOST:PORT/ or unix:///path/to/socket")
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return endpoint{url: u}, nil
}

// idempotentPOST is how a list of methods says that a POST may be sent twice.
const idempotentPOST = "POST:idempotent"

func validMethod(m string) bool {
	return slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, idempotentPOST}, m)
}

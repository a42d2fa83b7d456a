package gather

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"retinue/internal/hint"
)

// ShardBy says where a request's key stands; the zero value: nowhere.
type ShardBy struct {
	Kind string // "header" or "query"
	Name string
}

// ParseShardBy reads header:NAME or query:NAME; "" is none.
func ParseShardBy(s string) (ShardBy, error) {
	if s == "" {
		return ShardBy{}, nil
	}
	kind, name, _ := strings.Cut(s, ":")
	if name == "" || kind != "header" && kind != "query" || strings.ContainsAny(name, " \t\r\n:") {
		return ShardBy{}, hint.Wrap(fmt.Errorf("shard key %q", s), "write header:NAME or query:NAME")
	}
	if kind == "header" {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return ShardBy{kind, name}, nil
}

// Key returns a request's key.
func (s ShardBy) Key(r *http.Request) (key string, ok bool) {
	switch s.Kind {
	case "header":
		key = r.Header.Get(s.Name)
	case "query":
		key = r.URL.Query().Get(s.Name)
	}
	return key, key != ""
}

// ShardOf is the shard that a key belongs to: FNV-1a, 64 bits, of its bytes, modulo the number of shards. Whoever loads the data
// computes the same.
func ShardOf(key string, shards int) int {
	h := fnv.New64a()
	h.Write([]byte(key))
	return int(h.Sum64() % uint64(shards))
}

// routeRequest finds out which shards a request needs.
func (root *Root) routeRequest(ctx context.Context, r *http.Request, req *request) *refusal {
	if root.route != nil {
		shards, err := root.askRoute(ctx, req)
		if err != nil {
			return &refusal{http.StatusBadGateway, "route_failed", "route: " + err.Error()}
		}
		req.shards = shards
		return nil
	}
	if root.cfg.ShardBy.Kind != "" {
		if key, ok := root.cfg.ShardBy.Key(r); ok {
			req.shards = []int{ShardOf(key, root.cfg.Shards)}
			return nil
		}
		if !root.cfg.Hedge.Methods[req.method] {
			return badRequest(fmt.Errorf("a %s without a key (%s %s) would be written to every shard", req.method, root.cfg.ShardBy.Kind, root.cfg.ShardBy.Name))
		}
	}
	req.shards = root.all
	return nil
}

// maxRouteAnswer bounds what the route container may say.
const maxRouteAnswer = 256 << 10

func (root *Root) askRoute(ctx context.Context, req *request) ([]int, error) {
	req.shards = root.all // what the request line counts
	body, err := json.Marshal(map[string]RequestLine{"request": root.requestLine(req)})
	if err != nil {
		return nil, err
	}
	out, err := http.NewRequestWithContext(ctx, http.MethodPost, root.route.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	out.Header = http.Header{"Content-Type": {"application/json"}, "Retinue-Request-Id": {req.id}, "Traceparent": {req.trace.Span()}, "User-Agent": {"retinue"}}
	resp, err := root.route.transport.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxRouteAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d: %.200s", resp.StatusCode, answer)
	}
	return ParseRoute(answer, root.cfg.Shards)
}

// ParseRoute reads the route container's answer, {"shards":[0,3]}: each shard once, in order.
func ParseRoute(answer []byte, shards int) ([]int, error) {
	var said struct {
		Shards *[]int `json:"shards"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return nil, fmt.Errorf("answer is not {\"shards\":[...]}: %w", err)
	}
	if said.Shards == nil {
		return nil, errors.New("answer has no shards; an empty list would mean none")
	}
	list := slices.Clone(*said.Shards)
	slices.Sort(list)
	list = slices.Compact(list)
	if len(list) > 0 && (list[0] < 0 || list[len(list)-1] >= shards) {
		return nil, fmt.Errorf("shards %v, but there are %d, counted from 0", list, shards)
	}
	return list, nil
}

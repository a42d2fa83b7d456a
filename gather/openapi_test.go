package gather

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write openapi.json anew")

type object = map[string]any

// schema describes a Go type as JSON, by its fields' tags.
func schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		return schema(t.Elem())
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "items": schema(t.Elem())}
	case t.Kind() == reflect.Map:
		return object{"type": "object", "additionalProperties": schema(t.Elem())}
	case t.Kind() == reflect.Bool:
		return object{"type": "boolean"}
	case t.Kind() == reflect.String:
		return object{"type": "string"}
	case t.Kind() == reflect.Float64:
		return object{"type": "number"}
	case t.Kind() == reflect.Struct:
		properties, required := object{}, []string{}
		for _, f := range reflect.VisibleFields(t) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			properties[name] = schema(f.Type)
			if !strings.Contains(options, "omitempty") {
				required = append(required, name)
			}
		}
		slices.Sort(required)
		return object{"type": "object", "properties": properties, "required": required}
	}
	return object{"type": "integer", "format": "int64"}
}

// documented is what the admin API answers, by route and status; a string is another media type than JSON.
func documented() map[string]struct {
	summary string
	answers map[int]any
} {
	type op = struct {
		summary string
		answers map[int]any
	}
	return map[string]op{
		"GET /v1/state":         {"The root, its shards and replicas", map[int]any{200: StateView{}}},
		"GET /v1/requests":      {"Requests that are kept, newest first, without their calls", map[int]any{200: []Timeline{}}},
		"GET /v1/requests/{id}": {"One request with every leaf call", map[int]any{200: Timeline{}, 404: Problem{}}},
		"GET /v1/openapi.json":  {"This document", map[int]any{200: object{}}},
		"GET /healthz":          {"The process works", map[int]any{200: object{}}},
		"GET /readyz":           {"The leaves are known, and there are enough for the policy", map[int]any{200: object{}, 503: Problem{}}},
		"GET /metrics":          {"Prometheus metrics", map[int]any{200: "text/plain"}},
	}
}

func document(t *testing.T, routes map[string]http.Handler) []byte {
	t.Helper()
	ops := documented()
	for route := range routes {
		if _, ok := ops[route]; !ok {
			t.Errorf("the handlers have %s, the document does not", route)
		}
	}
	paths := map[string]object{}
	for route, op := range ops {
		if routes[route] == nil {
			t.Errorf("the document has %s, the handlers do not", route)
		}
		method, path, _ := strings.Cut(route, " ")
		answers := object{}
		for status, v := range op.answers {
			media, body := "application/json", object{"type": "object"}
			switch v := v.(type) {
			case string:
				media, body = v, object{"type": "string"}
			case Problem:
				media, body = "application/problem+json", schema(reflect.TypeOf(v))
			case object:
			default:
				body = schema(reflect.TypeOf(v))
			}
			answers[strconv.Itoa(status)] = object{"description": http.StatusText(status), "content": object{media: object{"schema": body}}}
		}
		o := object{"summary": op.summary, "responses": answers}
		if strings.Contains(path, "{id}") {
			o["parameters"] = []object{{"name": "id", "in": "path", "required": true, "schema": object{"type": "string"}}}
		}
		paths[path] = object{strings.ToLower(method): o}
	}
	out, err := json.MarshalIndent(object{"openapi": "3.0.3", "paths": paths,
		"info": object{"title": "Retinue gather", "version": "1", "description": "The admin API of a scatter/gather root, on a Unix socket or loopback. The contract is gather/README.md."}}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func TestOpenAPI(t *testing.T) {
	_, static := three(t, say("a"))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static = static })
	want := document(t, r.root.adminRoutes())
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(openAPI, want) {
		t.Error("openapi.json does not say what the handlers do: go test ./gather -run TestOpenAPI -update")
	}
}

// TestAdmin asks for everything, and compares what comes with what is documented.
func TestAdmin(t *testing.T) {
	_, static := three(t, say("a"), status(500))
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Leaf.Shards, s.Partial.Policy = static, 3, "best" })
	admin := httptest.NewServer(r.root.Admin())
	defer admin.Close()
	r.get(t, "/q", "Retinue-Explain", "1", "Retinue-Request-Id", "look")
	for path, route := range map[string]string{"/v1/state": "", "/v1/requests": "", "/v1/requests/look": "GET /v1/requests/{id}", "/v1/requests/none": "GET /v1/requests/{id}",
		"/v1/openapi.json": "", "/healthz": "", "/readyz": "", "/metrics": ""} {
		if route == "" {
			route = "GET " + path
		}
		resp, err := admin.Client().Get(admin.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		kind, ok := documented()[route].answers[resp.StatusCode]
		if !ok {
			t.Errorf("%s answered %d, which is not documented: %s", path, resp.StatusCode, body)
			continue
		}
		if _, text := kind.(string); text || reflect.TypeOf(kind).Kind() == reflect.Map {
			continue
		}
		into := reflect.New(reflect.TypeOf(kind))
		dec := json.NewDecoder(bytes.NewReader(body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(into.Interface()); err != nil {
			t.Errorf("%s: %v in %s", path, err, body)
		}
	}
	c, err := NewClient("http://" + strings.TrimPrefix(admin.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	line, err := c.Request(t.Context(), "look")
	if err != nil || len(line.Calls) != 2 || line.Status != 200 || len(line.Problems) != 2 || line.Coverage > 0.34 {
		t.Errorf("%+v %v", line, err)
	}
	for _, call := range line.Calls {
		if call.EndMS < call.StartMS || call.Replica == "" || call.Won != (call.Shard == 0) || call.Shard == 1 && (call.Outcome != "error" || call.Status != 500) {
			t.Errorf("%+v", call)
		}
	}
	state, err := c.State(t.Context())
	if err != nil || state.Served != 2 || len(state.Leaves) != 3 || state.Leaves[1].Replicas[0].Errors != 1 || !state.Ready {
		t.Errorf("%+v %v", state, err)
	}
	if _, err := c.Request(t.Context(), "none"); err == nil || !strings.Contains(err.Error(), "no timeline") {
		t.Errorf("%v", err)
	}
	resp, err := http.Post(admin.URL+"/v1/state", "", nil)
	if err != nil || resp.StatusCode < 400 {
		t.Errorf("%v %v", resp, err)
	}
}

func TestTimelinesAreBounded(t *testing.T) {
	ring := newTimelines()
	for i := range 3 * keptTimelines {
		ring.add(&Timeline{ID: strconv.Itoa(i)})
	}
	list := ring.list()
	if len(list) != keptTimelines || list[0].ID != strconv.Itoa(3*keptTimelines-1) || ring.find("0") != nil || ring.find(list[5].ID) == nil {
		t.Errorf("%d kept, the newest is %s", len(list), list[0].ID)
	}
}

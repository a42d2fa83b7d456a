package coordinator

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/commit"
	"retinue/coordinator/source/memory"
)

var update = flag.Bool("update", false, "write openapi.json anew")

type object = map[string]any

// schema describes a Go type as JSON, by its fields' tags.
func schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[json.RawMessage]():
		return object{"description": "any JSON value"}
	case t == reflect.TypeFor[[]byte]():
		return object{"type": "string", "format": "byte"}
	case t.Kind() == reflect.Pointer:
		return schema(t.Elem())
	case t.Kind() == reflect.Interface:
		return object{"description": "any JSON value"}
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
			if f.Anonymous || name == "-" || name == "" {
				continue
			}
			properties[name] = schema(f.Type)
			if !strings.Contains(options, "omitempty") && f.Type.Kind() != reflect.Pointer {
				required = append(required, name)
			}
		}
		s := object{"type": "object", "properties": properties}
		if len(required) > 0 {
			slices.Sort(required)
			s["required"] = required
		}
		return s
	}
	return object{"type": "integer", "format": "int64"}
}

// operation is what the document says of one path, beyond its name.
type operation struct {
	summary string
	body    any // nil: none; a string: a media type
	query   []string
	headers []string
	answers map[int]any // by status; a string is a media type
}

type (
	itemsAnswer struct {
		Items []ItemView `json:"items"`
	}
	deadAnswer struct {
		Dead []DeadLetter `json:"dead"`
	}
	callbackAnswer struct {
		ID      string `json:"id"`
		Verdict string `json:"verdict"`
	}
	readyAnswer struct {
		Ready bool `json:"ready"`
	}
	okAnswer struct {
		OK bool `json:"ok"`
	}
)

func documented() map[string]operation {
	no := Refusal{}
	return map[string]operation{
		"GET /v1/queues": {"The queue of this coordinator", nil, nil, nil, map[int]any{200: Queues{}}},
		"POST /v1/queues/{queue}/items": {"Publish: one item (the body), or many (application/x-ndjson, a Line each); with wait, its result", "application/octet-stream", []string{"wait"},
			[]string{"Idempotency-Key", "Retinue-Key", "Retinue-Priority", "Retinue-Delay"}, map[int]any{200: Item{}, 202: Put{}, 400: no, 404: no, 413: no, 503: no}},
		"GET /v1/queues/{queue}/items":         {"Items in hand here, the oldest first", nil, []string{"limit"}, nil, map[int]any{200: itemsAnswer{}, 400: no, 404: no, 503: no}},
		"GET /v1/queues/{queue}/stats":         {"The stage as this coordinator sees it, and the broker's depth", nil, nil, nil, map[int]any{200: Stats{}, 404: no, 503: no}},
		"POST /v1/queues/{verb}":               {"QUEUE:pause (with a reason), QUEUE:resume (the stage, or a parked key) and QUEUE:drain (finish, take nothing new)", nil, []string{"reason", "key"}, nil, map[int]any{200: Stats{}, 404: no, 503: no}},
		"GET /v1/queues/{queue}/schedules":     {"What is published at which times", nil, nil, nil, map[int]any{200: Schedules{}, 404: no}},
		"GET /v1/queues/{queue}/groups":        {"Groups of items, and how many of their parts have been committed", nil, nil, nil, map[int]any{200: Groups{}, 404: no, 503: no}},
		"POST /v1/queues/{queue}/groups/close": {"How many parts a group has", GroupClose{}, nil, nil, map[int]any{200: GroupView{}, 400: no, 404: no, 413: no, 503: no}},
		"GET /v1/queues/{queue}/dead":          {"Dead letters, or the one with the id", nil, []string{"limit", "id"}, nil, map[int]any{200: deadAnswer{}, 400: no, 404: no, 503: no}},
		"POST /v1/queues/{queue}/dead/retry":   {"Try dead letters again, edited if wished", Selection{}, nil, nil, map[int]any{200: Changed{}, 400: no, 404: no, 503: no}},
		"POST /v1/queues/{queue}/dead/purge":   {"Remove dead letters for good", Selection{}, nil, nil, map[int]any{200: Changed{}, 400: no, 404: no, 503: no}},
		"GET /v1/items/{id...}":                {"An item; with wait, when it has ended (202: not yet)", nil, []string{"wait"}, nil, map[int]any{200: Item{}, 202: Item{}, 400: no, 404: no, 503: no}},
		"DELETE /v1/items/{id...}":             {"Cancel: it never commits (409: it has ended already)", nil, nil, nil, map[int]any{200: Item{}, 404: no, 409: Item{}, 503: no}},
		"POST /v1/items/{id...}":               {"ITEM/done (body: the result), ITEM/fail (body: a verdict), for workers that answered 202; ITEM/extend (body: how far it is, or nothing)", "application/octet-stream", nil, []string{"Retinue-Fence"}, map[int]any{200: callbackAnswer{}, 400: no, 404: no, 409: no, 413: no, 503: no}},
		"GET /v1/events":                       {"What happens here, as an event stream", nil, nil, nil, map[int]any{200: "text/event-stream"}},
		"GET /v1/openapi.json":                 {"This document", nil, nil, nil, map[int]any{200: "application/json"}},
		"GET /healthz":                         {"The process works", nil, nil, nil, map[int]any{200: okAnswer{}, 503: no}},
		"GET /readyz":                          {"The stage takes items", nil, nil, nil, map[int]any{200: readyAnswer{}, 503: no}},
		"GET /metrics":                         {"Prometheus metrics", nil, nil, nil, map[int]any{200: "text/plain"}},
	}
}

func document(t *testing.T) []byte {
	t.Helper()
	ops, paths, schemas := documented(), map[string]object{}, object{"Line": schema(reflect.TypeFor[Line]())}
	content := func(v any) object {
		if media, ok := v.(string); ok {
			return object{media: object{"schema": object{"type": "string"}}}
		}
		kind := reflect.TypeOf(v)
		name := strings.ToUpper(kind.Name()[:1]) + kind.Name()[1:]
		schemas[name] = schema(kind)
		return object{"application/json": object{"schema": object{"$ref": "#/components/schemas/" + name}}}
	}
	c := &Coordinator{}
	c.metrics = newMetrics(c)
	for pattern := range (&handlers{c}).routes() {
		op, ok := ops[pattern]
		if !ok {
			t.Errorf("the handlers have %s, the document does not", pattern)
			continue
		}
		delete(ops, pattern)
		method, path, _ := strings.Cut(strings.ReplaceAll(pattern, "...}", "}"), " ")
		answers, parameters := object{}, []object{}
		for status, v := range op.answers {
			answers[strconv.Itoa(status)] = object{"description": http.StatusText(status), "content": content(v)}
		}
		o := object{"summary": op.summary, "responses": answers}
		if op.body != nil {
			o["requestBody"] = object{"content": content(op.body)}
		}
		for _, part := range strings.Split(path, "/") {
			if name, ok := strings.CutPrefix(part, "{"); ok {
				parameters = append(parameters, object{"name": strings.TrimSuffix(name, "}"), "in": "path", "required": true, "schema": object{"type": "string"}})
			}
		}
		for in, names := range map[string][]string{"query": op.query, "header": op.headers} {
			for _, name := range names {
				parameters = append(parameters, object{"name": name, "in": in, "schema": object{"type": "string"}})
			}
		}
		if len(parameters) > 0 {
			slices.SortStableFunc(parameters, func(a, b object) int { return strings.Compare(b["in"].(string), a["in"].(string)) })
			o["parameters"] = parameters
		}
		if paths[path] == nil {
			paths[path] = object{}
		}
		paths[path][strings.ToLower(method)] = o
	}
	for pattern := range ops {
		t.Errorf("the document has %s, the handlers do not", pattern)
	}
	out, err := json.MarshalIndent(object{"openapi": "3.0.3", "info": object{"title": "Retinue coordinator", "version": "1",
		"description": "A work queue beside a container, on a Unix socket or loopback. The contract is coordinator/README.md."}, "paths": paths, "components": object{"schemas": schemas}}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func TestOpenAPI(t *testing.T) {
	want := document(t)
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(openAPI, want) && !*update {
		t.Error("openapi.json does not say what the handlers do: go test ./coordinator -run TestOpenAPI -update")
	}
}

// TestAnswersAreAsDocumented sends real requests and compares what comes back with the document.
func TestAnswersAreAsDocumented(t *testing.T) {
	s := startStage(t, memory.New(), quick(), commit.Journal{KV: &memoryKV{}}, workerFunc(upper))
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Content map[string]struct {
					Schema struct {
						Ref string `json:"$ref"`
					}
				}
			}
		}
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any
				Required   []string
			}
		}
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ method, template, path, body string }{
		{"POST", "/v1/queues/{queue}/items", "/v1/queues/q/items?wait=10s", "bad"},
		{"POST", "/v1/queues/{queue}/items", "/v1/queues/q/items", "good"},
		{"GET", "/v1/queues/{queue}/items", "/v1/queues/q/items", ""},
		{"GET", "/v1/queues/{queue}/stats", "/v1/queues/q/stats", ""},
		{"GET", "/v1/queues/{queue}/stats", "/v1/queues/x/stats", ""},
		{"POST", "/v1/queues/{verb}", "/v1/queues/q:pause?reason=x", ""},
		{"GET", "/readyz", "/readyz", ""},
		{"POST", "/v1/queues/{verb}", "/v1/queues/q:resume", ""},
		{"GET", "/readyz", "/readyz", ""},
		{"GET", "/healthz", "/healthz", ""},
		{"GET", "/v1/queues", "/v1/queues", ""},
		{"GET", "/v1/queues/{queue}/groups", "/v1/queues/q/groups", ""},
		{"POST", "/v1/queues/{queue}/groups/close", "/v1/queues/q/groups/close", "{}"},
		{"GET", "/v1/queues/{queue}/schedules", "/v1/queues/q/schedules", ""},
		{"GET", "/v1/queues/{queue}/dead", "/v1/queues/q/dead", ""},
		{"POST", "/v1/queues/{queue}/dead/retry", "/v1/queues/q/dead/retry", `{"all":true,"edit":{"body":"x"}}`},
		{"POST", "/v1/queues/{queue}/dead/purge", "/v1/queues/q/dead/purge", `{"all":true}`},
		{"GET", "/v1/items/{id}", "/v1/items/nobody", ""},
		{"DELETE", "/v1/items/{id}", "/v1/items/nobody", ""},
		{"GET", "/v1/items/{id}", "/v1/items/nobody", ""},
		{"POST", "/v1/items/{id}", "/v1/items/nobody/done", ""},
		{"GET", "/metrics", "/metrics", ""},
	} {
		status, got := s.call(t, c.method, c.path, c.body)
		response, ok := doc.Paths[c.template][strings.ToLower(c.method)].Responses[strconv.Itoa(status)]
		if !ok {
			t.Errorf("%s %s answered %d, which the document does not have: %v", c.method, c.path, status, got)
			continue
		}
		ref := strings.TrimPrefix(response.Content["application/json"].Schema.Ref, "#/components/schemas/")
		if ref == "" {
			continue
		}
		for name := range got {
			if _, ok := doc.Components.Schemas[ref].Properties[name]; !ok {
				t.Errorf("%s %s: %d has the field %q, which %s does not have", c.method, c.path, status, name, ref)
			}
		}
		for _, name := range doc.Components.Schemas[ref].Required {
			if _, ok := got[name]; !ok {
				t.Errorf("%s %s: %d lacks the field %q of %s", c.method, c.path, status, name, ref)
			}
		}
	}
}

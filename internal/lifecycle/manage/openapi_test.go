package manage

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

	"retinue/internal/lifecycle/state"
)

var update = flag.Bool("update", false, "write openapi.json anew")

type dict = map[string]any

// schema describes a Go type as JSON, by its fields' tags.
func schema(t reflect.Type) dict {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return dict{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[time.Duration]():
		return dict{"type": "integer", "format": "int64", "description": "nanoseconds"}
	case t.Kind() == reflect.Pointer:
		return schema(t.Elem())
	case t.Kind() == reflect.Slice:
		return dict{"type": "array", "items": schema(t.Elem())}
	case t.Kind() == reflect.Map:
		return dict{"type": "object", "additionalProperties": schema(t.Elem())}
	case t.Kind() == reflect.Bool:
		return dict{"type": "boolean"}
	case t.Kind() == reflect.String:
		return dict{"type": "string"}
	case t.Kind() == reflect.Struct:
		properties, required := dict{}, []string{}
		for _, f := range reflect.VisibleFields(t) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous || name == "-" || name == "" {
				continue
			}
			properties[name] = schema(f.Type)
			if !strings.Contains(options, "omitempty") {
				required = append(required, name)
			}
		}
		slices.Sort(required)
		return dict{"type": "object", "properties": properties, "required": required}
	}
	return dict{"type": "integer", "format": "int64"}
}

// operation is what the document says of one route, beyond its path.
type operation struct {
	summary string
	body    any
	query   []string
	answers map[int]any // by status; a string is a media type that is not JSON
}

func documented() map[string]operation {
	no := Refusal{}
	text := "text/plain"
	verb := func(summary string, more ...int) operation {
		op := operation{summary, nil, nil, map[int]any{200: Done{}, 409: no, 502: no, 503: no}}
		for _, status := range more {
			op.answers[status] = no
		}
		return op
	}
	return map[string]operation{
		"GET /v1/task":    {"The task, its phase and its hooks", nil, nil, map[int]any{200: Description{}}},
		"GET /v1/health":  {"Does it live: the application's GET /retinue/v1/live, else its process", nil, nil, map[int]any{200: Health{}, 503: Health{}}},
		"GET /v1/ready":   {"Does it take requests: the phase, and the application's GET /retinue/v1/ready", nil, nil, map[int]any{200: Health{}, 503: Health{}}},
		"GET /v1/metrics": {"Prometheus text: the application's /metrics, then the driver's", nil, []string{"source"}, map[int]any{200: text, 400: no, 404: no}},
		"GET /v1/profile": {"cpu, heap, goroutine, mutex, block, trace from the application's /debug/pprof; threads and network from the kernel", nil,
			[]string{"kind", "seconds", "debug"}, map[int]any{200: text, 400: no, 404: no, 501: no, 502: no}},
		"GET /v1/config":       {"The application's /config, else the task's configuration without secrets", nil, nil, map[int]any{200: dict{}}},
		"GET /v1/logs":         {"Nomad's log files of the task", nil, []string{"stream", "tail", "follow"}, map[int]any{200: text, 400: no, 501: no, 502: no}},
		"GET /v1/state":        {"What the newest saved state is", nil, nil, map[int]any{200: state.Meta{}, 404: no, 502: no}},
		"POST /v1/pause":       verb("Run the pause hook, then freeze every process"),
		"POST /v1/resume":      verb("Thaw, then run the resume hook; also gives up a drain"),
		"POST /v1/drain":       verb("Run pre_drain and drain without a stop"),
		"POST /v1/save":        verb("Run save_state now", 404),
		"POST /v1/replicate":   {"Scale the task's group up, within max_replicas", ReplicateRequest{}, nil, map[int]any{200: Scaled{}, 400: no, 403: no, 501: no, 502: no}},
		"GET /v1/openapi.json": {"This document", nil, nil, map[int]any{200: dict{}}},
	}
}

func document(t *testing.T) []byte {
	t.Helper()
	ops, paths, schemas := documented(), map[string]dict{}, dict{}
	content := func(v any) dict {
		if media, ok := v.(string); ok {
			return dict{media: dict{"schema": dict{"type": "string"}}}
		}
		kind := reflect.TypeOf(v)
		if kind.Kind() == reflect.Map {
			return dict{"application/json": dict{"schema": dict{"type": "object"}}}
		}
		schemas[kind.Name()] = schema(kind)
		return dict{"application/json": dict{"schema": dict{"$ref": "#/components/schemas/" + kind.Name()}}}
	}
	for _, r := range (&handlers{}).routes() {
		op, ok := ops[r.method+" "+r.path]
		if !ok {
			t.Errorf("the handlers have %s %s, the document does not", r.method, r.path)
			continue
		}
		delete(ops, r.method+" "+r.path)
		answers := dict{}
		for status, v := range op.answers {
			answers[strconv.Itoa(status)] = dict{"description": http.StatusText(status), "content": content(v)}
		}
		o := dict{"summary": op.summary, "responses": answers}
		if op.body != nil {
			o["requestBody"] = dict{"content": content(op.body)}
		}
		var parameters []dict
		for _, name := range op.query {
			parameters = append(parameters, dict{"name": name, "in": "query", "required": false, "schema": dict{"type": "string"}})
		}
		if parameters != nil {
			o["parameters"] = parameters
		}
		if paths[r.path] == nil {
			paths[r.path] = dict{}
		}
		paths[r.path][strings.ToLower(r.method)] = o
	}
	for key := range ops {
		t.Errorf("the document has %s, the handlers do not", key)
	}
	out, err := json.MarshalIndent(dict{
		"openapi":    "3.0.3",
		"info":       dict{"title": "Retinue task management", "version": "1", "description": "The management API of one task. The contract is plugins/README.md."},
		"paths":      paths,
		"components": dict{"schemas": schemas},
	}, "", "  ")
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
	} else if !bytes.Equal(openAPI, want) {
		t.Error("openapi.json does not say what the handlers do: go test ./internal/lifecycle/manage -run TestOpenAPI -update")
	}
}

// TestAnswersAreAsDocumented sends real requests and compares what comes back with the document.
func TestAnswersAreAsDocumented(t *testing.T) {
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
	plain, plainAPI := running(t, nil)
	full, fullAPI := running(t, map[string]any{"max_replicas": 3, "save_state": map[string]any{"http": "GET /state"}})
	full.log = "hello\n"
	plain.pids = nil
	for _, c := range []struct {
		api                http.Handler
		method, path, body string
		status             int
	}{
		{fullAPI, "GET", "/v1/task", "", 200},
		{fullAPI, "GET", "/v1/health", "", 200},
		{fullAPI, "GET", "/v1/ready", "", 200},
		{fullAPI, "GET", "/v1/metrics", "", 200},
		{fullAPI, "GET", "/v1/metrics?source=application", "", 404},
		{fullAPI, "GET", "/v1/metrics?source=x", "", 400},
		{fullAPI, "GET", "/v1/profile", "", 200},
		{fullAPI, "GET", "/v1/profile?kind=network", "", 200},
		{fullAPI, "GET", "/v1/profile?kind=heap", "", 404},
		{fullAPI, "GET", "/v1/profile?kind=x", "", 400},
		{plainAPI, "GET", "/v1/profile", "", 501},
		{plainAPI, "GET", "/v1/profile?kind=network", "", 501},
		{fullAPI, "GET", "/v1/config", "", 200},
		{fullAPI, "GET", "/v1/logs", "", 200},
		{fullAPI, "GET", "/v1/logs?stream=x", "", 400},
		{fullAPI, "GET", "/v1/state", "", 404},
		{fullAPI, "POST", "/v1/save", "", 200},
		{fullAPI, "GET", "/v1/state", "", 200},
		{plainAPI, "POST", "/v1/save", "", 404},
		{fullAPI, "POST", "/v1/replicate", `{"add": 1}`, 200},
		{fullAPI, "POST", "/v1/replicate", `{"add": 2}`, 403},
		{fullAPI, "POST", "/v1/replicate", `{"count": 1}`, 403},
		{fullAPI, "POST", "/v1/replicate", `{"count": 3}`, 200},
		{fullAPI, "POST", "/v1/replicate", `{"count": 3, "add": 1}`, 400},
		{fullAPI, "POST", "/v1/replicate", `{`, 400},
		{plainAPI, "POST", "/v1/replicate", `{"add": 1}`, 403},
		{fullAPI, "POST", "/v1/pause", "", 200},
		{fullAPI, "POST", "/v1/drain", "", 409},
		{fullAPI, "GET", "/v1/ready", "", 503},
		{fullAPI, "POST", "/v1/resume", "", 200},
		{fullAPI, "POST", "/v1/drain", "", 200},
		{fullAPI, "POST", "/v1/resume", "", 200},
		{fullAPI, "GET", "/v1/openapi.json", "", 200},
	} {
		status, _, body := call(t, c.api, c.method, c.path, c.body)
		if status != c.status {
			t.Errorf("%s %s %s: %d, want %d: %s", c.method, c.path, c.body, status, c.status, body)
			continue
		}
		path, _, _ := strings.Cut(c.path, "?")
		response, ok := doc.Paths[path][strings.ToLower(c.method)].Responses[strconv.Itoa(status)]
		if !ok {
			t.Errorf("%s %s answered %d, which the document does not have", c.method, c.path, status)
			continue
		}
		ref := strings.TrimPrefix(response.Content["application/json"].Schema.Ref, "#/components/schemas/")
		if ref == "" {
			continue
		}
		got := object(t, body)
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

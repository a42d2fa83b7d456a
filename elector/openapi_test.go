package elector

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"reflect"
	"slices"
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

// operation is what the document says of one verb, beyond its path.
type operation struct {
	summary string
	body    any // request body; nil: none
	query   []string
	answers map[int]any // by status; a string is an event stream or plain text
}

type tokenRequest struct {
	Token uint64 `json:"token"`
}

type resignRequest struct {
	Token uint64 `json:"token"`
	To    string `json:"to,omitempty"`
}

type becomeRequest struct {
	ID       string `json:"id,omitempty"`
	LeaseMS  int64  `json:"lease_ms,omitempty"`
	WaitMS   *int64 `json:"wait_ms,omitempty"`
	Priority int    `json:"priority,omitempty"`
	Value    any    `json:"value,omitempty"`
}

type valueRequest struct {
	Token uint64 `json:"token"`
	Value any    `json:"value,omitempty"`
}

type stepdownRequest struct {
	To string `json:"to,omitempty"`
}

type stepdownAnswer struct {
	Election string `json:"election"`
	Token    uint64 `json:"token"`
	Ended    string `json:"ended"`
}

type verifyAnswer struct {
	Current bool        `json:"current"`
	Token   uint64      `json:"token"`
	Leader  *LeaderInfo `json:"leader"`
}

type stale struct {
	Error   string      `json:"error"`
	Reason  string      `json:"reason"`
	Token   uint64      `json:"token"`
	Current uint64      `json:"current_token"`
	Leader  *LeaderInfo `json:"leader,omitempty"`
}

type fenceAnswer struct {
	Accepted bool   `json:"accepted"`
	Resource string `json:"resource"`
	Highest  uint64 `json:"highest"`
}

type fenceStale struct {
	Error    string `json:"error"`
	Resource string `json:"resource"`
	Token    uint64 `json:"token"`
	Highest  uint64 `json:"highest"`
}

type roleAnswer struct {
	Role Role `json:"role"`
}

type fenceRequest struct {
	Token    uint64 `json:"token"`
	Election string `json:"election,omitempty"`
}

type rebalanceAnswer struct {
	Asked map[string]string `json:"asked"`
}

type listAnswer struct {
	Info
	Elections []State `json:"elections"`
}

// documented has an entry for every verb of an election, and for every path beside them.
func documented() map[string]operation {
	no := Refusal{}
	become := operation{"Campaign; without wait_ms until elected, with 0 one attempt", becomeRequest{}, nil, map[int]any{200: Grant{}, 400: no, 409: no, 503: no}}
	renew := operation{"Prolong the application's lease", tokenRequest{}, nil, map[int]any{200: Grant{}, 400: no, 409: no, 503: no}}
	events := operation{"Event stream; resumable with Last-Event-ID", nil, nil, map[int]any{200: "text/event-stream", 400: no}}
	return map[string]operation{
		"POST become": become, "POST becomeLeader": become,
		"POST renew": renew, "POST renewLeadership": renew,
		"POST resign":   {"End leadership; to names who follows, with no vacancy", resignRequest{}, nil, map[int]any{200: Outcome{}, 202: Outcome{}, 400: no, 409: no, 503: no}},
		"POST stepdown": {"Ask the application to resign, and wait until it has", stepdownRequest{}, nil, map[int]any{200: stepdownAnswer{}, 409: no, 503: no}},
		"POST verify":   {"Is this the current leader's token? Linearizable", tokenRequest{}, nil, map[int]any{200: verifyAnswer{}, 400: no, 409: stale{}, 503: no}},
		"PUT value":     {"Publish data of the leader", valueRequest{}, nil, map[int]any{200: Grant{}, 400: no, 409: no, 503: no}},
		"GET leader":    {"Who leads", nil, nil, map[int]any{200: LeaderInfo{}, 404: no}},
		"GET role":      {"200 exactly while this side leads, by the clock alone", nil, nil, map[int]any{200: roleAnswer{}, 503: roleAnswer{}}},
		"GET events":    events,
		"GET hold":      {"The tether: an event stream whose end is the end of leadership", nil, []string{"token"}, map[int]any{200: "text/event-stream", 400: no, 409: no}},
		"GET ":          {"State; with index, when it has changed", nil, []string{"index", "wait"}, map[int]any{200: State{}, 304: nil, 400: no, 404: no}},

		"GET /v1/elections":         {"The elector and all of its elections", nil, nil, map[int]any{200: listAnswer{}}},
		"GET /v1/events":            events,
		"POST /v1/rebalance":        {"Ask leaders here to hand over what another elector outranks", nil, nil, map[int]any{200: rebalanceAnswer{}, 503: no}},
		"POST /v1/fence/{resource}": {"High-water check for resources that cannot compare tokens", fenceRequest{}, nil, map[int]any{200: fenceAnswer{}, 400: no, 404: no, 412: fenceStale{}}},
		"GET /healthz":              {"The process works", nil, nil, map[int]any{200: object{}, 503: no}},
		"GET /readyz":               {"Consul answers", nil, nil, map[int]any{200: object{}, 503: no}},
		"GET /metrics":              {"Prometheus metrics", nil, nil, map[int]any{200: "text/plain"}},
		"GET /v1/openapi.json":      {"This document", nil, nil, map[int]any{200: object{}}},
	}
}

func document(t *testing.T) []byte {
	t.Helper()
	ops := documented()
	paths, schemas := map[string]object{}, object{}
	content := func(v any) object {
		kind := reflect.TypeOf(v)
		if media, ok := v.(string); ok {
			return object{media: object{"schema": object{"type": "string"}}}
		}
		if kind.Kind() == reflect.Map {
			return object{"application/json": object{"schema": object{"type": "object"}}}
		}
		name := strings.ToUpper(kind.Name()[:1]) + kind.Name()[1:]
		schemas[name] = schema(kind)
		return object{"application/json": object{"schema": object{"$ref": "#/components/schemas/" + name}}}
	}
	add := func(method, path string, op operation) {
		answers := object{}
		for status, v := range op.answers {
			answer := object{"description": http.StatusText(status)}
			if v != nil {
				answer["content"] = content(v)
			}
			answers[jsonInt(status)] = answer
		}
		o := object{"summary": op.summary, "responses": answers}
		if op.body != nil {
			o["requestBody"] = object{"content": content(op.body)}
		}
		var parameters []object
		for _, part := range strings.Split(path, "/") {
			if name, ok := strings.CutPrefix(part, "{"); ok {
				parameters = append(parameters, object{"name": strings.TrimSuffix(name, "}"), "in": "path", "required": true, "schema": object{"type": "string"}})
			}
		}
		for _, name := range op.query {
			parameters = append(parameters, object{"name": name, "in": "query", "required": name == "token", "schema": object{"type": "string"}})
		}
		if parameters != nil {
			o["parameters"] = parameters
		}
		if paths[path] == nil {
			paths[path] = object{}
		}
		paths[path][strings.ToLower(method)] = o
	}
	for verb, methods := range (&handlers{}).verbs() {
		for method := range methods {
			op, ok := ops[method+" "+verb]
			if !ok {
				t.Errorf("the handlers have %s %q, the document does not", method, verb)
				continue
			}
			delete(ops, method+" "+verb)
			add(method, strings.TrimSuffix("/v1/elections/{election}/"+verb, "/"), op)
		}
	}
	for key, op := range ops {
		method, path, _ := strings.Cut(key, " ")
		if !strings.HasPrefix(path, "/") {
			t.Errorf("the document has %q, the handlers do not", key)
			continue
		}
		add(method, path, op)
	}
	out, err := json.MarshalIndent(object{
		"openapi": "3.0.3",
		"info": object{"title": "Retinue elector", "version": "1",
			"description": "Leader election beside a container, on a Unix socket or loopback. The contract is elector/README.md."},
		"paths":      paths,
		"components": object{"schemas": schemas},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func jsonInt(n int) string { b, _ := json.Marshal(n); return string(b) }

func TestOpenAPI(t *testing.T) {
	want := document(t)
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(openAPI, want) && !*update {
		t.Error("openapi.json does not say what the handlers do: go test ./elector -run TestOpenAPI -update")
	}
}

// TestAnswersAreAsDocumented sends real requests and compares what comes back with the document.
func TestAnswersAreAsDocumented(t *testing.T) {
	_, srv := served(t, "leader")
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
	status, grant, _ := call(t, srv, "POST", "/v1/elections/leader/become", `{"id": "one"}`)
	if status != 200 {
		t.Fatalf("become: %d %v", status, grant)
	}
	token := jsonInt(int(grant["token"].(float64)))
	for _, c := range []struct{ method, template, path, body string }{
		{"POST", "/v1/elections/{election}/become", "/v1/elections/leader/become", `{"id": "one"}`},
		{"POST", "/v1/elections/{election}/become", "/v1/elections/leader/become", `{"id": "two", "wait_ms": 0}`},
		{"POST", "/v1/elections/{election}/renew", "/v1/elections/leader/renew", `{"token": ` + token + `}`},
		{"POST", "/v1/elections/{election}/renew", "/v1/elections/leader/renew", `{"token": 1}`},
		{"PUT", "/v1/elections/{election}/value", "/v1/elections/leader/value", `{"token": ` + token + `, "value": {"port": 1}}`},
		{"POST", "/v1/elections/{election}/verify", "/v1/elections/leader/verify", `{"token": ` + token + `}`},
		{"POST", "/v1/elections/{election}/verify", "/v1/elections/leader/verify", `{"token": 1}`},
		{"GET", "/v1/elections/{election}", "/v1/elections/leader", ""},
		{"GET", "/v1/elections/{election}", "/v1/elections/nope", ""},
		{"GET", "/v1/elections/{election}/leader", "/v1/elections/leader/leader", ""},
		{"GET", "/v1/elections/{election}/role", "/v1/elections/leader/role", ""},
		{"GET", "/v1/elections", "/v1/elections", ""},
		{"POST", "/v1/fence/{resource}", "/v1/fence/db", `{"token": 9}`},
		{"POST", "/v1/fence/{resource}", "/v1/fence/db", `{"token": 3}`},
		{"POST", "/v1/rebalance", "/v1/rebalance", ""},
		{"GET", "/healthz", "/healthz", ""},
		{"GET", "/readyz", "/readyz", ""},
		{"GET", "/v1/openapi.json", "/v1/openapi.json", ""},
		{"POST", "/v1/elections/{election}/resign", "/v1/elections/leader/resign", `{"token": ` + token + `}`},
		{"GET", "/v1/elections/{election}/role", "/v1/elections/leader/role", ""},
		{"GET", "/v1/elections/{election}/leader", "/v1/elections/leader/leader", ""},
		{"POST", "/v1/elections/{election}/stepdown", "/v1/elections/leader/stepdown", ""},
	} {
		status, got, _ := call(t, srv, c.method, c.path, c.body)
		response, ok := doc.Paths[c.template][strings.ToLower(c.method)].Responses[jsonInt(status)]
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

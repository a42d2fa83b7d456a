package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/hint"
)

// fakeAllocs is a Nomad that knows two allocations.
func fakeAllocs(t *testing.T) {
	t.Helper()
	running := map[string]*nomad.TaskState{"web": {State: "running"}, "log": {State: "running"}, "done": {State: "dead"}}
	allocs := []*nomad.Allocation{
		{ID: "4f2a91c0-0000-0000-0000-000000000001", Namespace: "default", TaskStates: running},
		{ID: "4f2b0000-0000-0000-0000-000000000002", Namespace: "default", TaskStates: map[string]*nomad.TaskState{"db": {State: "running"}}},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/allocations", func(w http.ResponseWriter, r *http.Request) {
		stubs := []*nomad.AllocationListStub{}
		for _, a := range allocs {
			if strings.HasPrefix(a.ID, r.URL.Query().Get("prefix")) {
				stubs = append(stubs, &nomad.AllocationListStub{ID: a.ID, Namespace: a.Namespace})
			}
		}
		json.NewEncoder(w).Encode(stubs)
	})
	mux.HandleFunc("GET /v1/allocation/{id}", func(w http.ResponseWriter, r *http.Request) {
		for _, a := range allocs {
			if a.ID == r.PathValue("id") {
				json.NewEncoder(w).Encode(a)
			}
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	t.Setenv("NOMAD_ADDR", srv.URL)
	t.Setenv("NOMAD_TOKEN", "")
}

func TestFindTask(t *testing.T) {
	fakeAllocs(t)
	client, err := nomadClient()
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{"4f2b": "db", "4f2b0000/db": "db", "4f2a9/web": "web", "4f2a91c0-0000-0000-0000-000000000001/log": "log"} {
		if alloc, task, err := findTask(t.Context(), client, target); err != nil || task != want || !strings.HasPrefix(alloc.ID, target[:4]) {
			t.Errorf("%s: %v %s %v", target, alloc, task, err)
		}
	}
	for target, want := range map[string]string{"4f2a91c0": "log, web", "4f2a91c0/nope": "log, web", "4f": "retinue task ls", "ffff": "retinue task ls", "": "ALLOC/TASK", "web": "ALLOC/TASK", "../x": "ALLOC/TASK"} {
		if _, _, err := findTask(t.Context(), client, target); err == nil || !strings.Contains(hint.Of(err), want) {
			t.Errorf("%q: %v, hint %q", target, err, hint.Of(err))
		}
	}
}

func TestTaskWrongUse(t *testing.T) {
	fakeAllocs(t)
	for line, want := range map[string]string{
		"task show":             "accepts 1 arg",
		"task replicate 4f2b":   "how many more",
		"task pauze 4f2b":       "did you mean `retinue task pause`?",
		"task show nonsense":    "is no allocation",
		"init":                  "requires at least 1 arg",
		"init --kill-timeout x": "invalid argument",
	} {
		if code, _, stderr := call(strings.Fields(line)...); code != exitUsage || !strings.Contains(stderr, want) || !strings.Contains(stderr, "\nHint: ") {
			t.Errorf("retinue %s: exit code %d, %s", line, code, stderr)
		}
	}
}

// An error of the driver does not end up in the output, whatever the pieces are that it comes in; anything else does, at once.
func TestHoldRefusal(t *testing.T) {
	for text, held := range map[string]bool{`{"error":"limit","message":"m"}`: true, `{"err`: true, `{"config": 1}`: false, "text\n": false, "": false} {
		for size := 1; size <= 9; size += 4 {
			var out bytes.Buffer
			h := &holdRefusal{w: &out}
			for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
				if _, err := h.Write([]byte(rest[:min(size, len(rest))])); err != nil {
					t.Fatal(err)
				}
			}
			if held && (out.Len() > 0 || string(h.held) != text) || !held && out.String() != text {
				t.Errorf("%q in pieces of %d: out %q, held %q", text, size, out.String(), h.held)
			}
		}
	}
	if err := refusal("x", []byte(`{"error":"limit","message":"too many","hint":"raise it"}`)); err.Error() != "too many" || hint.Of(err) != "raise it" {
		t.Error(err)
	}
	if err := refusal("x", []byte("sh: @retinue: not found")); !strings.Contains(err.Error(), "does not run task x") {
		t.Error(err)
	}
}

package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source/memory"
	"retinue/coordinator/worker"
)

// seen waits until an item's progress is what is wanted; "" for none.
func (s *stage) seen(t *testing.T, id string, state item.State, want string) map[string]any {
	t.Helper()
	var it map[string]any
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, it = s.call(t, http.MethodGet, "/v1/items/"+id, "")
		said := ""
		if it["progress"] != nil {
			data, err := json.Marshal(it["progress"])
			if err != nil {
				t.Fatal(err)
			}
			said = string(data)
		}
		if it["state"] == string(state) && said == want {
			return it
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v, want it %s with progress %q", id, it, state, want)
		}
	}
}

// A command that touches its heartbeat, or writes how far it is, may take longer than one without a sign; what it writes is told.
func TestProgressOfCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := `case $(cat input) in
		dull) sleep 60;;
		touch) while [ ! -e ` + dir + `/go ]; do touch heartbeat; sleep 0.1; done;;
		tell) while [ ! -e ` + dir + `/go ]; do echo '{"page": 3}' >p; mv p progress.json; sleep 0.1; done;;
		cut) echo '{"page"' >progress.json; while [ ! -e ` + dir + `/go ]; do touch heartbeat; sleep 0.1; done;;
		away) echo '{"secret": 1}' >` + dir + `/other; ln -s ` + dir + `/other progress.json; while [ ! -e ` + dir + `/go ]; do touch heartbeat; sleep 0.1; done;;
		esac`
	cfg := quick()
	cfg.Slots, cfg.Heartbeat, cfg.Attempts = 5, 2500*time.Millisecond, 1
	var s *stage
	w := &worker.Exec{Folders: worker.Folders{Work: filepath.Join(dir, "wq")}, Command: []string{"/bin/sh", "-c", script}, Codes: worker.DefaultExitCodes(), Grace: time.Second,
		Signs: worker.SignsWithin(cfg.Heartbeat, func(id string, again bool) { s.Beat(id, again) })}
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	s = startStage(t, memory.New(), cfg, &commit.Journal{KV: &memoryKV{}}, w)
	began := time.Now()
	for _, body := range []string{"dull", "touch", "tell", "cut", "away"} {
		s.call(t, http.MethodPost, "/v1/queues/q/items", body, "Idempotency-Key", body)
	}
	s.seen(t, "tell", item.Running, `{"page":3}`)
	s.seen(t, "dull", item.Dead, "")
	for time.Since(began) < 2*cfg.Heartbeat {
		time.Sleep(10 * time.Millisecond)
	}
	for _, id := range []string{"touch", "cut", "away"} {
		s.seen(t, id, item.Running, "")
	}
	if _, list := s.call(t, http.MethodGet, "/v1/queues/q/items", ""); !strings.Contains(fmt.Sprint(list), "progress:map[page:3]") {
		t.Errorf("the list says nothing of progress: %v", list)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"touch", "tell", "cut", "away"} {
		s.seen(t, id, item.Done, "")
	}
}

// A worker without a folder says it with each extension; the next attempt begins anew.
func TestProgressByExtension(t *testing.T) {
	t.Parallel()
	cfg := quick()
	verdicts := make(chan worker.Verdict)
	s := startStage(t, memory.New(), cfg, &commit.Journal{KV: &memoryKV{}}, workerFunc(func(ctx context.Context, _ *item.Task) worker.Verdict {
		select {
		case v := <-verdicts:
			return v
		case <-ctx.Done():
			return worker.Verdict{Kind: worker.Stopped}
		}
	}))
	s.call(t, http.MethodPost, "/v1/queues/q/items", "x", "Idempotency-Key", "a")
	s.seen(t, "a", item.Running, "")
	for _, c := range []struct {
		body   string
		status int
		seen   string
	}{
		{`{"percent": 40}`, 200, `{"percent":40}`},
		{``, 200, `{"percent":40}`},
		{`{"percent"`, 400, `{"percent":40}`},
		{`"` + strings.Repeat("x", worker.MaxProgress) + `"`, 400, `{"percent":40}`},
		{`"nearly done"`, 200, `"nearly done"`},
	} {
		if status, out := s.call(t, http.MethodPost, "/v1/items/a/extend", c.body); status != c.status {
			t.Errorf("%.20q: %d %v", c.body, status, out)
		}
		s.seen(t, "a", item.Running, c.seen)
	}
	verdicts <- worker.Verdict{Kind: worker.Retry, Reason: "again", Node: "child's", Alloc: "c41d"}
	it := s.seen(t, "a", item.Running, "")
	first := it["attempts"].([]any)[0].(map[string]any)
	if it["attempt"] != 2.0 || first["node"] != "child's" || first["alloc"] != "c41d" { // of the worker, where it is not beside the coordinator
		t.Errorf("the second attempt: %v", it)
	}
	verdicts <- worker.Verdict{Kind: worker.Ack, Output: &worker.Output{}}
	s.seen(t, "a", item.Done, "")
}

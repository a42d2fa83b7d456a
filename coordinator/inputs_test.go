package coordinator

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"retinue/coordinator/blob"
	"retinue/coordinator/blob/blobtest"
	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source/memory"
)

// storeStage starts a stage with a command over an object store, as settings say.
func storeStage(t *testing.T, store *blobtest.Server, broker *memory.Broker, kv commit.KV, script string, change func(*Settings)) *stage {
	t.Helper()
	for name, value := range store.Variables() {
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	command := filepath.Join(dir, "worker")
	if err := os.WriteFile(command, []byte("#!/bin/sh\nset -e\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	s := complete(func(s *Settings) {
		s.Worker.Command, s.Worker.Work = []string{command}, filepath.Join(dir, "wq")
		s.Input.Allow = []string{"s3://b/"}
		s.Output.Commit, s.Output.Journal, s.Output.Artifacts = CommitJournal, "consul:q", "s3://b/out"
		s.Retry.Attempts, s.Retry.Backoff, s.Retry.Infra = 3, "1ms..5ms", "1ms..50ms"
		change(s)
	})
	cfg, err := s.Config()
	if err != nil {
		t.Fatal(err)
	}
	point, err := s.artifacts(t.Context(), commit.Journal{KV: kv})
	if err != nil {
		t.Fatal(err)
	}
	var st *stage
	var ready atomic.Bool
	w, err := s.NewWorker(point, func(id string, again bool) {
		if ready.Load() {
			st.Beat(id, again)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	st = startStage(t, broker, cfg, point, w)
	ready.Store(true)
	return st
}

func (s *stage) putInput(t *testing.T, id, address, data string) {
	t.Helper()
	sum := sha256.Sum256([]byte(data))
	line, err := json.Marshal(Line{ID: id, Input: &item.Reference{URL: address, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}})
	if err != nil {
		t.Fatal(err)
	}
	if status, got := s.call(t, "POST", "/v1/queues/"+s.cfg.Queue+"/items", string(line), "Content-Type", "application/x-ndjson"); status != 202 {
		t.Fatalf("%d %v", status, got)
	}
}

// Two stages over an object store alone: what the first uploads is what the second fetches, and its record says where the files are.
func TestInputsAndArtifacts(t *testing.T) {
	store, broker, kv := blobtest.Start(t), memory.New(), &memoryKV{}
	client := blob.NewClient(store.Environment(), nil)
	big := strings.Repeat("0123456789abcdef", 20_000) // above what travels in a message
	if err := client.Put(t.Context(), &url.URL{Scheme: "s3", Host: "b", Path: "/in/a"}, []byte(big)); err != nil {
		t.Fatal(err)
	}
	first := storeStage(t, store, broker, kv, `tr a-f A-F <"$RETINUE_INPUT" >"$RETINUE_OUTPUT/up per%41.txt"`, func(s *Settings) { s.Output.To = "second" })
	second := storeStage(t, store, broker, kv, `wc -c <"$RETINUE_INPUT"`, func(s *Settings) { s.Queue = "second" })
	first.putInput(t, "one", "s3://b/in/a", big)
	_, got := first.call(t, "GET", "/v1/items/one?wait=60s", "")
	if got["state"] != "done" || !strings.HasPrefix(fmt.Sprint(got["output"]), "s3://b/out/q/one/one.1.") {
		t.Fatalf("%v", got)
	}
	sum := sha256.Sum256([]byte(strings.ToUpper(big)))
	file := got["files"].([]any)[0].(map[string]any)
	if file["name"] != "up per%41.txt" || file["sha256"] != hex.EncodeToString(sum[:]) {
		t.Errorf("%v", file)
	}
	if _, got := second.call(t, "GET", "/v1/items/one/q/0?wait=60s", ""); got["state"] != "done" || strings.TrimSpace(fmt.Sprint(got["result"])) != fmt.Sprint(len(big)) {
		t.Errorf("the next stage: %v", got)
	}
	resp, err := http.Get(second.srv.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text := readAll(t, resp); !strings.Contains(text, `retinue_queue_inputs_total{queue="second",outcome="fetched"} 1`) {
		t.Errorf("metrics: %s", text)
	}
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	data := new(strings.Builder)
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		data.Write(buf[:n])
		if err != nil {
			return data.String()
		}
	}
}

// A store that is away burns nothing: not before the attempt, and not after it, when the output waits and is not made again.
func TestStoreAway(t *testing.T) {
	store, kv := blobtest.Start(t), &memoryKV{}
	client := blob.NewClient(store.Environment(), nil)
	if err := client.Put(t.Context(), &url.URL{Scheme: "s3", Host: "b", Path: "/in/a"}, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(t.TempDir(), "runs")
	s := storeStage(t, store, memory.New(), kv, `echo x >>`+runs+`; cp "$RETINUE_INPUT" "$RETINUE_OUTPUT/copy"`, func(*Settings) {})
	away := func(method, prefix string, status int, code string) *atomic.Int64 {
		var n atomic.Int64
		store.Gate(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != method || !strings.HasPrefix(r.URL.Path, prefix) {
				return false
			}
			n.Add(1)
			blobtest.Refuse(w, status, code)
			return true
		})
		return &n
	}
	several := func(what string, n *atomic.Int64) {
		t.Helper()
		for end := time.Now().Add(time.Minute); n.Load() < 8; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: asked %d times in a minute", what, n.Load())
			}
		}
	}
	gets := away("GET", "/b/in/", 503, "SlowDown")
	s.putInput(t, "one", "s3://b/in/a", "hello")
	several("fetch", gets) // more often than there are attempts
	puts := away("PUT", "/b/out/", 500, "InternalError")
	several("upload", puts)
	store.Gate(nil)
	_, got := s.call(t, "GET", "/v1/items/one?wait=60s", "")
	if got["state"] != "done" || got["attempt"] != 1.0 {
		t.Errorf("%v", got)
	}
	if text, err := os.ReadFile(runs); err != nil || string(text) != "x\n" {
		t.Errorf("runs %q, %v", text, err)
	}
	// What is not there counts, and ends as a dead letter that says so.
	s.putInput(t, "two", "s3://b/in/none", "not there")
	_, got = s.call(t, "GET", "/v1/items/two?wait=60s", "")
	if got["state"] != "dead" || !strings.Contains(fmt.Sprint(got["reason"]), "404 NoSuchKey") || len(got["attempts"].([]any)) != 3 {
		t.Errorf("%v", got)
	}
	// So does what is something else than the message says.
	s.putInput(t, "three", "s3://b/in/a", "goodbye")
	if _, got = s.call(t, "GET", "/v1/items/three?wait=60s", ""); got["state"] != "dead" || !strings.Contains(fmt.Sprint(got["reason"]), "is not what the message says: it has 5 bytes, not 7") {
		t.Errorf("%v", got)
	}
}

// A coordinator that dies between upload and record leaves keys of its own attempt; the next attempt's count.
func TestUploadsOfLosers(t *testing.T) {
	store, kv := blobtest.Start(t), &memoryKV{}
	a := commit.Artifacts{Point: commit.Journal{KV: kv}, Client: blob.NewClient(store.Environment(), nil), Base: &url.URL{Scheme: "s3", Host: "b", Path: "/out"}}
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	record := func(attempt string) item.Record {
		return item.Record{ID: "i", Stage: "q", State: item.Done, Attempt: attempt, Files: []item.File{{Name: "f", Size: 1}}}
	}
	won, err := a.Commit(t.Context(), record("one"), out)
	if err != nil || won.Output != "s3://b/out/q/i/one" {
		t.Fatalf("%+v %v", won, err)
	}
	if won, err := a.Commit(t.Context(), record("two"), out); err != nil || won.Attempt != "one" {
		t.Fatalf("%+v %v", won, err)
	}
	var keys []string
	if err := a.Client.Each(t.Context(), &url.URL{Scheme: "s3", Host: "b", Path: "/out/"}, func(key string) error { keys = append(keys, key); return nil }); err != nil || strings.Join(keys, " ") != "out/q/i/one/f" {
		t.Errorf("%q %v", keys, err)
	}
}

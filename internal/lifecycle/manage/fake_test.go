package manage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/state"
)

// fakeTask is a task without a process.
type fakeTask struct {
	engine *lifecycle.Engine
	socket string
	pids   []int
	log    string
	keeper *state.Keeper
	mu     sync.Mutex
	count  int
	exec   func(lifecycle.ExecCall) (lifecycle.ExecResult, error)
}

func (f *fakeTask) Info() Info {
	return Info{Namespace: "default", Job: `jo"b`, Group: "g", Task: "t", Alloc: "a", Driver: "exec"}
}
func (f *fakeTask) Engine() *lifecycle.Engine { return f.engine }
func (f *fakeTask) Usage(context.Context) (Usage, error) {
	return Usage{CPUSeconds: 1.5, MemoryBytes: 1 << 20, Processes: 2}, nil
}
func (f *fakeTask) Logs(_ context.Context, stream string, tail int64, _ bool) (io.ReadCloser, error) {
	text := f.log
	if stream == "stderr" {
		text = ""
	}
	return io.NopCloser(strings.NewReader(text[max(0, len(text)-int(tail)):])), nil
}
func (f *fakeTask) Config() map[string]any {
	return map[string]any{"image": "app:1", "env": map[string]any{"PASSWORD": "hunter2"}, "auth": []any{"hunter2"}, "mounts": []any{map[string]any{"secret_path": "hunter2", "target": "/x"}}}
}
func (f *fakeTask) Pids(context.Context) ([]int, error) { return f.pids, nil }
func (f *fakeTask) Exec(_ context.Context, call lifecycle.ExecCall) (lifecycle.ExecResult, error) {
	if f.exec == nil {
		return lifecycle.ExecResult{}, errors.New("no such program")
	}
	return f.exec(call)
}
func (f *fakeTask) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", f.socket)
}
func (f *fakeTask) State(ctx context.Context) (state.Meta, error) { return f.keeper.Show(ctx) }
func (f *fakeTask) Replicate(_ context.Context, count func(int) (int, error)) (int, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.count
	after, err := count(before)
	if err == nil {
		f.count = after
	}
	return before, f.count, err
}

// fakeHost is the process that the fake task does not have.
type fakeHost struct{ lifecycle.Host }

func (fakeHost) Start(context.Context) error                       { return nil }
func (fakeHost) Stop(context.Context, string, time.Duration) error { return nil }
func (fakeHost) Freeze(context.Context) error                      { return nil }
func (fakeHost) Thaw(context.Context) error                        { return nil }
func (fakeHost) Place(context.Context, []byte) error               { return nil }
func (fakeHost) Event(lifecycle.Event)                             {}
func (fakeHost) Persist([]byte) error                              { return nil }
func (fakeHost) HTTP(context.Context, lifecycle.HTTPCall) (lifecycle.HTTPResult, error) {
	return lifecycle.HTTPResult{Status: 200, Body: []byte("saved")}, nil
}

// running returns a task that runs, its handler, and where its application listens; nobody does yet.
func running(t *testing.T, block map[string]any) (*fakeTask, http.Handler) {
	t.Helper()
	cfg, err := lifecycle.Decode(block)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeTask{socket: filepath.Join(t.TempDir(), "app.sock"), pids: []int{os.Getpid()}, count: 1,
		keeper: &state.Keeper{Store: state.Alloc(t.TempDir(), "t")}}
	f.engine = lifecycle.New(lifecycle.Options{Config: cfg, Host: fakeHost{}, States: f.keeper, ID: "id"})
	t.Cleanup(f.engine.Close)
	if err := f.engine.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f, Handler(cfg, f)
}

// application serves mux on the application's socket.
func (f *fakeTask) application(t *testing.T, h http.Handler) {
	t.Helper()
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
}

// call makes one request.
func call(t *testing.T, h http.Handler, method, path, body string) (int, http.Header, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Result().Header, w.Body.String()
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.NewDecoder(bytes.NewReader([]byte(text))).Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

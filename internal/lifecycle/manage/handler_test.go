package manage

import (
	"bytes"
	"context"
	"io"
	"net/http"
	_ "net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/internal/lifecycle/allocfs"
)

// What the application answers is passed on; the rest the driver answers.
func TestApplicationFirst(t *testing.T) {
	f, api := running(t, nil)
	app := http.NewServeMux()
	app.HandleFunc("GET /retinue/v1/live", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); io.WriteString(w, "deadlock\n") })
	app.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "app_requests 7") })
	app.Handle("GET /debug/pprof/", http.DefaultServeMux)
	app.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"level":"debug"}`) })
	f.application(t, app)
	if status, _, body := call(t, api, "GET", "/v1/health", ""); status != 503 || object(t, body)["source"] != "application" || object(t, body)["detail"] != "deadlock" {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := call(t, api, "GET", "/v1/ready", ""); status != 200 || object(t, body)["source"] != "driver" {
		t.Errorf("%d %s", status, body)
	}
	status, _, body := call(t, api, "GET", "/v1/metrics", "")
	if status != 200 || !strings.HasPrefix(body, "app_requests 7\n# HELP retinue_task") || !strings.Contains(body, `retinue_task_phase{job="jo\"b",group="g",task="t",alloc="a",phase="running"} 1`) {
		t.Errorf("%d %s", status, body)
	}
	if status, header, body := call(t, api, "GET", "/v1/profile?kind=goroutine&debug=1", ""); status != 200 || header.Get("Retinue-Source") != "application" || !strings.Contains(body, "goroutine profile:") {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := call(t, api, "GET", "/v1/config", ""); status != 200 || body != `{"level":"debug"}` {
		t.Errorf("%d %s", status, body)
	}
}

// An application that does not answer holds nothing up for long.
func TestSilentApplication(t *testing.T) {
	f, api := running(t, nil)
	release := make(chan struct{})
	f.application(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer close(release)
	if status, _, body := call(t, api, "GET", "/v1/health", ""); status != 200 || object(t, body)["source"] != "driver" {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := call(t, api, "GET", "/v1/metrics", ""); status != 200 || !strings.HasPrefix(body, "# HELP retinue_task") {
		t.Errorf("%d %s", status, body)
	}
}

func TestNoSecretsInConfig(t *testing.T) {
	_, api := running(t, nil)
	_, _, body := call(t, api, "GET", "/v1/config", "")
	if strings.Contains(body, "hunter2") || !strings.Contains(body, "app:1") || !strings.Contains(body, "PASSWORD") {
		t.Error(body)
	}
}

// The threads of this process stand for those of a task.
func TestThreads(t *testing.T) {
	_, api := running(t, nil)
	status, header, body := call(t, api, "GET", "/v1/profile?kind=threads", "")
	if status != 200 || header.Get("Retinue-Source") != "driver" || !strings.Contains(body, "thread ") || !strings.Contains(body, "state S") && !strings.Contains(body, "state R") {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := call(t, api, "GET", "/v1/profile?kind=network", ""); status != 200 || !strings.Contains(body, "Tcp:") {
		t.Errorf("%d %s", status, body)
	}
}

func TestUnknown(t *testing.T) {
	_, api := running(t, nil)
	if status, header, body := call(t, api, "GET", "/v1/pause", ""); status != 405 || header.Get("Allow") != "POST" || object(t, body)["hint"] == "" {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := call(t, api, "GET", "/v2/task", ""); status != 404 || object(t, body)["error"] != "not_found" {
		t.Errorf("%d %s", status, body)
	}
}

func TestExec(t *testing.T) {
	f, api := running(t, nil)
	f.log = "one\ntwo\n"
	for _, c := range []struct {
		argv []string
		code int
		mine bool
		out  string
		err  string
	}{
		{[]string{"ls", "/"}, 0, false, "", ""},
		{nil, 0, false, "", ""},
		{[]string{"@retinue"}, 2, true, "", "usage:"},
		{[]string{"@retinue", "GET", "v1/task"}, 2, true, "", "usage:"},
		{[]string{"@retinue", "G T", "/v1/task"}, 2, true, "", "usage:"},
		{[]string{"@retinue", "get", "/v1/task"}, 0, true, `"phase":"running"`, ""},
		{[]string{"@retinue", "GET", "/v1/logs?tail=4"}, 0, true, "two\n", ""},
		{[]string{"@retinue", "POST", "/v1/replicate", `{"add":1}`}, 1, true, "max_replicas", ""},
		{[]string{"@retinue", "GET", "/nope"}, 1, true, "not_found", ""},
	} {
		var out, errs bytes.Buffer
		code, mine := ServeExec(t.Context(), api, c.argv, &out, &errs)
		if code != c.code || mine != c.mine || !strings.Contains(out.String(), c.out) || !strings.Contains(errs.String(), c.err) {
			t.Errorf("%q: %d %v %q %q", c.argv, code, mine, out.String(), errs.String())
		}
	}
}

// The socket works, over a path that no socket address holds, and is gone afterwards.
func TestSocket(t *testing.T) {
	_, api := running(t, nil)
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := allocfs.Socket{Dir: dir, Name: "tmp/manage.sock"}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, socket, api) }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := socket.Dial(t.Context(), "unix")
		if err == nil {
			io.WriteString(conn, "GET /v1/health HTTP/1.0\r\n\r\n")
			answer, _ := io.ReadAll(conn)
			conn.Close()
			if !strings.Contains(string(answer), "200 OK") {
				t.Errorf("%s", answer)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "tmp/manage.sock")); !os.IsNotExist(err) {
		t.Error("the socket is still there")
	}
}

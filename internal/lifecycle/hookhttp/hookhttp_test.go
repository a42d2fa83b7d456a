package hookhttp

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/allocfs"
)

func TestDo(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := &Caller{Socket: allocfs.Socket{Dir: dir, Name: "tmp/app.sock"}}
	call := lifecycle.HTTPCall{Request: lifecycle.Request{Method: "PUT", Path: "/state?x=1"}, Header: map[string]string{"Retinue-Hook": "restore_state"}, Body: []byte("blob"), Limit: 10}
	if _, err := c.Do(t.Context(), call); !errors.Is(err, lifecycle.ErrUnreachable) {
		t.Errorf("before the application listens: %v", err)
	}
	app := http.NewServeMux()
	app.HandleFunc("PUT /state", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) != "blob" || r.Header.Get("Retinue-Hook") != "restore_state" || r.URL.RawQuery != "x=1" {
			t.Errorf("%s %v %s", body, r.Header, r.URL)
		}
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(202)
		io.WriteString(w, "a long long answer")
	})
	app.HandleFunc("POST /redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
	})
	l, err := c.Socket.Listen(0o600)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(app)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	defer srv.Close()
	res, err := c.Do(t.Context(), call)
	if err != nil || res.Status != 202 || res.RetryAfter != "3" || len(res.Body) != 11 {
		t.Errorf("%+v %v", res, err)
	}
	call.Request = lifecycle.Request{Method: "POST", Path: "/redirect"}
	if res, err := c.Do(t.Context(), call); err != nil || res.Status != 302 {
		t.Errorf("a redirect was followed: %+v %v", res, err)
	}
}

// A hook that runs on the host does not reach the host's own services.
func TestGuard(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	call := lifecycle.HTTPCall{Request: lifecycle.Request{Method: "POST", Path: "/"}, Limit: 10, FromHost: true}
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254"} {
		call.URL = "http://" + host + ":" + port
		if _, err := (&Caller{}).Do(t.Context(), call); err == nil || !strings.Contains(err.Error(), "address of the host itself") {
			t.Errorf("%s: %v", host, err)
		}
	}
	call.URL = srv.URL
	if res, err := (&Caller{AllowLocal: true}).Do(t.Context(), call); err != nil || string(res.Body) != "secret" {
		t.Errorf("%+v %v", res, err)
	}
	call.FromHost = false // inside the task's own network the task may call what it likes
	if res, err := (&Caller{}).Do(t.Context(), call); err != nil || string(res.Body) != "secret" {
		t.Errorf("%+v %v", res, err)
	}
}

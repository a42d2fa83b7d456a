package listen

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/internal/hint"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]string{
		"unix:///alloc/tmp/elector.sock": "unix:///alloc/tmp/elector.sock",
		"unix:///a//b/../c":              "unix:///a/c",
		"tcp://127.0.0.1:4040":           "http://127.0.0.1:4040",
		"http://127.0.0.1:4040/":         "http://127.0.0.1:4040",
		"http://localhost:0":             "http://localhost:0",
		"tcp://[::1]:4040":               "http://[::1]:4040",
		"tcp://127.1.2.3:4040":           "http://127.1.2.3:4040",
	} {
		if a, err := Parse(s); err != nil || a.String() != want {
			t.Errorf("Parse(%s) = %s, %v", s, a, err)
		}
	}
	for _, s := range []string{"", "/alloc/elector.sock", "unix://elector.sock", "unix:/x", "tcp://0.0.0.0:4040", "tcp://:4040", "http://10.0.0.1:80", "http://example.com:80",
		"tcp://127.0.0.1", "tcp://127.0.0.1:http", "tcp://127.0.0.1:70000", "https://127.0.0.1:1", "tcp://[::]:1"} {
		if a, err := Parse(s); err == nil || hint.Of(err) == "" {
			t.Errorf("Parse(%s) = %s, %v (hint %q)", s, a, err, hint.Of(err))
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("unix:///a")
	f.Add("tcp://127.0.0.1:1")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(a.String()); err != nil || again != a {
			t.Errorf("%q: %+v, again %+v, %v", s, a, again, err)
		}
	})
}

// serve answers "hello" on a and returns what a client gets.
func serve(t *testing.T, a Addr) (get func(host string) (int, string)) {
	t.Helper()
	l, err := Listen(a, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }), time.Second)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if a.Network == "tcp" {
		a.Host = l.Addr().String()
	}
	client, base := Client(a)
	t.Cleanup(client.CloseIdleConnections)
	return func(host string) (int, string) {
		t.Helper()
		req, _ := http.NewRequest(http.MethodGet, base, nil)
		if host != "" {
			req.Host = host
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
}

// Paths below alloc dirs do not fit into a socket address.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "elector.sock")
	t.Run("serve", func(t *testing.T) {
		if status, body := serve(t, Addr{Network: "unix", Path: path})(""); status != 200 || body != "hello" {
			t.Errorf("%d %s", status, body)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("%v %v", info, err)
		}
	})
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestSocketFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	a := Addr{Network: "unix", Path: path}
	live, err := Listen(a, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(a, 0o666); err == nil || hint.Of(err) == "" {
		t.Errorf("a living socket was taken away: %v", err)
	}
	live.(*unixListener).UnixListener.Close() // as kill -9 does: the file stays
	again, err := Listen(a, 0o666)
	if err != nil {
		t.Errorf("a dead socket is in the way: %v", err)
	} else {
		again.Close()
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(a, 0o666); err == nil || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "precious" {
		t.Error("a file that is no socket was removed")
	}
	if _, err := Listen(Addr{Network: "unix", Path: filepath.Join(dir, "no", "such")}, 0o666); err == nil || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(Addr{Network: "tcp", Host: l.Addr().String()}, 0); err == nil || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
}

// A name that an attacker has pointed at 127.0.0.1 does not open the door.
func TestHostHeader(t *testing.T) {
	get := serve(t, Addr{Network: "tcp", Host: "127.0.0.1:0"})
	for host, want := range map[string]int{"": 200, "localhost": 200, "localhost:99": 200, "127.0.0.1": 200, "[::1]:80": 200, "evil.example": 421, "evil.example:80": 421, "10.0.0.1": 421} {
		if status, _ := get(host); status != want {
			t.Errorf("Host %q: %d, want %d", host, status, want)
		}
	}
	unix := serve(t, Addr{Network: "unix", Path: filepath.Join(t.TempDir(), "s")})
	if status, _ := unix("anything.example"); status != 200 {
		t.Errorf("over a Unix socket: %d", status)
	}
}

func TestGuardHostAlone(t *testing.T) {
	w := httptest.NewRecorder()
	GuardHost(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", "http://evil.example/", nil))
	if w.Code != http.StatusMisdirectedRequest || !strings.Contains(w.Body.String(), "Host header") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

package electorclient

import (
	"fmt"
	"go/parser"
	"go/token"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAddresses(t *testing.T) {
	for _, addr := range []string{"", "unix://", "unix://relative/path", "ftp://127.0.0.1:21", "127.0.0.1:4040", "http://", ":%"} {
		if _, err := New(addr); err == nil {
			t.Errorf("New(%q) is no error", addr)
		}
	}
	for _, addr := range []string{"unix:///tmp/x.sock", "http://127.0.0.1:4040", "http://127.0.0.1:4040/"} {
		if c, err := New(addr); err != nil || strings.HasSuffix(c.base, "/") {
			t.Errorf("New(%q): %v", addr, err)
		}
	}
}

// TestFromEnv reaches a real server over TCP, over a Unix socket, and over one whose path is longer than a socket address.
func TestFromEnv(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"id":%q}`, r.URL.Path) })
	t.Setenv("RETINUE_ELECTOR_ADDR", "")
	t.Setenv("NOMAD_ALLOC_DIR", "")
	t.Setenv("NOMAD_TASK_NAME", "orders")
	if _, err := FromEnv(); err == nil || !strings.Contains(err.Error(), "RETINUE_ELECTOR_ADDR") {
		t.Errorf("without an environment: %v", err)
	}
	ask := func(t *testing.T) {
		t.Helper()
		c, err := FromEnv()
		if err != nil {
			t.Fatal(err)
		}
		if c.Name != "orders" {
			t.Errorf("the task is called orders, the candidate %s", c.Name)
		}
		l, err := c.Leader(t.Context(), "shard/1")
		if err != nil || l.ID != "/v1/elections/shard/1/leader" {
			t.Errorf("%+v, %v", l, err)
		}
	}
	t.Run("tcp", func(t *testing.T) {
		srv := httptest.NewServer(answer)
		defer srv.Close()
		t.Setenv("RETINUE_ELECTOR_ADDR", srv.URL)
		ask(t)
	})
	for name, folder := range map[string]string{"unix": "", "unix with a long path": strings.Repeat("long", 30)} {
		t.Run(name, func(t *testing.T) {
			// Not t.TempDir: its path may be too long for bind by itself.
			dir, err := os.MkdirTemp("", "ec")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			sockets := filepath.Join(dir, folder, "tmp")
			if err := os.MkdirAll(sockets, 0o755); err != nil {
				t.Fatal(err)
			}
			fd, err := os.Open(sockets)
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/elector.sock", fd.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: answer}}
			srv.Start()
			defer srv.Close()
			t.Setenv("NOMAD_ALLOC_DIR", filepath.Dir(sockets))
			ask(t)
		})
	}
}

func TestBootClockRuns(t *testing.T) {
	before := bootTime()
	time.Sleep(10 * time.Millisecond)
	if d := bootTime() - before; d < 10*time.Millisecond || before <= 0 {
		t.Errorf("the boot clock moved by %v in 10ms, from %v", d, before)
	}
}

// TestStandsAlone holds the promise that this package can be copied.
func TestStandsAlone(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			checked++
			first, _, _ := strings.Cut(strings.Trim(spec.Path.Value, `"`), "/")
			if strings.Contains(first, ".") || first == "retinue" {
				t.Errorf("%s imports %s", file, spec.Path.Value)
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d imports seen", checked)
	}
}

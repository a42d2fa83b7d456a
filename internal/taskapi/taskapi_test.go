package taskapi

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue/internal/hint"
	"retinue/internal/listen"
)

// A task finds the socket and its token by what Nomad puts into its environment, and reads the token anew for each request.
func TestAsATask(t *testing.T) {
	dir := t.TempDir()
	l, err := listen.Listen(listen.Addr{Network: "unix", Path: filepath.Join(dir, "api.sock")}, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("X-Nomad-Token") != "second":
			http.Error(w, "Permission denied", http.StatusForbidden)
		case r.URL.Path == "/v1/big":
			http.Error(w, strings.Repeat("x", 5000), http.StatusBadRequest)
		case r.URL.Path == "/v1/text":
			w.Write([]byte("no JSON"))
		default:
			w.Header().Set("X-Nomad-Index", "12")
			w.Write([]byte(`{"Namespace":"` + r.URL.Query().Get("namespace") + `","Prefix":"` + r.URL.Query().Get("prefix") + `"}`))
		}
	}))
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	defer srv.Close()
	token := filepath.Join(dir, "nomad_token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	env := map[string]string{"NOMAD_SECRETS_DIR": dir, "NOMAD_NAMESPACE": "batch"}
	c, err := New(Config{}, func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Do(t.Context(), http.MethodGet, "/v1/jobs", nil, nil, nil)
	if code, said := Status(err); code != http.StatusForbidden || said != "Permission denied" || !strings.Contains(hint.Of(err), "retinue acl") || strings.Contains(err.Error(), "first") {
		t.Errorf("%v (%s)", err, hint.Of(err))
	}
	write("second\n")
	var out struct{ Namespace, Prefix string }
	index, err := c.Do(t.Context(), http.MethodGet, "/v1/jobs", url.Values{"prefix": {"a/b"}}, map[string]int{"x": 1}, &out)
	if err != nil || index != "12" || out.Namespace != "batch" || out.Prefix != "a/b" {
		t.Errorf("%v, index %s, %+v", err, index, out)
	}
	if _, err = c.Do(t.Context(), http.MethodGet, "/v1/big", nil, nil, nil); err == nil || len(err.Error()) > 600 {
		t.Errorf("a long answer is an error of %d bytes", len(err.Error()))
	}
	if _, err = c.Do(t.Context(), http.MethodGet, "/v1/text", nil, nil, &out); err == nil {
		t.Error("text is taken for JSON")
	}
	if code, _ := Status(err); code != 0 {
		t.Errorf("status %d of an answer that cannot be read", code)
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	if _, err = c.Do(t.Context(), http.MethodGet, "/v1/jobs", nil, nil, nil); err == nil || !strings.Contains(hint.Of(err), "identity") {
		t.Errorf("without a token: %v", err)
	}
	srv.Close()
	write("second")
	if _, err = c.Do(t.Context(), http.MethodGet, "/v1/jobs", nil, nil, nil); err == nil || hint.Of(err) == "" {
		t.Errorf("without Nomad: %v", err)
	}
}

func TestNoWay(t *testing.T) {
	none := func(string) string { return "" }
	for _, cfg := range []Config{{}, {Addr: "https://nomad.example.com"}, {Addr: "http://10.0.0.1:4646"}} {
		if _, err := New(cfg, none); err == nil || hint.Of(err) == "" {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

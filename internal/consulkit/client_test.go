package consulkit

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/hint"
)

// A token file is read again when it changes, and a moment without it does no harm.
func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", path)
	if _, err := New(Config{Address: "127.0.0.1:1"}); err == nil || hint.Of(err) == "" {
		t.Errorf("no file: %v", err)
	}
	write := func(s string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	var c *Client
	want := func(token string) {
		t.Helper()
		if got, err := c.Token(); err != nil || got != token {
			t.Errorf("token %q, %v, want %q", got, err, token)
		}
	}
	write("one\n", time.Hour)
	var err error
	if c, err = New(Config{Address: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	want("one")
	write("two\n", time.Minute)
	want("two")
	write("", time.Second)
	want("two")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("two")
}

// The token goes with each request, as the header that Consul reads.
func TestTokenIsSent(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("X-Consul-Token")
		w.Write([]byte("[]"))
	}))
	defer srv.Close()
	t.Setenv("CONSUL_HTTP_TOKEN", "from-env")
	c, err := New(Config{Address: srv.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token()
	if err != nil || token != "" {
		t.Errorf("%q %v", token, err)
	}
	if _, _, err := c.KV().List("x", &api.QueryOptions{Token: token}); err != nil || got != "from-env" {
		t.Errorf("sent %q, %v", got, err)
	}
	if _, _, err := c.KV().List("x", &api.QueryOptions{Token: "from-file"}); err != nil || got != "from-file" {
		t.Errorf("sent %q, %v", got, err)
	}
}

func TestAdvice(t *testing.T) {
	c, err := New(Config{Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []error{api.StatusError{Code: 403, Body: "Permission denied"}, api.StatusError{Code: 500, Body: "rpc error: Permission denied: token"}} {
		if !Denied(bad) || hint.Of(c.Advice(bad)) == "" {
			t.Errorf("%v: denied %v", bad, Denied(bad))
		}
	}
	if Denied(nil) || Denied(errors.New("connection refused")) || Denied(api.StatusError{Code: 500, Body: "No cluster leader"}) {
		t.Error("everything is denied")
	}
	if c.Advice(nil) != nil || hint.Of(c.Advice(errors.New("connection refused"))) == "" {
		t.Error("no advice for an agent that cannot be reached")
	}
}

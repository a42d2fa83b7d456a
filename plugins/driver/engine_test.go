package driver

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnpauseByTheEngine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	code, said, asked := 0, "", ""
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path
		w.WriteHeader(code)
		fmt.Fprint(w, said)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	config := encode(t, map[string]any{"allow_privileged": false, "endpoint": "unix://" + path})
	for _, c := range []struct {
		code   int
		said   string
		failed string
	}{
		{204, "", ""},
		{500, `{"message":"Container c1 is not paused"}`, ""}, // as version 20.10 says it
		{409, `{"message":"Container c1 is not paused"}`, ""},
		{404, `{"message":"No such container: c1"}`, "404"},
	} {
		code, said = c.code, c.said
		err := engineAt(engineEndpoint(config)).unpause(testContext(t), "c1")
		if asked != "POST /containers/c1/unpause" {
			t.Errorf("the engine was asked %q", asked)
		}
		if c.failed == "" && err != nil || c.failed != "" && (err == nil || !strings.Contains(err.Error(), c.failed)) {
			t.Errorf("%d %s: %v", c.code, c.said, err)
		}
	}
	for _, endpoint := range []string{"tcp://127.0.0.1:1", "unix://" + path + "x"} {
		if err := engineAt(endpoint).unpause(testContext(t), "c1"); err == nil {
			t.Errorf("an engine at %s has answered", endpoint)
		}
	}
}

package nomadkit

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	nomad "github.com/hashicorp/nomad/api"
)

// TestAskDriverSendsNoInput: whatever the agent gets after a short command has ended costs that command's output.
func TestAskDriverSendsNoInput(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/exec") {
			http.NotFound(w, r)
			return
		}
		if got, want := r.URL.Query().Get("command"), `["@retinue","GET","/v1/task"]`; got != want {
			t.Errorf("command %s, want %s", got, want)
		}
		conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Error(err)
		}
		_, input, err := conn.ReadMessage()
		if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
			t.Errorf("input %q, %v", input, err)
		}
		for _, frame := range []nomad.ExecStreamingOutput{
			{Stdout: &nomad.ExecStreamingIOOperation{Data: []byte("answer")}},
			{Exited: true, Result: &nomad.ExecStreamingExitResult{ExitCode: 3}},
		} {
			data, err := json.Marshal(frame)
			if err != nil {
				t.Error(err)
			}
			if err := conn.WriteMessage(websocket.TextMessage, data); err != nil {
				t.Error(err)
			}
		}
	}))
	defer agent.Close()
	client, err := nomad.NewClient(&nomad.Config{Address: agent.URL})
	if err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	code, err := AskDriver(t.Context(), client, &nomad.Allocation{ID: "a", NodeID: "n"}, "app", []string{"@retinue", "GET", "/v1/task"}, &out, &errs)
	if code != 3 || err != nil || out.String() != "answer" || errs.String() != "" {
		t.Errorf("code %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
}

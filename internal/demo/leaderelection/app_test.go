package leaderelection

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// scriptedElector grants the tokens it is given, one after the other, and ends a leadership on demand.
type scriptedElector struct {
	grants  chan uint64
	mu      sync.Mutex
	end     chan string // event to end the current hold with
	resigns []uint64
}

func (s *scriptedElector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/become"):
		select {
		case token := <-s.grants:
			fmt.Fprintf(w, `{"token": %d, "lease_ms": 60000, "remaining_ms": 60000}`, token)
		case <-r.Context().Done():
		}
	case strings.HasSuffix(r.URL.Path, "/renew"):
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write([]byte(strings.Replace(string(body), "}", `,"lease_ms": 60000, "remaining_ms": 60000}`, 1)))
	case strings.HasSuffix(r.URL.Path, "/hold"):
		w.(http.Flusher).Flush()
		select {
		case event := <-s.end:
			fmt.Fprintf(w, "event: %s\ndata: {}\n\n", event)
		case <-r.Context().Done():
		}
	case strings.HasSuffix(r.URL.Path, "/resign"):
		var body struct{ Token uint64 }
		_ = json.NewDecoder(r.Body).Decode(&body)
		s.mu.Lock()
		s.resigns = append(s.resigns, body.Token)
		s.mu.Unlock()
		_, _ = w.Write([]byte(`{}`))
	}
}

func startApp(t *testing.T, script *scriptedElector, store string) (base string) {
	t.Helper()
	sidecar := httptest.NewServer(script)
	t.Cleanup(sidecar.CloseClientConnections)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- App{ID: "a1", Listen: addr, Elector: sidecar.URL, Election: "leader", Store: store, Log: hclog.NewNullLogger()}.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("application: %v", err)
		}
	})
	return "http://" + addr
}

func writeStatus(t *testing.T, base string, want int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Post(base+"/write", "application/json", strings.NewReader(`{"seq": 7}`))
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == want {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("write never answered %d, last: %v %v", want, resp, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestAppWritesOnlyWhileItLeads(t *testing.T) {
	var s store
	storage := httptest.NewServer(&s)
	defer storage.Close()
	script := &scriptedElector{grants: make(chan uint64), end: make(chan string)}
	base := startApp(t, script, storage.URL)

	writeStatus(t, base, http.StatusConflict)
	script.grants <- 41
	writeStatus(t, base, http.StatusOK)
	script.end <- "stepdown"
	writeStatus(t, base, http.StatusConflict)
	script.grants <- 57
	writeStatus(t, base, http.StatusOK)
	s.put(Write{Token: 99}) // a newer leader has written
	writeStatus(t, base, http.StatusPreconditionFailed)
	if resp, err := http.Post(base+"/step-down", "", nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("step down: %v %v", resp, err)
	}
	writeStatus(t, base, http.StatusConflict)

	log, refused := s.history()
	if log[0].Token != 41 || log[0].Seq != 7 || log[0].Writer != "a1" {
		t.Errorf("the first write is %+v", log[0])
	}
	if len(refused) == 0 || refused[0].Token != 57 {
		t.Errorf("refused: %+v", refused)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		script.mu.Lock()
		resigned := fmt.Sprint(script.resigns)
		script.mu.Unlock()
		if resigned == "[41 57]" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("resigned %s, want [41 57]", resigned)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

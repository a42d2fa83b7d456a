package electorclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake is an elector that a test scripts. It runs inside a synctest bubble, over pipes, so that time is the test's own.
type fake struct {
	t     *testing.T
	start time.Time

	mu    sync.Mutex
	calls []call
	held  int                                           // open tethers
	say   map[string]func(http.ResponseWriter, request) // by verb; "" is the state
	push  chan string                                   // frames for the tether; "" closes it
	conns chan net.Conn                                 // to the server
}

type call struct {
	verb string
	at   time.Duration
	body map[string]any
}

type request struct {
	*http.Request
	body map[string]any
}

const lease = time.Second

// bubble runs a test against a fake on a clock of its own.
func bubble(t *testing.T, test func(t *testing.T, f *fake, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{t: t, start: time.Now(), push: make(chan string, 8), conns: make(chan net.Conn), say: map[string]func(http.ResponseWriter, request){}}
		srv := &http.Server{Handler: f}
		l := pipeListener{f.conns, make(chan struct{})}
		go srv.Serve(l)
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			select {
			case f.conns <- theirs:
				return ours, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		c := &Client{Name: "app", base: "http://localhost", http: &http.Client{Transport: transport}, now: f.now}
		test(t, f, c)
		transport.CloseIdleConnections()
		srv.Close()
		synctest.Wait()
		if f.tethers() != 0 {
			t.Error("a tether was left open")
		}
	})
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l pipeListener) Close() error   { close(l.done); return nil }
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (f *fake) now() time.Duration { return time.Since(f.start) }

func (f *fake) on(verb string, answer func(http.ResponseWriter, request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.say[verb] = answer
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	verb := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/v1/elections/leader"), "/")
	req := request{Request: r}
	_ = json.NewDecoder(r.Body).Decode(&req.body)
	f.mu.Lock()
	f.calls = append(f.calls, call{verb, f.now(), req.body})
	answer := f.say[verb]
	f.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, req)
	case verb == "":
		fmt.Fprintf(w, `{"election":"leader","lease_ms":%d}`, lease.Milliseconds())
	case verb == "become", verb == "renew":
		grantFor(w, lease)
	case verb == "resign":
		fmt.Fprint(w, `{"released":true}`)
	case verb == "hold":
		f.hold(w, r)
	default:
		f.t.Errorf("unexpected request %s %s", r.Method, r.URL)
	}
}

func grantFor(w http.ResponseWriter, remaining time.Duration) {
	fmt.Fprintf(w, `{"token":42,"term":7,"id":"app-x","role":"leader","remaining_ms":%d}`, remaining.Milliseconds())
}

func refuse(w http.ResponseWriter, status int, code, reason string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":%q,"reason":%q,"message":"as the test says"}`, code, reason)
}

// hold sends what the test pushes, until the client goes away.
func (f *fake) hold(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("token") != "42" {
		f.t.Errorf("tether with token %q", r.URL.Query().Get("token"))
	}
	f.count(1)
	defer f.count(-1)
	fmt.Fprint(w, "event: grant\ndata: {\"token\":42,\ndata: \"remaining_ms\":1000}\n\n")
	flush(w)
	for {
		select {
		case frame := <-f.push:
			if frame == "" {
				return
			}
			fmt.Fprint(w, frame)
			flush(w)
		case <-r.Context().Done():
			return
		}
	}
}

func flush(w http.ResponseWriter) { w.(http.Flusher).Flush() }

func (f *fake) count(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held += n
}

func (f *fake) tethers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// verbs are the requests so far, without repeats of the same.
func (f *fake) verbs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, c := range f.calls {
		out = append(out, c.verb)
	}
	return slices.Compact(out)
}

func (f *fake) last(verb string) (call, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range slices.Backward(f.calls) {
		if c.verb == verb {
			return c, true
		}
	}
	return call{}, false
}

func (f *fake) total() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

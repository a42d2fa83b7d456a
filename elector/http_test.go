package elector

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// served is one elector over a model Consul, outside of a bubble, behind a real HTTP server.
func served(t *testing.T, elections ...string) (*node, *httptest.Server) {
	t.Helper()
	cfg := testConfig("a")
	cfg.Lease = 30 * time.Second // real time: nothing expires on a slow machine
	if len(elections) > 0 {
		cfg.Elections = elections
	}
	f := newFleet(t, cfg)
	srv := httptest.NewServer(f.nodes[0].h)
	t.Cleanup(func() { srv.CloseClientConnections(); f.close(); srv.Close() })
	return f.nodes[0], srv
}

func call(t *testing.T, srv *httptest.Server, method, path, body string, header ...string) (int, map[string]any, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if len(data) > 0 && json.Unmarshal(data, &out) != nil {
		t.Errorf("%s %s: not JSON: %s", method, path, data)
	}
	return resp.StatusCode, out, resp.Header
}

func TestBadRequests(t *testing.T) {
	_, srv := served(t, "leader", "orders/3", "role")
	for _, c := range []struct {
		method, path, body string
		status             int
		code, message      string
	}{
		{"GET", "/", "", 404, "not_found", "/v1/elections"},
		{"GET", "/v1/elections/nope", "", 404, "unknown_election", `"nope"`},
		{"GET", "/v1/elections/nope/role", "", 404, "unknown_election", `"nope"`},
		{"GET", "/v1/elections/orders", "", 404, "unknown_election", `"orders"`},
		{"GET", "/v1/elections/leader/nope", "", 404, "not_found", `"nope"`},
		{"GET", "/v1/elections/leader/become", "", 405, "method_not_allowed", "POST"},
		{"DELETE", "/v1/elections/leader", "", 405, "method_not_allowed", "GET"},
		{"POST", "/v1/elections/leader/become", "{", 400, "bad_request", "JSON"},
		{"POST", "/v1/elections/leader/become", `[]`, 400, "bad_request", "JSON"},
		{"POST", "/v1/elections/leader/become", `{"wait_ms":"soon"}`, 400, "bad_request", "wait_ms"},
		{"POST", "/v1/elections/leader/become", `{"wait_ms":-1}`, 400, "bad_request", "wait_ms"},
		{"POST", "/v1/elections/leader/become", `{"lease_ms":5}`, 400, "bad_request", "lease_ms"},
		{"POST", "/v1/elections/leader/become", `{"id":"` + strings.Repeat("x", 200) + `"}`, 400, "bad_request", "id"},
		{"POST", "/v1/elections/leader/become", `{"id":"` + strings.Repeat("x", maxBody) + `"}`, 413, "too_large", "bytes"},
		{"POST", "/v1/elections/leader/renew", "", 400, "bad_request", "token"},
		{"POST", "/v1/elections/leader/renew", `{"token":-3}`, 400, "bad_request", "token"},
		{"POST", "/v1/elections/leader/renew", `{"token":7}`, 409, "lost", ""},
		{"POST", "/v1/elections/leader/resign", `{"token":7}`, 409, "lost", ""},
		{"POST", "/v1/elections/leader/stepdown", "", 409, "lost", ""},
		{"PUT", "/v1/elections/leader/value", `{"token":7,"value":1}`, 409, "lost", ""},
		{"GET", "/v1/elections/leader/hold", "", 400, "bad_request", "token"},
		{"GET", "/v1/elections/leader/hold?token=7", "", 409, "lost", ""},
		{"GET", "/v1/elections/leader?index=x", "", 400, "bad_request", "index"},
		{"GET", "/v1/elections/leader?wait=1", "", 400, "bad_request", "wait"},
		{"GET", "/v1/elections/leader?wait=1h", "", 400, "bad_request", "wait"},
		{"GET", "/v1/elections/leader/leader", "", 404, "vacant", ""},
		{"POST", "/v1/fence/db", `{"token":7,"election":"nope"}`, 404, "unknown_election", `"nope"`},
		{"POST", "/v1/fence/db", `{}`, 400, "bad_request", "token"},
	} {
		status, out, _ := call(t, srv, c.method, c.path, c.body)
		message, _ := out["message"].(string)
		if status != c.status || out["error"] != c.code || !strings.Contains(message, c.message) {
			t.Errorf("%s %s %.40s: %d %v, want %d %s %s", c.method, c.path, c.body, status, out, c.status, c.code, c.message)
		}
	}
}

// Names with slashes, and names that look like verbs, lead to their election.
func TestElectionNames(t *testing.T) {
	_, srv := served(t, "leader", "orders/3", "role", "orders/role")
	for path, want := range map[string]string{"leader": "leader", "orders/3": "orders/3", "role": "role", "orders/role": "orders/role"} {
		if status, out, _ := call(t, srv, "GET", "/v1/elections/"+path, ""); status != 200 || out["election"] != want {
			t.Errorf("%s: %d %v", path, status, out)
		}
	}
	if status, out, _ := call(t, srv, "GET", "/v1/elections/orders/3/role", ""); status != 503 || out["role"] != "follower" {
		t.Errorf("%d %v", status, out)
	}
}

// A page of another origin cannot steer an elector; the paper's names work; unknown fields do not disturb.
func TestRequests(t *testing.T) {
	_, srv := served(t)
	if status, _, _ := call(t, srv, "POST", "/v1/elections/leader/become", `{}`, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"); status != 403 {
		t.Errorf("a request of another origin: %d", status)
	}
	status, g, header := call(t, srv, "POST", "/v1/elections/leader/becomeLeader", `{"color":"red","value":{"shard":[1,2]}}`)
	if status != 200 || header.Get("X-Elector-Index") == "" || g["role"] != "leader" {
		t.Fatalf("%d %v", status, g)
	}
	token := fmt.Sprintf(`{"token":%.0f}`, g["token"])
	if status, out, _ := call(t, srv, "POST", "/v1/elections/leader/renewLeadership", token); status != 200 || out["remaining_ms"].(float64) <= 0 {
		t.Errorf("%d %v", status, out)
	}
	if status, out, _ := call(t, srv, "POST", "/v1/elections/leader/verify", token); status != 200 || out["current"] != true {
		t.Errorf("%d %v", status, out)
	}
	if status, out, _ := call(t, srv, "POST", "/v1/elections/leader/verify", `{"token":1}`); status != 409 || out["current_token"] != g["token"] {
		t.Errorf("%d %v", status, out)
	}
	if status, out, _ := call(t, srv, "PUT", "/v1/elections/leader/value", fmt.Sprintf(`{"token":%.0f,"value":"new"}`, g["token"])); status != 200 {
		t.Errorf("%d %v", status, out)
	}
	if status, out, _ := call(t, srv, "GET", "/v1/elections/leader/leader", ""); status != 200 || out["value"] != "new" || out["self"] != true {
		t.Errorf("%d %v", status, out)
	}
	if status, out, _ := call(t, srv, "GET", "/v1/elections", ""); status != 200 || out["worst_case_failover_ms"] != 90000.0 || out["profile"] != "lease_ttl" || len(out["elections"].([]any)) != 1 {
		t.Errorf("%d %v", status, out)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, out, _ := call(t, srv, "GET", path, ""); status != 200 {
			t.Errorf("%s: %d %v", path, status, out)
		}
	}
	resp, err := srv.Client().Get(srv.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`retinue_elector_leader{app="app",election="leader"} 1`, `retinue_elector_transitions_total{app="app",election="leader",event="elected"} 1`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestFence(t *testing.T) {
	_, srv := served(t)
	pass := func(resource string, token int, election string, want int) {
		t.Helper()
		if status, out, _ := call(t, srv, "POST", "/v1/fence/"+resource, fmt.Sprintf(`{"token":%d,"election":%q}`, token, election)); status != want {
			t.Errorf("token %d on %s: %d %v, want %d", token, resource, status, out, want)
		}
	}
	pass("db", 5, "", 200)
	pass("db", 5, "", 200)
	pass("db", 9, "", 200)
	pass("db", 8, "", 412)
	pass("other", 8, "", 200)
	_, g, _ := call(t, srv, "POST", "/v1/elections/leader/become", `{}`)
	token := int(g["token"].(float64))
	pass("fresh", token-1, "leader", 412)
	pass("fresh", token, "leader", 200)
	call(t, srv, "POST", "/v1/elections/leader/resign", fmt.Sprintf(`{"token":%d}`, token))
	await(t, "the vacancy is seen", func() bool {
		status, _, _ := call(t, srv, "GET", "/v1/elections/leader/leader", "")
		return status == 404
	})
	pass("later", token-1, "leader", 412)
}

func TestLongPoll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"))
		defer f.close()
		a := f.nodes[0]
		synctest.Wait()
		index := a.view().Index
		start := time.Now()
		if status, _ := a.request(context.Background(), "GET", fmt.Sprintf("?index=%d&wait=3s", index), ""); status != http.StatusNotModified || time.Since(start) != 3*time.Second {
			t.Errorf("%d after %s", status, time.Since(start))
		}
		answer := make(chan int, 1)
		go func() {
			status, _ := a.request(context.Background(), "GET", fmt.Sprintf("?index=%d&wait=1m", index), "")
			answer <- status
		}()
		time.Sleep(time.Second)
		start = time.Now()
		g := a.become(`{}`)
		if status := <-answer; status != 200 || time.Since(start) > 10*time.Millisecond {
			t.Errorf("%d after %s", status, time.Since(start))
		}
		if status, _ := a.request(context.Background(), "GET", fmt.Sprintf("?index=%d&wait=1m", g.Index+1000), ""); status != 200 {
			t.Errorf("an index of another life: %d", status)
		}
	})
}

// sse reads a stream's events.
func sse(t *testing.T, srv *httptest.Server, path, lastID string) <-chan [3]string {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL+path, nil)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s: %s", path, resp.Status)
	}
	out := make(chan [3]string, 100)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		var ev [3]string
		for scan := bufio.NewScanner(resp.Body); scan.Scan(); {
			key, value, _ := strings.Cut(scan.Text(), ": ")
			switch key {
			case "id":
				ev[0] = value
			case "event":
				ev[1] = value
			case "data":
				ev[2] = value
			case "":
				if ev[1] != "beat" {
					out <- ev
				}
				ev = [3]string{}
			}
		}
	}()
	return out
}

func TestEventStreams(t *testing.T) {
	_, srv := served(t, "leader", "other")
	one, all := sse(t, srv, "/v1/elections/leader/events", ""), sse(t, srv, "/v1/events", "")
	first := <-one
	if first[1] != "state" || (<-all)[1] != "state" || (<-all)[1] != "state" {
		t.Error("a stream does not begin with the state")
	}
	_, g, _ := call(t, srv, "POST", "/v1/elections/leader/become", `{}`)
	call(t, srv, "POST", "/v1/elections/other/become", `{}`)
	elected := <-one
	if elected[1] != "elected" || !strings.Contains(elected[2], fmt.Sprintf(`"token":%.0f`, g["token"])) {
		t.Errorf("%v", elected)
	}
	if a, b := <-all, <-all; a[1] != "elected" || b[1] != "elected" || a[0] == b[0] {
		t.Errorf("%v %v", a, b)
	}
	call(t, srv, "POST", "/v1/elections/leader/resign", fmt.Sprintf(`{"token":%.0f}`, g["token"]))
	if lost := <-one; lost[1] != "lost" || !strings.Contains(lost[2], "resigned") {
		t.Errorf("%v", lost)
	}
	// Whoever was away gets what was missed; whoever comes from another life gets the state.
	if ev := <-sse(t, srv, "/v1/elections/leader/events", elected[0]); ev[1] != "lost" {
		t.Errorf("resumed with %v", ev)
	}
	if ev := <-sse(t, srv, "/v1/elections/leader/events", "99999"); ev[1] != "state" {
		t.Errorf("resumed with %v", ev)
	}
}

// unread is a connection whose other side does not read: the first event fits into a buffer, the others time out.
type unread struct {
	*httptest.ResponseRecorder
	writes int
}

func (u *unread) Write(p []byte) (int, error) {
	if u.writes++; u.writes > 1 {
		return 0, os.ErrDeadlineExceeded
	}
	return u.ResponseRecorder.Write(p)
}

// An application that does not read its stream may be paused, and may have an unread beat: it keeps its office for one lease.
func TestHoldUnread(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		next := b.campaign(`{}`)
		start := time.Now()
		a.h.ServeHTTP(&unread{ResponseRecorder: httptest.NewRecorder()}, httptest.NewRequest("GET", "http://localhost/v1/elections/leader/hold?token="+utoa(g.Token), nil))
		cut := time.Since(start)
		if cut > time.Second || a.role() != Leader {
			t.Fatalf("cut off after %s, role %s", cut, a.role())
		}
		<-next
		if took := time.Since(start); took < cut+2*time.Second || took > cut+2100*time.Millisecond {
			t.Errorf("the successor came %s after the stream was cut", took-cut)
		}
	})
}

// FuzzRequests throws bodies, names and queries at every verb: no panic, always JSON, never a leader without a grant.
func FuzzRequests(f *testing.F) {
	for _, seed := range []struct{ method, path, body string }{
		{"POST", "leader/become", `{"wait_ms":0}`}, {"POST", "leader/renew", `{"token":12}`}, {"POST", "leader/resign", `{"token":12,"to":"any"}`},
		{"PUT", "leader/value", `{"token":12,"value":{"a":[1,null]}}`}, {"GET", "leader?index=0&wait=0s", ``}, {"POST", "leader/verify", `{"token":1e3}`},
		{"GET", "leader/role", `{`}, {"POST", "%2e%2e/become", "\x00"}, {"POST", "leader/stepdown", `{"to":"` + strings.Repeat("a", 300) + `"}`},
	} {
		f.Add(seed.method, seed.path, seed.body)
	}
	fl := newFleet(&testing.T{}, testConfig("a"))
	f.Cleanup(fl.close)
	n := fl.nodes[0]
	f.Fuzz(func(t *testing.T, method, path, body string) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, "http://localhost/v1/elections/"+path, strings.NewReader(body))
		if err != nil {
			t.Skip() // no client can send it
		}
		w := httptest.NewRecorder()
		n.h.ServeHTTP(w, r)
		if w.Code >= 300 && w.Code < 400 && w.Code != http.StatusNotModified {
			return // a path that the mux cleans
		}
		if typ := w.Header().Get("Content-Type"); typ == "application/json" && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s: not JSON: %s", method, path, w.Body)
		}
		if w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s %s %q: %d %s", method, path, body, w.Code, w.Body)
		}
	})
}

// FuzzRecords: whatever somebody writes into the keys, an elector reads it without harm.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"leader":"x","token":7,"session":"s"}`), []byte(`{"id":"b","session":"s","elections":{"leader":{"priority":9}}}`))
	f.Add([]byte(`null`), []byte(`{"id":"b","elections":null}`))
	f.Fuzz(func(t *testing.T, record, candidate []byte) {
		m := newMachine(testConfig("a").Config, time.Now)
		m.step(1e9, evOpened{session: Session{ID: "s1", TTL: time.Second}, sent: 1e9})
		for index, session := range []string{"s", "", "s1"} {
			key := KeyIndex{5, uint64(10 + index)}
			m.step(1e9, evObserved{Snapshot{Index: uint64(10 + index), Elections: map[string]Entry{"leader": {Session: session, KeyIndex: key, Value: record}},
				Candidates: map[string]Entry{"b": {Session: "s", KeyIndex: key, Value: candidate}}}})
			e := m.elections["leader"]
			if m.view(e).Role(1e9) == Leader {
				t.Error("leader without a candidate")
			}
			encode(m.leaderInfo(e))
		}
	})
}

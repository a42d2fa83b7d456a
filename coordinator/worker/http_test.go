package worker

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/item"
)

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func TestHTTPVerdicts(t *testing.T) {
	for _, c := range []struct {
		status int
		header string // name: value
		body   string
		want   Verdict
		result string
	}{
		{200, "", "", Verdict{Kind: Ack}, ""},
		{200, "Content-Type: text/plain", "out", Verdict{Kind: Ack}, "out"},
		{204, "", "", Verdict{Kind: Ack}, ""},
		{202, "", "", Verdict{Kind: Ack}, ""},
		{200, "Content-Type: application/json", `{"status":"RETRY"}`, Verdict{Kind: Retry}, ""},
		{200, "Content-Type: application/json", `{"status":"DROP"}`, Verdict{Kind: Drop}, ""},
		{200, "Content-Type: application/json", `{"status":"SUCCESS"}`, Verdict{Kind: Ack}, ""},
		{200, "Content-Type: application/json", `{"status":"RETRY","of":"mine"}`, Verdict{Kind: Ack}, `{"status":"RETRY","of":"mine"}`},
		{409, "", "", Verdict{Kind: Ack}, ""},
		{425, "", "", Verdict{Kind: Ack}, ""},
		{429, "Retry-After: 7", "", Verdict{Kind: NotReady, RetryAfter: 7 * time.Second}, ""},
		{503, "", "", Verdict{Kind: NotReady}, ""},
		{503, "Retry-After: nonsense", "", Verdict{Kind: NotReady}, ""},
		{400, "", "", Verdict{Kind: Dead}, ""},
		{422, "", "", Verdict{Kind: Dead}, ""},
		{404, "", "", Verdict{Kind: Dead}, ""},
		{302, "Location: /", "", Verdict{Kind: Dead}, ""},
		{408, "", "", Verdict{Kind: Retry}, ""},
		{500, "", "", Verdict{Kind: Retry}, ""},
		{502, "", "", Verdict{Kind: Retry}, ""},
	} {
		srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if name, value, ok := strings.Cut(c.header, ": "); ok {
				w.Header().Set(name, value)
			}
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		})
		got := NewHTTP(srv.URL).Call(t.Context(), []*item.Task{task("a", "x")})[0]
		result := ""
		if got.Output != nil {
			result = string(got.Output.Result)
		}
		if got.Kind != c.want.Kind || got.RetryAfter != c.want.RetryAfter || result != c.result {
			t.Errorf("%d %s %s: %+v, result %q", c.status, c.header, c.body, got, result)
		}
	}
}

func TestHTTPConnections(t *testing.T) {
	call := func(url string) Verdict { return NewHTTP(url).Call(t.Context(), []*item.Task{task("a", "x")})[0] }
	if v := call("unix://" + filepath.Join(t.TempDir(), "none.sock")); v.Kind != NotReady {
		t.Errorf("no socket: %+v", v)
	}
	srv := serve(t, nil)
	url := srv.URL
	srv.Close()
	if v := call(url); v.Kind != NotReady {
		t.Errorf("nobody listens: %+v", v)
	}
	reset := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	})
	if v := call(reset.URL); v.Kind != Crashed {
		t.Errorf("reset: %+v", v)
	}
	half := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
		panic(http.ErrAbortHandler)
	})
	if v := call(half.URL); v.Kind != Crashed {
		t.Errorf("an answer cut off: %+v", v)
	}
	stuck := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrHeartbeat)
	if v := NewHTTP(stuck.URL).Call(ctx, []*item.Task{task("a", "x")})[0]; v.Kind != TimedOut {
		t.Errorf("stuck: %+v", v)
	}
}

// A part of an answer is a message, with its bytes as they are; an answer that is cut off is none at all.
func TestHTTPParts(t *testing.T) {
	parts := "--x\r\nContent-Type: image/png\r\nRetinue-Key: k\r\nRetinue-Priority: 2\r\nRetinue-Delay: 90s\r\nItem-Page: 1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\na=3D\r\nb\r\n--x\r\n\r\n\r\n--x--\r\n"
	for name, c := range map[string]struct {
		contentType, body string
		want              Verdict
	}{
		"two":         {"multipart/mixed; boundary=x", parts, Verdict{Kind: Ack}},
		"cut off":     {"multipart/mixed; boundary=x", parts[:len(parts)-12], Verdict{Kind: Retry, Reason: "the worker wrote what is no message: multipart/mixed that does not end with its boundary"}},
		"no boundary": {"multipart/mixed", parts, Verdict{Kind: Retry, Reason: "the worker wrote what is no message: multipart/mixed without a boundary"}},
		"priority":    {"multipart/mixed; boundary=x", strings.Replace(parts, "Priority: 2", "Priority: 10", 1), Verdict{Kind: Retry, Reason: `the worker wrote what is no message: part 1: Retinue-Priority "10" is not between 0 and 9`}},
		"delay":       {"multipart/mixed; boundary=x", strings.Replace(parts, "90s", "soon", 1), Verdict{Kind: Retry, Reason: `the worker wrote what is no message: part 1: Retinue-Delay "soon" is not a duration like 30s`}},
	} {
		srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", c.contentType)
			io.WriteString(w, c.body)
		})
		w := NewHTTP(srv.URL)
		w.To = true
		v := w.Call(t.Context(), []*item.Task{task("a", "x")})[0]
		if v.Kind != c.want.Kind || v.Reason != c.want.Reason {
			t.Errorf("%s: %+v", name, v)
			continue
		}
		if v.Kind != Ack {
			continue
		}
		want := []item.Message{{Body: []byte("a=3D\r\nb"), ContentType: "image/png", Key: "k", Priority: 2, Delay: 90 * time.Second, Headers: map[string]string{"Item-Page": "1"}}, {Body: []byte{}}}
		if !reflect.DeepEqual(v.Output.Next, want) {
			t.Errorf("%s: %+v", name, v.Output.Next)
		}
	}
}

func TestHTTPRequest(t *testing.T) {
	var got http.Header
	var body []byte
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		body, _ = io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/x-ndjson")
		io.WriteString(w, "{\"a\":1}\n\n{\"a\":2}\n")
	})
	w := NewHTTP(srv.URL)
	w.To = true
	it := task("order/7", "payload")
	it.FirstSeen, it.ContentType, it.Headers = time.Unix(1e9, 0), "text/csv", map[string]string{"Ce-Type": "com.example.order", "Item-Tenant": "x"}
	v := w.Call(t.Context(), []*item.Task{it})[0]
	for name, want := range map[string]string{"Ce-Id": "order/7", "Ce-Specversion": "1.0", "Ce-Type": "com.example.order", "Ce-Source": "/queues/s", "Ce-Time": "2001-09-09T01:46:40Z",
		"Retinue-Attempt": "1", "Retinue-Max-Attempts": "5", "Retinue-Key": "k", "Retinue-Fence": "77", "Retinue-Stage": "s", "Content-Type": "text/csv", "Item-Tenant": "x"} {
		if got.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.Get(name), want)
		}
	}
	if string(body) != "payload" || len(v.Output.Next) != 2 || string(v.Output.Next[1].Body) != `{"a":2}` {
		t.Errorf("%s %+v", body, v.Output)
	}
	w.Structured = true
	it.Body, it.ContentType = []byte(`{"n":7}`), "application/json"
	w.Call(t.Context(), []*item.Task{it})
	var e map[string]any
	if err := json.Unmarshal(body, &e); err != nil || e["id"] != "order/7" || e["data"].(map[string]any)["n"] != 7.0 || got.Get("Content-Type") != "application/cloudevents+json" {
		t.Errorf("%v %s", err, body)
	}
}

// A worker that answered 202 reports later; only with the fence of its attempt.
func TestHTTPLater(t *testing.T) {
	asked := make(chan struct{}, 1)
	srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/jobs/1")
		w.WriteHeader(202)
		asked <- struct{}{}
	})
	w := NewHTTP(srv.URL)
	ended := make(chan Verdict, 1)
	go func() { ended <- w.Call(t.Context(), []*item.Task{task("a", "x")})[0] }()
	<-asked
	if w.Complete("b", 0, Verdict{Kind: Ack}) || w.Complete("a", 76, Verdict{Kind: Ack}) {
		t.Error("a verdict of somebody else was taken")
	}
	if !w.Complete("a", 77, Verdict{Kind: Dead, Reason: "later"}) || w.Complete("a", 77, Verdict{Kind: Ack}) {
		t.Error("the first verdict counts, and no other")
	}
	if v := <-ended; v.Kind != Dead || v.Reason != "later" {
		t.Errorf("%+v", v)
	}
}

func TestHTTPBatch(t *testing.T) {
	reply, status := "", 200
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") != "application/x-ndjson" || r.Header.Get("Retinue-Batch") != "2" {
			t.Errorf("%v", r.Header)
		}
		w.WriteHeader(status)
		io.WriteString(w, reply)
	})
	w := NewHTTP(srv.URL)
	w.Batch = 10
	tasks := []*item.Task{task("a", "1"), task("b", "2")}
	reply = `{"id":"b","verdict":"retry","reason":"later"}` + "\n" + `{"id":"a","output":5}` + "\n"
	if vs := w.Call(t.Context(), tasks); vs[0].Kind != Ack || string(vs[0].Output.Result) != "5" || vs[1].Kind != Retry || vs[1].Whole {
		t.Errorf("%+v", vs)
	}
	for code, want := range map[int]Kind{500: Retry, 503: NotReady, 422: Dead} {
		status = code
		if vs := w.Call(t.Context(), tasks); vs[0].Kind != want || !vs[1].Whole {
			t.Errorf("%d: %+v", code, vs)
		}
	}
}

// The address may have a user and a password in it; one that is none is a worker that is not there.
func TestHTTPAddress(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "se:cret" || r.URL.Path != "/work" || r.URL.RawQuery != "a=b" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	for address, want := range map[string]Kind{
		strings.Replace(srv.URL, "://", "://me:se%3Acret@", 1) + "/work?a=b": Ack,
		srv.URL + "/work?a=b": Dead,
		"http://%zz/":         NotReady,
		"http://127.0.0.1:1/": NotReady,
	} {
		w := NewHTTP(address)
		if v := w.Call(t.Context(), []*item.Task{task("i", "x")})[0]; v.Kind != want || strings.Contains(v.Reason, "cret") {
			t.Errorf("%s: %s %s", address, v.Kind, v.Reason)
		}
		w.Close()
	}
}

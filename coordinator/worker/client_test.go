package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"retinue/coordinator/item"
)

// counting counts the connections that a server gets.
func counting(t *testing.T, h http.HandlerFunc) (*httptest.Server, *atomic.Int64) {
	var n atomic.Int64
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv, &n
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Write(body)
}

// A connection is used again, however the answer is framed and however large the item is.
func TestHTTPKeepsConnections(t *testing.T) {
	srv, conns := counting(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch len(body) % 3 {
		case 0:
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		case 1: // chunks
			w.(http.Flusher).Flush()
		case 2: // what comes before an answer
			w.WriteHeader(http.StatusEarlyHints)
		}
		w.Write(body)
	})
	w := NewHTTP(srv.URL)
	defer w.Close()
	path := filepath.Join(t.TempDir(), "input")
	for n, size := range []int{0, 1, 2, 3, readBuffer, inline - 1, inline, inline + 1, 1 << 20, 3 << 20} {
		body := bytes.Repeat([]byte{'a' + byte(n)}, size)
		it := task("a", string(body))
		if n%2 == 1 && size > 0 {
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Fatal(err)
			}
			it.Path = path
		}
		v := w.Call(t.Context(), []*item.Task{it})[0]
		switch {
		case size > MaxResult:
			if v.Kind != Dead {
				t.Errorf("%d bytes: %+v", size, v)
			}
		case v.Kind != Ack || !bytes.Equal(v.Output.Result, body):
			t.Errorf("%d bytes: %s %s, %d bytes", size, v.Kind, v.Reason, len(v.Output.Result))
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// A server that has closed an idle connection gets the next item on a new one: the item has failed nowhere.
func TestHTTPIdleConnections(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan struct{}, 20)
		srv := &http.Server{Handler: http.HandlerFunc(echo), IdleTimeout: time.Millisecond, ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				closed <- struct{}{}
			}
		}}
		go srv.Serve(l)
		defer srv.Close()
		url := "http://" + l.Addr().String()
		if network == "unix" {
			url = "unix://" + address
		}
		w := NewHTTP(url)
		defer w.Close()
		for i := range 20 {
			if v := w.Call(t.Context(), []*item.Task{task("a", "x")})[0]; v.Kind != Ack {
				t.Fatalf("%s, call %d: %+v", network, i, v)
			}
			<-closed // at the moment of a call it would look like a crash
		}
	}
	// One that says nothing of it, and answers one request a connection.
	var served atomic.Int64
	url := raw(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			served.Add(1)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	w := NewHTTP(url)
	defer w.Close()
	for i := range 10 {
		if v := w.Call(t.Context(), []*item.Task{task("a", "x")})[0]; v.Kind != Ack {
			t.Fatalf("call %d: %+v", i, v)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if served.Load() != 10 {
		t.Errorf("%d of 10 items were served", served.Load())
	}
}

// A connection that was idle for longer than servers wait is not tried: the server may be about to close it.
func TestHTTPOldConnections(t *testing.T) {
	var conns atomic.Int64
	url := raw(t, func(conn net.Conn) {
		conns.Add(1)
		for r := bufio.NewReader(conn); ; {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	w := NewHTTP(url)
	defer w.Close()
	for i, want := range []int64{1, 1, 2} {
		if v := w.Call(t.Context(), []*item.Task{task("a", "")})[0]; v.Kind != Ack || conns.Load() != want {
			t.Errorf("call %d: %+v, %d connections, want %d", i, v, conns.Load(), want)
		}
		if i == 1 {
			w.client.idle[0].used = time.Now().Add(-idleTime)
		}
	}
}

// raw is a server that is no HTTP server by itself: it gets each connection, which ends after that.
func raw(t *testing.T, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				serve(conn)
			})
		}
	})
	return "http://" + l.Addr().String() + "/"
}

// Answers as servers give them: the old protocol, no length, none of it, and what is no answer.
func TestHTTPAnswers(t *testing.T) {
	for answer, want := range map[string]Verdict{
		"HTTP/1.0 200 OK\r\n\r\nold":                                     {Kind: Ack, Reason: "old"},
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end":         {Kind: Ack, Reason: "to the end"},
		"HTTP/1.1 503 x\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n":  {Kind: NotReady, RetryAfter: 2 * time.Second},
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf":               {Kind: Crashed},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf": {Kind: Crashed},
		"":                               {Kind: Crashed},
		"220 mail.example.com ESMTP\r\n": {Kind: Crashed},
		"HTTP/1.1 100 Continue\r\n\r\n":  {Kind: Crashed},
		"HTTP/1.1 101 Switching\r\n\r\n": {Kind: Dead},
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n": {Kind: Crashed},
	} {
		url := raw(t, func(conn net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				io.WriteString(conn, answer)
			}
		})
		w := NewHTTP(url)
		v := w.Call(t.Context(), []*item.Task{task("a", "x")})[0]
		result := ""
		if v.Output != nil {
			result = string(v.Output.Result)
		}
		if v.Kind != want.Kind || v.RetryAfter != want.RetryAfter || want.Kind == Ack && result != want.Reason {
			t.Errorf("%q: %+v, %q", answer, v, result)
		}
		w.Close()
	}
}

// Who refuses a large item may answer before all of it has come, and need not take the rest.
func TestHTTPEarlyAnswer(t *testing.T) {
	over := make(chan struct{})
	url := raw(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := http.ReadRequest(r); err == nil {
			io.WriteString(conn, "HTTP/1.1 413 too large\r\nContent-Length: 5\r\n\r\nlarge")
			<-over // it reads nothing more, and does not close
		}
	})
	t.Cleanup(func() { close(over) })
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w := NewHTTP(url)
	defer w.Close()
	for _, it := range []*item.Task{task("a", strings.Repeat("x", 32<<20)), {ID: "b", Path: path}} {
		began := time.Now()
		if v := w.Call(t.Context(), []*item.Task{it})[0]; v.Kind != Dead || !strings.Contains(v.Reason, "413 large") {
			t.Errorf("%+v", v)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	}
}

// Who begins to answer at once, and reads while it does, gets all of the item.
func TestHTTPBothWays(t *testing.T) {
	const size = 8 << 20
	url := raw(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
		time.Sleep(4 * last)
		n, _ := io.Copy(io.Discard, req.Body)
		fmt.Fprintf(conn, "7\r\n%d\r\n0\r\n\r\n", n)
	})
	w := NewHTTP(url)
	defer w.Close()
	if v := w.Call(t.Context(), []*item.Task{task("a", strings.Repeat("x", size))})[0]; v.Kind != Ack || string(v.Output.Result) != fmt.Sprint(size) {
		t.Errorf("%+v", v)
	}
}

// The end of a call ends it wherever it is, and the connection with it.
func TestHTTPEnd(t *testing.T) {
	came, gone := make(chan struct{}, 10), make(chan struct{}, 10)
	url := raw(t, func(conn net.Conn) {
		came <- struct{}{}
		time.Sleep(100 * time.Millisecond) // what is large fills the connection
		io.Copy(io.Discard, conn)
		gone <- struct{}{}
	})
	for name, body := range map[string]string{"waits for the answer": "x", "sends": strings.Repeat("x", 64<<20)} {
		w := NewHTTP(url)
		it := task("a", body)
		ctx, cancel := context.WithCancelCause(t.Context())
		var ended time.Time
		go func() {
			<-came
			time.Sleep(50 * time.Millisecond)
			ended = time.Now()
			cancel(ErrTimeout)
		}()
		if v := w.Call(ctx, []*item.Task{it})[0]; v.Kind != TimedOut || time.Since(ended) > 5*time.Second {
			t.Errorf("%s: %+v %v after its end", name, v, time.Since(ended))
		}
		select {
		case <-gone:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the server still has the connection", name)
		}
		w.Close()
	}
}

// A file that cannot be sent is this side's fault.
func TestHTTPFiles(t *testing.T) {
	srv, _ := counting(t, echo)
	w := NewHTTP(srv.URL)
	defer w.Close()
	it := task("a", "")
	it.Path = filepath.Join(t.TempDir(), "none")
	if v := w.Call(t.Context(), []*item.Task{it})[0]; v.Kind != Infra {
		t.Errorf("no file: %+v", v)
	}
	// What is cut off on the way has no answer.
	c, err := newClient(raw(t, func(conn net.Conn) { io.Copy(io.Discard, conn) }))
	if err != nil {
		t.Fatal(err)
	}
	short := errors.New("short")
	if _, err := c.postLarge(t.Context(), c.begin(), 1<<20, func(conn *connection) error {
		io.CopyN(conn.Conn, strings.NewReader("abc"), 3)
		conn.Close()
		return short
	}); err == nil {
		t.Error("half a file was answered")
	}
}

// No header of an item can be taken for something else on the wire.
func TestHTTPHeaders(t *testing.T) {
	requests := make(chan *http.Request, 10)
	srv := serve(t, func(_ http.ResponseWriter, r *http.Request) { requests <- r })
	w := NewHTTP(srv.URL)
	defer w.Close()
	it := task("a", "payload")
	it.Headers = map[string]string{"Content-Length": "1", "transfer-encoding": "chunked", "Host": "elsewhere", "Connection": "close", "ce-id": "other", "Expect": "100-continue", "X-Mine": "ümlaut"}
	if v := w.Call(t.Context(), []*item.Task{it})[0]; v.Kind != Ack {
		t.Fatalf("%+v", v)
	}
	r := <-requests
	if r.ContentLength != 7 || len(r.TransferEncoding) != 0 || r.Host == "elsewhere" || r.Close || strings.Join(r.Header.Values("Ce-Id"), ",") != "a" || r.Header.Get("Expect") != "" || r.Header.Get("X-Mine") != "ümlaut" {
		t.Errorf("%+v", r)
	}
	for _, spoil := range []func(*item.Task){
		func(it *item.Task) { it.Headers = map[string]string{"X-A": "b\r\nX-C: d"} },
		func(it *item.Task) { it.Headers = map[string]string{"X A": "b"} },
		func(it *item.Task) { it.Headers = map[string]string{"": "b"} },
		func(it *item.Task) { it.Headers = map[string]string{"ce-type": "b\r\n\r\n"} },
		func(it *item.Task) { it.Headers = map[string]string{"ce-source": "b\nc: d"} },
		func(it *item.Task) { it.ID = "a\r\nX: y" },
		func(it *item.Task) { it.Key = "a\nb" },
		func(it *item.Task) { it.ContentType = "text/plain\r\nX: y" },
		func(it *item.Task) { it.Input = &item.Reference{URL: "https://x/\r\nX: y"} },
	} {
		it := task("a", "payload")
		spoil(it)
		if v := w.Call(t.Context(), []*item.Task{it})[0]; v.Kind != Dead || !strings.Contains(v.Reason, "cannot travel over HTTP") {
			t.Errorf("%+v: %+v", it, v)
		}
	}
	select {
	case r := <-requests:
		t.Errorf("%+v", r.Header)
	default:
	}
}

// FuzzRequest writes items as requests, and reads them as servers do: there is one request, with one id, and the body is the item's.
func FuzzRequest(f *testing.F) {
	f.Add("a", "k", "text/plain", "X-A", "b", []byte("body"))
	f.Add("a\r\nX: y", "k", "", "X-A", "b\r\n\r\nGET / HTTP/1.1\r\n\r\n", []byte{})
	f.Add("a", "", "x", "content-length", "0", []byte("body"))
	f.Add("a", "", "x", "Transfer-Encoding", "chunked", []byte("0\r\n\r\n"))
	w := NewHTTP("http://127.0.0.1:1/path?a=b")
	f.Fuzz(func(t *testing.T, id, key, kind, name, value string, body []byte) {
		it := &item.Task{ID: id, Key: key, ContentType: kind, Stage: "s", Headers: map[string]string{name: value}, Body: body}
		h := w.client.begin()
		defer heads.Put(h)
		out, err := w.request(it, h)
		if err != nil {
			return
		}
		h.number("Content-Length", int64(len(out)))
		*h = append(append(*h, "\r\n"...), out...)
		r := bufio.NewReader(bytes.NewReader(*h))
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Fatalf("%q: %v", *h, err)
		}
		got, err := io.ReadAll(req.Body)
		if err != nil || !bytes.Equal(got, body) || r.Buffered() > 0 {
			t.Errorf("%q: a body of %q, %v, and %d bytes behind it", *h, got, err, r.Buffered())
		}
		if ids := req.Header.Values("Ce-Id"); len(ids) != 1 || ids[0] != strings.Trim(id, " \t") || req.Host != "127.0.0.1:1" {
			t.Errorf("%q: id %q, host %q", *h, ids, req.Host)
		}
	})
}

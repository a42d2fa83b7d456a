package worker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"retinue/coordinator/item"
)

// HTTP posts items to a worker that listens on localhost or a Unix socket.
type HTTP struct {
	Batch      int
	Structured bool // CloudEvents as one JSON body, as Dapr sends it
	To         bool // the answer is the message to the next stage
	at         *url.URL
	invalid    error // what is wrong with the address
	// The transport itself: nothing is redirected, and no cookie kept, so the client around it would only copy headers and addresses for each item.
	transport *http.Transport
	mu        sync.Mutex
	pending   map[string]*accepted // by item: answered 202
}

// accepted is an item whose worker has promised to call back.
type accepted struct {
	fence   uint64
	verdict chan Verdict
}

// maxReply bounds a worker's answer.
const maxReply = 8 << 20

// NewHTTP returns a worker at address, which is http://HOST:PORT/path or unix:///path/to/socket, for slots calls at once.
func NewHTTP(address string, slots int) *HTTP {
	t := &http.Transport{MaxIdleConnsPerHost: slots, MaxConnsPerHost: 0, IdleConnTimeout: time.Minute, DisableCompression: true}
	w := &HTTP{Batch: 1, transport: t, pending: map[string]*accepted{}}
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		address = "http://localhost/"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
	}
	w.at, w.invalid = url.Parse(address)
	return w
}

// Close implements Worker.
func (w *HTTP) Close() error {
	w.transport.CloseIdleConnections()
	return nil
}

// Discard implements Worker: an answer leaves nothing.
func (w *HTTP) Discard(*Output) {}

// Call implements Worker.
func (w *HTTP) Call(ctx context.Context, tasks []*item.Task) []Verdict {
	if w.Batch > 1 {
		return w.batch(ctx, tasks)
	}
	task := tasks[0]
	promise := w.expect(task)
	defer w.forget(task)
	body, header := w.request(task)
	resp, data, v := w.post(ctx, body, task.Path, header)
	if resp == nil {
		return []Verdict{v}
	}
	if resp.StatusCode == http.StatusAccepted && resp.Header.Get("Location") != "" {
		select {
		case v = <-promise.verdict:
			if v.Kind == Ack && w.To && v.Output != nil && len(v.Output.Next) == 0 {
				v.Output.Next = nextOf(v.Output.Result, v.Output.ResultType)
			}
			return []Verdict{v}
		case <-ctx.Done():
			return []Verdict{stopped(ctx)}
		}
	}
	return []Verdict{w.answer(resp, data)}
}

// request makes the body and the headers of one item.
func (w *HTTP) request(task *item.Task) ([]byte, http.Header) {
	h := newHeaders(12 + len(task.Headers))
	h.set("Retinue-Attempt", strconv.Itoa(task.N))
	h.set("Retinue-Max-Attempts", strconv.Itoa(task.Max))
	h.set("Retinue-Deadline-Ms", strconv.FormatInt(time.Until(task.Deadline).Milliseconds(), 10))
	h.set("Retinue-Fence", strconv.FormatUint(task.Fence, 10))
	h.set("Retinue-Stage", task.Stage)
	if task.Key != "" {
		h.set("Retinue-Key", task.Key)
	}
	if task.Input != nil {
		h.set("Retinue-Input", task.Input.URL)
	}
	kind := header(task.Headers, "ce-type", "retinue.item")
	source := header(task.Headers, "ce-source", "/queues/"+task.Stage)
	if w.Structured {
		h.set("Content-Type", "application/cloudevents+json")
		return structured(task, kind, source), h.header
	}
	for name, value := range task.Headers {
		h.set(http.CanonicalHeaderKey(name), value)
	}
	h.set("Ce-Specversion", "1.0")
	h.set("Ce-Id", task.ID)
	h.set("Ce-Type", kind)
	h.set("Ce-Source", source)
	h.set("Ce-Time", task.FirstSeen.UTC().Format(time.RFC3339Nano))
	h.set("Content-Type", or(task.ContentType, "application/octet-stream"))
	return task.Body, h.header
}

// headers are the headers of a request, their values in one piece of memory.
type headers struct {
	header http.Header
	values []string
}

func newHeaders(most int) headers {
	return headers{make(http.Header, most), make([]string, 0, most)}
}

// set takes the name as it stands on the wire.
func (h *headers) set(name, value string) {
	n := len(h.values)
	h.values = append(h.values, value)
	h.header[name] = h.values[n : n+1 : n+1]
}

func header(headers map[string]string, name, def string) string {
	for k, v := range headers {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return def
}

func structured(task *item.Task, kind, source string) []byte {
	e := map[string]any{"specversion": "1.0", "id": task.ID, "type": kind, "source": source, "time": task.FirstSeen.UTC().Format(time.RFC3339Nano)}
	media, _, _ := mime.ParseMediaType(task.ContentType)
	switch {
	case task.Path != "": // the claim check of CloudEvents
		e["datacontenttype"], e["dataref"] = or(task.ContentType, "application/octet-stream"), "file://"+task.Path
	case (media == "application/json" || media == "") && json.Valid(task.Body):
		e["datacontenttype"], e["data"] = "application/json", json.RawMessage(task.Body)
	case utf8.Valid(task.Body):
		e["datacontenttype"], e["data"] = or(task.ContentType, "text/plain"), string(task.Body)
	default:
		e["datacontenttype"], e["data_base64"] = or(task.ContentType, "application/octet-stream"), base64.StdEncoding.EncodeToString(task.Body)
	}
	body, _ := json.Marshal(e) // strings and valid JSON always encode
	return body
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// post sends a request, with a file instead of the body where there is one, and reads the answer. Without one it says what that means.
func (w *HTTP) post(ctx context.Context, body []byte, path string, h http.Header) (*http.Response, []byte, Verdict) {
	if w.invalid != nil {
		return nil, nil, Verdict{Kind: NotReady, Reason: w.invalid.Error()}
	}
	req := (&http.Request{Method: http.MethodPost, URL: w.at, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Host: w.at.Host,
		ContentLength: int64(len(body)), Body: http.NoBody, GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }}).WithContext(ctx)
	if len(body) > 0 {
		req.Body, _ = req.GetBody()
	}
	if user := w.at.User; user != nil {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	if path != "" && !w.Structured {
		info, err := os.Stat(path)
		if err != nil {
			return nil, nil, Verdict{Kind: Infra, Reason: err.Error()}
		}
		req.ContentLength = info.Size()
		req.GetBody = func() (io.ReadCloser, error) { return os.Open(path) }
		if req.Body, err = req.GetBody(); err != nil {
			return nil, nil, Verdict{Kind: Infra, Reason: err.Error()}
		}
	}
	resp, err := w.transport.RoundTrip(req)
	if err != nil {
		return nil, nil, noAnswer(ctx, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return nil, nil, noAnswer(ctx, err)
	}
	return resp, data, Verdict{}
}

// noAnswer tells a worker that is not there from one that died at work.
func noAnswer(ctx context.Context, err error) Verdict {
	var op *net.OpError
	switch {
	case ctx.Err() != nil:
		return stopped(ctx)
	case errors.As(err, &op) && op.Op == "dial":
		return Verdict{Kind: NotReady, Reason: "nobody listens: " + err.Error()}
	}
	return Verdict{Kind: Crashed, Reason: "the worker broke off: " + err.Error()}
}

// answer reads the reply to one item.
func (w *HTTP) answer(resp *http.Response, data []byte) Verdict {
	v := byStatus(resp, data)
	if v.Kind != Ack || resp.StatusCode > 299 {
		return v
	}
	contentType := resp.Header.Get("Content-Type")
	if said, ok := daprStatus(contentType, data); ok {
		return said
	}
	if len(data) > MaxResult && !w.To {
		return Verdict{Kind: Dead, Reason: fmt.Sprintf("an output of %d bytes, at most %d", len(data), MaxResult)}
	}
	v.Output = &Output{}
	if len(data) > 0 {
		if len(data) <= MaxResult {
			v.Output.Result, v.Output.ResultType = data, contentType
		}
		if w.To {
			v.Output.Next = nextOf(data, contentType)
		}
	}
	return v
}

// nextOf makes messages of an answer: one, or one for each line of NDJSON.
func nextOf(data []byte, contentType string) []item.Message {
	media, _, _ := mime.ParseMediaType(contentType)
	if media != "application/x-ndjson" {
		if len(data) == 0 {
			return nil
		}
		return []item.Message{{Body: data, ContentType: contentType}}
	}
	var out []item.Message
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			out = append(out, item.Message{Body: bytes.Clone(line), ContentType: "application/json"})
		}
	}
	return out
}

// byStatus is the table of the contract.
func byStatus(resp *http.Response, data []byte) Verdict {
	code := resp.StatusCode
	if code >= 200 && code <= 299 && len(data) <= maxReply {
		return Verdict{Kind: Ack}
	}
	v := Verdict{Reason: fmt.Sprintf("%d %s", code, item.Printable(string(data[:min(len(data), 200)]), 200)), RetryAfter: retryAfter(resp.Header)}
	switch {
	case len(data) > maxReply:
		v.Kind, v.Reason = Dead, fmt.Sprintf("an answer of more than %d bytes", maxReply)
	case code == http.StatusConflict, code == http.StatusTooEarly:
		v = Verdict{Kind: Ack, Reason: v.Reason, Output: &Output{}} // done already
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		v.Kind = NotReady
	case code == http.StatusRequestTimeout, code >= 500:
		v.Kind = Retry
	default:
		v.Kind = Dead
	}
	return v
}

func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, min(time.Until(at), maxRetryAfter))
	}
	return 0
}

// daprStatus reads {"status":"SUCCESS|RETRY|DROP"}: an object with nothing else, which is no output.
func daprStatus(contentType string, data []byte) (Verdict, bool) {
	media, _, _ := mime.ParseMediaType(contentType)
	if media != "application/json" || len(data) > 100 {
		return Verdict{}, false
	}
	var reply map[string]string
	if json.Unmarshal(data, &reply) != nil || len(reply) != 1 {
		return Verdict{}, false
	}
	switch reply["status"] {
	case "SUCCESS":
		return Verdict{Kind: Ack, Output: &Output{}}, true
	case "RETRY":
		return Verdict{Kind: Retry, Reason: "status RETRY"}, true
	case "DROP":
		return Verdict{Kind: Drop, Reason: "status DROP"}, true
	}
	return Verdict{}, false
}

// batch posts lines and reads verdicts. A 2xx has one for each item; another status is about all of them.
func (w *HTTP) batch(ctx context.Context, tasks []*item.Task) []Verdict {
	h := http.Header{}
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Retinue-Stage", tasks[0].Stage)
	h.Set("Retinue-Batch", strconv.Itoa(len(tasks)))
	h.Set("Retinue-Deadline-Ms", strconv.FormatInt(time.Until(tasks[0].Deadline).Milliseconds(), 10))
	resp, data, v := w.post(ctx, encodeBatch(tasks), "", h)
	if resp == nil {
		return all(tasks, v)
	}
	v = byStatus(resp, data)
	if v.Kind != Ack || resp.StatusCode > 299 {
		return all(tasks, v)
	}
	said, err := ParseVerdicts(bytes.NewReader(data))
	rest := Verdict{Kind: Retry, Reason: "the worker wrote no verdict"}
	if err != nil {
		rest.Reason = "the worker wrote what is no verdict: " + err.Error()
	}
	return spread(tasks, said, rest, w.To)
}

func (w *HTTP) expect(task *item.Task) *accepted {
	a := &accepted{fence: task.Fence, verdict: make(chan Verdict, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending[task.ID] = a
	return a
}

func (w *HTTP) forget(task *item.Task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, task.ID)
}

// Complete brings the verdict on an item whose worker answered 202. A fence other than the attempt's is refused; 0 is not compared.
func (w *HTTP) Complete(id string, fence uint64, v Verdict) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.pending[id]
	if a == nil || fence != 0 && fence != a.fence {
		return false
	}
	select {
	case a.verdict <- v:
		return true
	default:
		return false // it has its verdict
	}
}

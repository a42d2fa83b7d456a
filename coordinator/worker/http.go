package worker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
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
	client     *client
	invalid    error // what is wrong with the address
	mu         sync.Mutex
	pending    map[string]*accepted // by item: answered 202
}

// accepted is an item whose worker has promised to call back.
type accepted struct {
	fence   uint64
	verdict *Verdict      // under the mutex of all
	came    chan struct{} // closed with the verdict; nil while nobody waits for it
}

// maxReply bounds a worker's answer.
const maxReply = 8 << 20

// NewHTTP returns a worker at address, which is http://HOST:PORT/path or unix:///path/to/socket.
func NewHTTP(address string) *HTTP {
	w := &HTTP{Batch: 1, pending: map[string]*accepted{}}
	w.client, w.invalid = newClient(address)
	return w
}

// Close implements Worker.
func (w *HTTP) Close() error {
	if w.client != nil {
		w.client.close()
	}
	return nil
}

// Discard implements Worker: an answer leaves nothing.
func (w *HTTP) Discard(*Output) {}

// Call implements Worker.
func (w *HTTP) Call(ctx context.Context, tasks []*item.Task) []Verdict {
	switch {
	case w.invalid != nil:
		return nowhere(tasks, w.invalid)
	case w.Batch > 1:
		return w.batch(ctx, tasks)
	}
	task, promise := tasks[0], w.expect(tasks[0])
	h := w.client.begin()
	body, err := w.request(task, h)
	if err != nil {
		return w.judge(ctx, task, promise, nil, refused{err})
	}
	var answer *reply
	if task.Path != "" && !w.Structured {
		answer, err = w.client.postFile(ctx, h, task.Path)
	} else {
		answer, err = w.client.post(ctx, h, body)
	}
	return w.judge(ctx, task, promise, answer, err)
}

// nowhere is the verdict where the address is none.
func nowhere(tasks []*item.Task, why error) []Verdict {
	return all(tasks, Verdict{Kind: NotReady, Reason: why.Error()})
}

// refused is an error of an item that cannot travel.
type refused struct{ error }

// judge says what an answer means, or the want of one, and waits for the verdict that was promised instead.
func (w *HTTP) judge(ctx context.Context, task *item.Task, promise *accepted, answer *reply, err error) []Verdict {
	defer w.forget(task)
	switch {
	case err != nil:
		return []Verdict{noAnswer(ctx, err)}
	case answer.status != http.StatusAccepted || answer.header.Get("Location") == "":
		return []Verdict{w.answer(answer)}
	}
	select {
	case <-w.promised(promise):
		v := *promise.verdict
		if v.Kind == Ack && w.To && v.Output != nil && len(v.Output.Next) == 0 {
			v = withNext(v, v.Output.Result, v.Output.ResultType)
		}
		return []Verdict{v}
	case <-ctx.Done():
		return []Verdict{stopped(ctx)}
	}
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

// noAnswer tells a worker that is not there from one that died at work.
func noAnswer(ctx context.Context, err error) Verdict {
	var op *net.OpError
	var file unread
	var item refused
	switch {
	case errors.As(err, &item):
		return Verdict{Kind: Dead, Reason: err.Error()}
	case ctx.Err() != nil:
		return stopped(ctx)
	case errors.As(err, &file):
		return Verdict{Kind: Infra, Reason: err.Error()}
	case errors.As(err, &op) && op.Op == "dial":
		return Verdict{Kind: NotReady, Reason: "nobody listens: " + err.Error()}
	}
	return Verdict{Kind: Crashed, Reason: "the worker broke off: " + err.Error()}
}

// answer reads the reply to one item.
func (w *HTTP) answer(a *reply) Verdict {
	v := byStatus(a)
	if v.Kind != Ack || a.status > 299 {
		return v
	}
	data, contentType := a.body, a.header.Get("Content-Type")
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
			v = withNext(v, data, contentType)
		}
	}
	return v
}

// withNext adds the messages of an answer to a verdict, which it is no longer when they cannot be read.
func withNext(v Verdict, data []byte, contentType string) Verdict {
	next, err := nextOf(data, contentType)
	if err != nil {
		return Verdict{Kind: Retry, Reason: "the worker wrote what is no message: " + err.Error()}
	}
	v.Output.Next = next
	return v
}

// nextOf makes messages of an answer: one, or one for each line of NDJSON or part of multipart/mixed.
func nextOf(data []byte, contentType string) ([]item.Message, error) {
	media, params, _ := mime.ParseMediaType(contentType)
	switch {
	case len(data) == 0:
		return nil, nil
	case media == "multipart/mixed":
		return ParseParts(data, params["boundary"])
	case media != "application/x-ndjson":
		return []item.Message{{Body: data, ContentType: contentType}}, nil
	}
	var out []item.Message
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			out = append(out, item.Message{Body: bytes.Clone(line), ContentType: "application/json"})
		}
	}
	return out, nil
}

// byStatus is the table of the contract.
func byStatus(a *reply) Verdict {
	code, data := a.status, a.body
	if code >= 200 && code <= 299 && len(data) <= maxReply {
		return Verdict{Kind: Ack}
	}
	v := Verdict{Reason: fmt.Sprintf("%d %s", code, item.Printable(string(data[:min(len(data), 200)]), 200)), RetryAfter: retryAfter(a.header)}
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

// batch posts lines and reads verdicts.
func (w *HTTP) batch(ctx context.Context, tasks []*item.Task) []Verdict {
	h := w.client.begin()
	h.set("Content-Type", "application/x-ndjson")
	h.set("Retinue-Stage", tasks[0].Stage)
	h.number("Retinue-Batch", int64(len(tasks)))
	h.number("Retinue-Deadline-Ms", time.Until(tasks[0].Deadline).Milliseconds())
	answer, err := w.client.post(ctx, h, encodeBatch(tasks))
	return w.judgeBatch(ctx, tasks, answer, err)
}

// judgeBatch says what an answer means for each: a 2xx has a verdict for each item, another status is about all of them.
func (w *HTTP) judgeBatch(ctx context.Context, tasks []*item.Task, answer *reply, err error) []Verdict {
	if err != nil {
		return all(tasks, noAnswer(ctx, err))
	}
	v := byStatus(answer)
	if v.Kind != Ack || answer.status > 299 {
		return all(tasks, v)
	}
	said, err := ParseVerdicts(bytes.NewReader(answer.body))
	rest := Verdict{Kind: Retry, Reason: "the worker wrote no verdict"}
	if err != nil {
		rest.Reason = "the worker wrote what is no verdict: " + err.Error()
	}
	return spread(tasks, said, rest, w.To)
}

func (w *HTTP) expect(task *item.Task) *accepted {
	a := &accepted{fence: task.Fence}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending[task.ID] = a
	return a
}

// promised returns a channel that is closed when the verdict is there.
func (w *HTTP) promised(a *accepted) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.came = make(chan struct{})
	if a.verdict != nil {
		close(a.came)
	}
	return a.came
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
	if a == nil || a.verdict != nil || fence != 0 && fence != a.fence {
		return false
	}
	if a.verdict = &v; a.came != nil {
		close(a.came)
	}
	return true
}

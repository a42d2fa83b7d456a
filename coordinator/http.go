package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
)

// Bounds of requests.
const (
	maxItem = 8 << 20
	maxBulk = 64 << 20
	maxWait = 10 * time.Minute
	maxList = 1000
)

// Refusal is why a request was not granted.
type Refusal struct {
	Error   string `json:"error"`
	Message string `json:"message,omitempty"`
}

// handlers serve the HTTP interface.
type handlers struct{ c *Coordinator }

// Handler returns the HTTP interface.
func (c *Coordinator) Handler() http.Handler {
	a := &handlers{c}
	mux := http.NewServeMux()
	for pattern, h := range a.routes() {
		mux.HandleFunc(pattern, h)
	}
	mux.HandleFunc("GET /{$}", servePage)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "not_found", "no such path; GET /v1/openapi.json lists them")
	})
	// A web page of another origin must not steer a queue through the browser of somebody on this host.
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, "cross_origin", "a page of another origin may not use a coordinator")
	}))
	return guard.Handler(mux)
}

// routes are all paths; the document is compared with them.
func (a *handlers) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /v1/queues":                       a.queues,
		"POST /v1/queues/{queue}/items":        a.queue(a.put),
		"GET /v1/queues/{queue}/items":         a.queue(a.list),
		"GET /v1/queues/{queue}/stats":         a.queue(a.stats),
		"GET /v1/queues/{queue}/schedules":     a.queue(a.schedules),
		"GET /v1/queues/{queue}/groups":        a.queue(a.groupList),
		"POST /v1/queues/{queue}/groups/close": a.queue(a.groupClose),
		"POST /v1/queues/{verb}":               a.verb,
		"GET /v1/queues/{queue}/dead":          a.queue(a.deadList),
		"POST /v1/queues/{queue}/dead/retry":   a.queue(a.deadRetry),
		"POST /v1/queues/{queue}/dead/purge":   a.queue(a.deadPurge),
		"GET /v1/items/{id...}":                a.item,
		"DELETE /v1/items/{id...}":             a.cancel,
		"POST /v1/items/{id...}":               a.callback,
		"GET /v1/events":                       a.events,
		"GET /v1/openapi.json":                 a.openAPI,
		"GET /healthz":                         a.healthz,
		"GET /readyz":                          a.readyz,
		"GET /metrics":                         a.c.metrics.handler().ServeHTTP,
	}
}

// queue refuses other queues than this coordinator's.
func (a *handlers) queue(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if q := r.PathValue("queue"); q != a.c.cfg.Queue {
			refuse(w, http.StatusNotFound, "unknown_queue", fmt.Sprintf("this coordinator has the queue %q, not %q", a.c.cfg.Queue, q))
			return
		}
		h(w, r)
	}
}

// queues names the queue of this coordinator.
func (a *handlers) queues(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, Queues{[]string{a.c.cfg.Queue}})
}

// Queues are what a coordinator serves.
type Queues struct {
	Queues []string `json:"queues"`
}

// Put is the answer to a publication.
type Put struct {
	Accepted int      `json:"accepted"`
	IDs      []string `json:"ids"`
	Repeated bool     `json:"repeated,omitempty"` // the item with this idempotency key has ended before
}

// Item is what is known of an item.
type Item struct {
	ID         string         `json:"id"`
	State      item.State     `json:"state"`
	Class      item.Class     `json:"class,omitempty"`
	Reason     string         `json:"reason,omitempty"`
	Attempt    int            `json:"attempt,omitempty"`
	Attempts   []item.Attempt `json:"attempts,omitempty"` // that failed
	Result     any            `json:"result,omitempty"`   // JSON as it is, text as a string
	Binary     []byte         `json:"result_base64,omitempty"`
	ResultType string         `json:"result_type,omitempty"`
	Output     string         `json:"output,omitempty"` // the folder of the files
	Files      []item.File    `json:"files,omitempty"`
	Node       string         `json:"node,omitempty"`
	Ended      *time.Time     `json:"ended,omitempty"`
	RetryMS    int64          `json:"retry_in_ms,omitempty"`
	// Progress is what the running attempt says of how far it is.
	Progress json.RawMessage `json:"progress,omitempty"`
}

func itemOf(rec item.Record) Item {
	it := Item{ID: rec.ID, State: rec.State, Class: rec.Class, Reason: rec.Reason, Attempt: rec.N, Attempts: rec.Attempts, ResultType: rec.ResultType,
		Output: rec.Output, Files: rec.Files, Node: rec.Node, Ended: &rec.Ended}
	var value any
	switch {
	case len(rec.Result) == 0:
	case json.Unmarshal(rec.Result, &value) == nil:
		it.Result = json.RawMessage(rec.Result)
	case isText(rec.Result):
		it.Result = string(rec.Result)
	default:
		it.Binary = rec.Result
	}
	return it
}

func (a *handlers) list(w http.ResponseWriter, r *http.Request) {
	limit := maxList
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxList {
			refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("limit %q is not between 1 and %d", text, maxList))
			return
		}
		limit = n
	}
	views, err := a.c.Items(r.Context(), "", limit)
	if err != nil {
		unavailable(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"items": views})
}

func (a *handlers) stats(w http.ResponseWriter, r *http.Request) {
	st, err := a.c.stats(r.Context())
	if err != nil {
		unavailable(w, err)
		return
	}
	writeJSON(w, http.StatusOK, st)
}

// verb serves POST /v1/queues/{queue}:pause, :resume and :drain.
func (a *handlers) verb(w http.ResponseWriter, r *http.Request) {
	name, verb, _ := strings.Cut(r.PathValue("verb"), ":")
	r.SetPathValue("queue", name)
	a.queue(func(w http.ResponseWriter, r *http.Request) {
		var ev any
		switch verb {
		case "pause":
			ev = evPause{r.URL.Query().Get("reason")}
		case "resume":
			ev = evResume{r.URL.Query().Get("key")}
		case "drain":
			ev = evDrain{}
		default:
			refuse(w, http.StatusNotFound, "not_found", fmt.Sprintf("a queue has no %q; it has :pause, :resume and :drain", verb))
			return
		}
		found, err := a.c.ask(r.Context(), envelope{ev: ev})
		if err != nil {
			unavailable(w, err)
			return
		}
		if key := r.URL.Query().Get("key"); !found && key != "" {
			refuse(w, http.StatusNotFound, "not_parked", fmt.Sprintf("key %q is not parked here", key))
			return
		}
		a.stats(w, r)
	})(w, r)
}

// item serves GET /v1/items/{id}, with ?wait until it has ended.
func (a *handlers) item(w http.ResponseWriter, r *http.Request) {
	wait, ok := waitOf(w, r)
	if !ok {
		return
	}
	it, found, err := a.c.await(r.Context(), r.PathValue("id"), wait)
	switch {
	case err != nil:
		unavailable(w, err)
	case !found:
		refuse(w, http.StatusNotFound, "unknown_item", "it is neither in hand here nor has it ended: it waits in the queue, is at another coordinator, or never was")
	case wait > 0 && !it.State.Ended():
		writeJSON(w, http.StatusAccepted, it)
	default:
		writeJSON(w, http.StatusOK, it)
	}
}

func waitOf(w http.ResponseWriter, r *http.Request) (time.Duration, bool) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return 0, true
	}
	wait, err := time.ParseDuration(text)
	if err != nil || wait < 0 || wait > maxWait {
		refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("wait %q is not a duration between 0 and %s", text, maxWait))
		return 0, false
	}
	return wait, true
}

// await returns an item, when it has ended or the wait is over.
func (c *Coordinator) await(ctx context.Context, id string, wait time.Duration) (Item, bool, error) {
	here, stop := c.feed.await(id)
	defer stop()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		rec, err := c.find(ctx, id)
		if err != nil {
			return Item{}, false, err
		}
		if rec != nil {
			return itemOf(*rec), true, nil
		}
		poll := time.NewTimer(pause) // it may end at another coordinator
		select {
		case rec := <-here:
			poll.Stop()
			return itemOf(rec), true, nil
		case <-poll.C:
		case <-timeout.C:
			poll.Stop()
			return c.inHand(ctx, id)
		case <-c.ended:
			poll.Stop()
			return Item{}, false, errEnded
		case <-ctx.Done():
			poll.Stop()
			return Item{}, false, ctx.Err()
		}
	}
}

func (c *Coordinator) inHand(ctx context.Context, id string) (Item, bool, error) {
	views, err := c.Items(ctx, id, 1)
	if err != nil || len(views) == 0 {
		return Item{ID: id}, false, err
	}
	v := views[0]
	return Item{ID: v.ID, State: v.State, Attempt: v.Attempt, Attempts: v.Attempts, RetryMS: v.RetryMS, Progress: v.Progress}, true, nil
}

// cancel serves DELETE /v1/items/{id}: an item in hand is ended; for any other the end is written at the commit point, and whoever
// takes it from the queue finds it there.
func (a *handlers) cancel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	found, err := a.c.ask(r.Context(), envelope{ev: evCancel{id}})
	if err != nil {
		unavailable(w, err)
		return
	}
	if found {
		it, _, err := a.c.await(r.Context(), id, 5*time.Second)
		if err != nil {
			unavailable(w, err)
			return
		}
		status := http.StatusOK
		if it.State.Ended() && it.State != item.Cancelled {
			status = http.StatusConflict // it had ended, and was only still on its way out of the queue
		}
		writeJSON(w, status, it)
		return
	}
	if a.c.parts.Point == nil {
		refuse(w, http.StatusNotFound, "unknown_item", "it is not in hand here, and without a commit point nothing can be said of other items")
		return
	}
	rec, err := a.c.parts.Point.Commit(r.Context(), item.Record{ID: id, Stage: a.c.cfg.stage(), State: item.Cancelled, Attempt: "cancel." + source.NewID(), Node: a.c.cfg.Node,
		Ended: time.Now(), Reason: "cancelled before it was taken"}, "")
	if err != nil {
		unavailable(w, err)
		return
	}
	status := http.StatusOK
	if rec.State != item.Cancelled {
		status = http.StatusConflict // it has ended in another way
	}
	writeJSON(w, status, itemOf(rec))
}

// completer is a worker that answers later.
type completer interface {
	Complete(id string, fence uint64, v worker.Verdict) bool
}

// callback serves POST /v1/items/{id}/done, /fail and /extend, for workers that answered 202.
func (a *handlers) callback(w http.ResponseWriter, r *http.Request) {
	path := r.PathValue("id")
	at := strings.LastIndexByte(path, '/')
	id, verb := path[:max(at, 0)], path[at+1:]
	fence, err := strconv.ParseUint(r.Header.Get("Retinue-Fence"), 10, 64)
	if err != nil && r.Header.Get("Retinue-Fence") != "" {
		refuse(w, http.StatusBadRequest, "bad_request", "Retinue-Fence is not a number")
		return
	}
	body, ok := readBody(w, r, maxItem)
	if !ok {
		return
	}
	var v worker.Verdict
	switch verb {
	case "extend":
		a.extend(w, r, id, body)
		return
	case "done":
		v = worker.Verdict{Kind: worker.Ack, Output: &worker.Output{Result: body, ResultType: r.Header.Get("Content-Type")}}
		if len(body) > worker.MaxResult {
			refuse(w, http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("a result has at most %d bytes", worker.MaxResult))
			return
		}
	case "fail":
		v = worker.Verdict{Kind: worker.Retry, Reason: "the worker said so"}
		if len(body) > 0 {
			if v, err = worker.ParseStatus(body); err != nil || v.Kind == worker.Ack {
				refuse(w, http.StatusBadRequest, "bad_request", `the body is a verdict like {"verdict":"retry","reason":"..."}`)
				return
			}
		}
	default:
		refuse(w, http.StatusNotFound, "not_found", fmt.Sprintf("an item has no %q; it has done, fail and extend", verb))
		return
	}
	async, ok := a.c.parts.Worker.(completer)
	if !ok || !async.Complete(id, fence, v) {
		refuse(w, http.StatusConflict, "not_pending", "no attempt at this item waits for an answer here, or not one with this fence")
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"id": id, "verdict": string(v.Kind)})
}

func (a *handlers) extend(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	ev := evBeat{id: id, again: true}
	if len(body) > 0 {
		var ok bool
		if ev.progress, ok = worker.ParseProgress(body); !ok {
			refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("the body is how far the item is, as JSON of at most %d bytes, or nothing", worker.MaxProgress))
			return
		}
	}
	found, err := a.c.ask(r.Context(), envelope{ev: ev})
	switch {
	case err != nil:
		unavailable(w, err)
	case !found:
		refuse(w, http.StatusConflict, "not_pending", "no attempt at this item runs here")
	default:
		writeJSON(w, http.StatusOK, map[string]string{"id": id, "verdict": "extended"})
	}
}

// events streams what happens here.
func (a *handlers) events(w http.ResponseWriter, r *http.Request) {
	events, stop := a.c.feed.subscribe()
	defer stop()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	fmt.Fprint(w, ": events\n\n")
	beat := time.NewTicker(10 * time.Second)
	defer beat.Stop()
	for {
		if err := rc.Flush(); err != nil {
			return
		}
		select {
		case ev := <-events:
			data, err := json.Marshal(ev)
			if err != nil {
				return
			}
			if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", ev.Type, data); err != nil {
				return
			}
		case <-beat.C:
			if _, err := io.WriteString(w, ": beat\n\n"); err != nil {
				return
			}
		case <-a.c.ended:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (a *handlers) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	if _, err := a.c.ask(ctx, envelope{ev: evTick{}}); err != nil {
		unavailable(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]bool{"ok": true})
}

func (a *handlers) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	st, err := a.c.Stats(ctx)
	if err != nil {
		unavailable(w, err)
		return
	}
	if st.Status != "running" {
		refuse(w, http.StatusServiceUnavailable, "not_ready", "the stage is "+st.Status+": "+st.Reason)
		return
	}
	writeJSON(w, http.StatusOK, map[string]bool{"ready": true})
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body is larger than %d bytes", limit))
		return nil, false
	}
	return data, err == nil // otherwise the client is gone
}

func unavailable(w http.ResponseWriter, err error) {
	code := "unavailable"
	if errors.Is(err, errEnded) {
		code = "stopping"
	}
	refuse(w, http.StatusServiceUnavailable, code, err.Error())
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, Refusal{code, message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone when it fails
}

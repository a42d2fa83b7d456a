package manage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"retinue/internal/hint"
	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/state"
)

// ErrUnsupported says that a driver has no answer to a question.
var ErrUnsupported = errors.New("not available for this task")

// appTimeout is how long the application may take to answer what the driver can answer as well.
const appTimeout = 2 * time.Second

// Handler answers the management API of a task.
func Handler(cfg *lifecycle.Config, task Task) http.Handler {
	if cfg == nil {
		cfg = &lifecycle.Config{}
	}
	h := &handlers{task: task, cfg: cfg, app: newApp(task)}
	mux := http.NewServeMux()
	for _, r := range h.routes() {
		mux.HandleFunc(r.method+" "+r.path, r.serve)
	}
	mux.HandleFunc("/", h.unknown)
	return mux
}

type handlers struct {
	task Task
	cfg  *lifecycle.Config
	app  *app
}

type route struct {
	method, path string
	serve        http.HandlerFunc
}

// routes is the table of the API; the OpenAPI document is checked against it.
func (h *handlers) routes() []route {
	return []route{
		{"GET", "/v1/task", h.describe},
		{"GET", "/v1/health", h.health},
		{"GET", "/v1/ready", h.ready},
		{"GET", "/v1/metrics", h.metrics},
		{"GET", "/v1/profile", h.profile},
		{"GET", "/v1/config", h.config},
		{"GET", "/v1/logs", h.logs},
		{"GET", "/v1/state", h.state},
		{"POST", "/v1/pause", h.operate((*lifecycle.Engine).Pause)},
		{"POST", "/v1/resume", h.operate((*lifecycle.Engine).Resume)},
		{"POST", "/v1/drain", h.operate((*lifecycle.Engine).Drain)},
		{"POST", "/v1/save", h.operate((*lifecycle.Engine).Save)},
		{"POST", "/v1/replicate", h.replicate},
		{"GET", "/v1/openapi.json", serveOpenAPI},
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone, if it fails
}

func refuse(w http.ResponseWriter, status int, code, message, advice string) {
	answer(w, status, Refusal{code, message, advice})
}

// fail answers with what an error means.
func fail(w http.ResponseWriter, err error) {
	advice := hint.Of(err)
	var limited *limitError
	switch {
	case errors.Is(err, lifecycle.ErrPhase), errors.Is(err, lifecycle.ErrStopping), errors.Is(err, lifecycle.ErrExited):
		refuse(w, http.StatusConflict, "wrong_phase", err.Error(), advice)
	case errors.Is(err, lifecycle.ErrNoHook):
		refuse(w, http.StatusNotFound, "no_hook", err.Error(), "add the hook to the lifecycle block of the task")
	case errors.Is(err, lifecycle.ErrBusy):
		refuse(w, http.StatusServiceUnavailable, "busy", err.Error(), "ask again later")
	case errors.Is(err, state.ErrNone):
		refuse(w, http.StatusNotFound, "no_state", err.Error(), "the task has not saved a state yet; `retinue task save` does it now")
	case errors.As(err, &limited):
		refuse(w, http.StatusForbidden, "limit", err.Error(), advice)
	case errors.Is(err, ErrUnsupported):
		refuse(w, http.StatusNotImplemented, "unsupported", err.Error(), advice)
	case errors.Is(err, context.DeadlineExceeded):
		refuse(w, http.StatusGatewayTimeout, "timeout", err.Error(), advice)
	default:
		refuse(w, http.StatusBadGateway, "failed", err.Error(), advice)
	}
}

func (h *handlers) unknown(w http.ResponseWriter, r *http.Request) {
	for _, known := range h.routes() {
		if known.path == r.URL.Path {
			w.Header().Set("Allow", known.method)
			refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", r.Method+" is not what "+r.URL.Path+" takes", "use "+known.method)
			return
		}
	}
	refuse(w, http.StatusNotFound, "not_found", "no such path: "+r.URL.Path, "GET /v1/openapi.json lists them")
}

func (h *handlers) describe(w http.ResponseWriter, r *http.Request) {
	d := Description{Info: h.task.Info(), Lifecycle: h.task.Engine().Status(), Hooks: []HookInfo{}}
	for _, spec := range lifecycle.Hooks() {
		if hook, ok := h.cfg.Hooks[spec.Name]; ok {
			d.Hooks = append(d.Hooks, HookInfo{string(hook.Name), string(hook.Kind), hook.Timeout.Milliseconds(), string(hook.OnFailure)})
		}
	}
	if h.cfg.Has(lifecycle.SaveState) || h.cfg.Has(lifecycle.RestoreState) {
		if meta, err := h.task.State(r.Context()); err == nil {
			d.State = &meta
		}
	}
	answer(w, http.StatusOK, d)
}

// health says whether the task lives: by the application's own word where it gives one.
func (h *handlers) health(w http.ResponseWriter, r *http.Request) {
	s := h.task.Engine().Status()
	health := Health{OK: s.Phase.Alive(), Source: "driver", Phase: string(s.Phase), Detail: s.AppStatus}
	if s.Phase.Alive() && s.Phase != lifecycle.Paused {
		if status, said, err := h.app.get(r.Context(), "/retinue/v1/live"); err == nil && status != http.StatusNotFound {
			health = Health{OK: status/100 == 2, Source: "application", Phase: string(s.Phase), Detail: said}
		}
	}
	h.healthAnswer(w, health)
}

// ready says whether the task takes requests.
func (h *handlers) ready(w http.ResponseWriter, r *http.Request) {
	s := h.task.Engine().Status()
	health := Health{OK: s.Ready, Source: "driver", Phase: string(s.Phase), Detail: s.AppStatus}
	if s.Ready {
		if status, said, err := h.app.get(r.Context(), "/retinue/v1/ready"); err == nil && status != http.StatusNotFound {
			health = Health{OK: status/100 == 2, Source: "application", Phase: string(s.Phase), Detail: said}
		}
	}
	h.healthAnswer(w, health)
}

func (h *handlers) healthAnswer(w http.ResponseWriter, health Health) {
	status := http.StatusOK
	if !health.OK {
		status = http.StatusServiceUnavailable
	}
	answer(w, status, health)
}

func (h *handlers) config(w http.ResponseWriter, r *http.Request) {
	if h.app.pass(w, r, "/config") {
		return
	}
	answer(w, http.StatusOK, map[string]any{"source": "driver", "config": Redact(h.task.Config())})
}

func (h *handlers) state(w http.ResponseWriter, r *http.Request) {
	meta, err := h.task.State(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, meta)
}

// operate answers a verb of the lifecycle when it has ended.
func (h *handlers) operate(do func(*lifecycle.Engine, context.Context) (string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		detail, err := do(h.task.Engine(), r.Context())
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, http.StatusOK, Done{string(h.task.Engine().Status().Phase), detail, time.Since(begun).Milliseconds()})
	}
}

// maxTail bounds how much of a log is read back, in bytes.
const maxTail = 64 << 20

func (h *handlers) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	stream := q.Get("stream")
	if stream == "" {
		stream = "stdout"
	}
	tail, err := strconv.ParseInt(or(q.Get("tail"), "65536"), 10, 64)
	follow, errFollow := strconv.ParseBool(or(q.Get("follow"), "false"))
	if !slices.Contains([]string{"stdout", "stderr"}, stream) || err != nil || tail < 0 || tail > maxTail || errFollow != nil {
		refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("stream=%s tail=%s follow=%s", stream, q.Get("tail"), q.Get("follow")),
			"stream is stdout or stderr, tail a number of bytes up to 67108864, follow true or false")
		return
	}
	log, err := h.task.Logs(r.Context(), stream, tail, follow)
	if err != nil {
		fail(w, err)
		return
	}
	defer log.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.Copy(flushing{w, http.NewResponseController(w)}, log) // ends with the client or with the log
}

// flushing sends every piece at once.
type flushing struct {
	w io.Writer
	c *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		if err = f.c.Flush(); errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	return n, err
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// limitError is a count above what the job allows.
type limitError struct{ message string }

func (l *limitError) Error() string { return l.message }

func (h *handlers) replicate(w http.ResponseWriter, r *http.Request) {
	var req ReplicateRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil || (req.Count > 0) == (req.Add > 0) || req.Count < 0 || req.Add < 0 {
		refuse(w, http.StatusBadRequest, "bad_request", "say either how many there should be or how many more", `send {"count": 3} or {"add": 1}`)
		return
	}
	limit := h.cfg.MaxReplicas
	if limit == 0 {
		refuse(w, http.StatusForbidden, "limit", "this task may not replicate itself", "set max_replicas in its lifecycle block")
		return
	}
	before, after, err := h.task.Replicate(r.Context(), func(now int) (int, error) {
		want := req.Count
		if req.Add > 0 {
			want = now + min(req.Add, limit+1)
		}
		if want > limit {
			return 0, hint.Wrap(&limitError{fmt.Sprintf("%d replicas, %d are allowed; there are %d", want, limit, now)}, "raise max_replicas in the lifecycle block")
		}
		if want < now {
			return 0, hint.Wrap(&limitError{fmt.Sprintf("%d replicas are fewer than there are (%d)", want, now)}, "a task only scales up; `nomad job scale` does both")
		}
		return want, nil
	})
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, Scaled{before, after, limit})
}

// Redact takes values out of a configuration whose names say that they are secret, and all of the environment's.
func Redact(config map[string]any) map[string]any {
	out := make(map[string]any, len(config))
	for name, value := range config {
		out[name] = redact(name, value)
	}
	return out
}

const redacted = "(not shown)"

func redact(name string, value any) any {
	lower := strings.ToLower(name)
	for _, word := range []string{"password", "passwd", "secret", "token", "credential", "private", "auth", "apikey", "api_key", "env"} {
		if !strings.Contains(lower, word) {
			continue
		}
		if m, ok := value.(map[string]any); ok { // which names there are is no secret
			out := make(map[string]any, len(m))
			for k := range m {
				out[k] = redacted
			}
			return out
		}
		return redacted
	}
	switch v := value.(type) {
	case map[string]any:
		return Redact(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = redact("", v[i])
		}
		return out
	case []map[string]any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = Redact(v[i])
		}
		return out
	}
	return value
}

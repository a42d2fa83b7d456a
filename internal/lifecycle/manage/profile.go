package manage

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kinds of profile. The first ones are net/http/pprof's, and only the application can give them; threads and network the
// driver reads from /proc.
var (
	pprofKinds  = []string{"cpu", "heap", "allocs", "goroutine", "threadcreate", "mutex", "block", "trace"}
	driverKinds = []string{"threads", "network"}
)

// maxSeconds bounds how long a profile is taken.
const maxSeconds = 300

func after(ctx context.Context, d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	timer := time.AfterFunc(d, func() { close(done) })
	context.AfterFunc(ctx, func() { timer.Stop() })
	return done
}

// expected is how long the application may work before it answers.
func (a *app) expected(r *http.Request) time.Duration {
	seconds, err := strconv.Atoi(r.URL.Query().Get("seconds"))
	if err != nil || seconds < 0 || seconds > maxSeconds {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

func (h *handlers) profile(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	kind := or(q.Get("kind"), "threads")
	seconds := or(q.Get("seconds"), "5")
	n, err := strconv.Atoi(seconds)
	if !slices.Contains(pprofKinds, kind) && !slices.Contains(driverKinds, kind) || err != nil || n < 1 || n > maxSeconds {
		refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("kind=%s seconds=%s", kind, seconds),
			fmt.Sprintf("kind is one of %s; seconds between 1 and %d", strings.Join(append(slices.Clone(driverKinds), pprofKinds...), ", "), maxSeconds))
		return
	}
	if slices.Contains(pprofKinds, kind) {
		h.pprof(w, r, kind, seconds, q.Get("debug"))
		return
	}
	pids, err := h.task.Pids(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	if kind == "network" {
		text, err := network(pids)
		h.text(w, text, err)
		return
	}
	text, err := h.threads(r.Context(), pids)
	h.text(w, text, err)
}

func (h *handlers) pprof(w http.ResponseWriter, r *http.Request, kind, seconds, debug string) {
	values := url.Values{}
	name := kind
	switch kind {
	case "cpu":
		name = "profile"
		values.Set("seconds", seconds)
	case "trace":
		values.Set("seconds", seconds)
	default:
		if debug == "1" || debug == "2" {
			values.Set("debug", debug)
		}
	}
	if kind == "cpu" || kind == "trace" {
		// The default has to be waited for as well.
		r = r.Clone(r.Context())
		q := r.URL.Query()
		q.Set("seconds", seconds)
		r.URL.RawQuery = q.Encode()
	}
	if h.app.pass(w, r, "/debug/pprof/"+name+"?"+values.Encode()) {
		return
	}
	refuse(w, http.StatusNotFound, "no_profile", "the application has no "+kind+" profile on its socket",
		"serve /debug/pprof/ on $RETINUE_SOCK, or ask for kind=threads, which needs nothing of the application")
}

func (h *handlers) text(w http.ResponseWriter, text string, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Retinue-Source", "driver")
	_, _ = w.Write([]byte(text))
}

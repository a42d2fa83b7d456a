package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// leaf answers the root:
//
//	GET /q?q=WORDS&k=10   200 {"hits": [{"id", "score", "title"}]}, 204 when this shard has nothing
//	GET /health           200 when the index is built, 503 before
type leaf struct{ index atomic.Pointer[index] }

func (l *leaf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ix := l.index.Load()
	switch {
	case ix == nil: // another replica may be ready
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the index is being built", http.StatusServiceUnavailable)
	case r.URL.Path == "/health":
		fmt.Fprintf(w, "%d documents\n", ix.documents)
	case r.URL.Path == "/q":
		l.query(ix, w, r)
	default:
		http.NotFound(w, r)
	}
}

func (l *leaf) query(ix *index, w http.ResponseWriter, r *http.Request) {
	ctx := r.Context() // ends when the root hangs up: it has its answer, or nobody waits
	if ms, err := strconv.Atoi(r.Header.Get("Retinue-Deadline-Ms")); err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
		defer cancel()
	}
	k, err := strconv.Atoi(r.URL.Query().Get("k"))
	if err != nil || k < 1 || k > 1000 {
		k = 10
	}
	hits, err := ix.search(ctx, r.URL.Query().Get("q"), k)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		http.Error(w, "too late", http.StatusGatewayTimeout)
		return
	case errors.Is(err, context.Canceled):
		return
	case err != nil:
		log.Printf("query %q: %v", r.URL.Query().Get("q"), err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if ix.unreadable > 0 {
		w.Header().Set("Retinue-Coverage", fmt.Sprintf("%.6f", float64(ix.documents)/float64(ix.documents+ix.unreadable)))
	}
	if len(hits) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"hits": hits})
}

package coordinator

import (
	"fmt"
	"net/http"
	"strings"

	"retinue/coordinator/source"
)

// Door returns the part of the HTTP interface that publishes, for queues without a coordinator at hand: `retinue queue put` works where
// nobody works yet, and puts into the first of names. It knows nothing of how items end.
func Door(classes int, names []string, queues map[string]source.Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/queues", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, Queues{names}) })
	mux.HandleFunc("POST /v1/queues/{queue}/items", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("queue")
		switch {
		case queues[name] == nil:
			refuse(w, http.StatusNotFound, "unknown_queue", fmt.Sprintf("here are the queues %s, not %q", strings.Join(names, ", "), name))
			return
		case r.URL.Query().Get("wait") != "":
			refuse(w, http.StatusBadRequest, "bad_request", "items are taken here, and their ends are not known: ask a coordinator, or put without a wait")
			return
		}
		a := &handlers{&Coordinator{cfg: Config{Queue: name, Classes: classes}, queues: queues}}
		a.put(w, r)
	})
	return http.NewCrossOriginProtection().Handler(mux)
}

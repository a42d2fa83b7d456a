package coordinator

import (
	"net/http"

	"retinue/coordinator/source"
)

// Door returns the part of the HTTP interface that publishes, for a queue without a coordinator at hand: `retinue queue put` works where
// nobody works yet. It knows nothing of how items end.
func Door(queue string, classes int, src source.Source) http.Handler {
	a := &handlers{&Coordinator{cfg: Config{Queue: queue, Classes: classes}, queues: map[string]source.Source{queue: src}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/queues", a.queues)
	mux.HandleFunc("POST /v1/queues/{queue}/items", a.queue(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("wait") != "" {
			refuse(w, http.StatusBadRequest, "bad_request", "items are taken here, and their ends are not known: ask a coordinator, or put without a wait")
			return
		}
		a.put(w, r)
	}))
	return http.NewCrossOriginProtection().Handler(mux)
}

package broker

import (
	"fmt"
	"net"
	"net/http"
	"time"
)

// tell answers GET /health at an address: 200 when this broker has all that it is to have, else 503, with the reason in JSON. Of
// three brokers one that is new has to get its copy first; the next one must not be replaced before. It asks for no password, and
// tells no more than the name of the queue that is not whole.
func (b *Broker) tell(addr string) error {
	if addr == "" {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("health: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		r.URL.RawQuery = "" // it could ask for less than all, or for details
		b.srv.HandleHealthz(w, r)
	})
	const patience = 5 * time.Second
	b.health = &http.Server{Handler: mux, ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: time.Minute}
	go b.health.Serve(l) // ends with Close
	return nil
}

package leaderelection

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Write is what the leading application asks the store to keep.
type Write struct {
	Token  uint64 `json:"token"`  // fencing token of the writer's leadership
	Writer string `json:"writer"` // allocation ID of the writer
	Seq    uint64 `json:"seq"`    // number of the write, counted by the client
}

// accepted is a write as the store has it, with the time of its arrival.
type accepted struct {
	Write
	at time.Time
}

// store is the resource that the leader protects: a log that accepts a write
// only under the highest fencing token that it has seen. That is the check
// which every resource has to make itself; see "How to do distributed locking"
// (Kleppmann 2016).
type store struct {
	mu      sync.Mutex
	highest uint64
	log     []accepted
	stale   []Write // refused, in order
}

// put keeps the write, or refuses it and returns false with the highest token.
func (s *store) put(w Write) (highest uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.Token < s.highest {
		s.stale = append(s.stale, w)
		return s.highest, false
	}
	s.highest = w.Token
	s.log = append(s.log, accepted{Write: w, at: time.Now()})
	return s.highest, true
}

// history returns copies of the accepted and of the refused writes.
func (s *store) history() ([]accepted, []Write) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]accepted(nil), s.log...), append([]Write(nil), s.stale...)
}

// ServeHTTP takes POST /writes: 200 kept, 412 refused because a newer leader has written.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/writes" {
		http.NotFound(w, r)
		return
	}
	var write Write
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&write); err != nil {
		http.Error(w, fmt.Sprintf("decode write: %v", err), http.StatusBadRequest)
		return
	}
	highest, ok := s.put(write)
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusPreconditionFailed)
	}
	_ = json.NewEncoder(w).Encode(map[string]uint64{"highest_token": highest})
}

// serve answers on host (loopback, or the gateway of the node's own bridge)
// until stop is called, and returns the base address.
func (s *store) serve(host string) (base string, stop func(), err error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", nil, fmt.Errorf("listen for the demo store: %w", err)
	}
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	return "http://" + ln.Addr().String(), func() { _ = srv.Close() }, nil
}

package gather

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// stream writes an answer to the client while leaves are still answering. The merge's goroutine writes; the request's owner may
// cut it off.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController

	mu      sync.Mutex
	status  int
	stopped bool
}

// trailerNames are the headers that are known only at the end of a stream.
var trailerNames = []string{"Retinue-Coverage", "Retinue-Shards", "Retinue-Degraded", "Retinue-Hedges", "Server-Timing"}

func newStream(a *answering) *stream {
	return &stream{w: a.w, rc: http.NewResponseController(a.w)}
}

// begin writes the header, once.
func (s *stream) begin(status int, h http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status != 0 || s.stopped {
		return
	}
	s.status = status
	for name, values := range h {
		s.w.Header()[name] = values
	}
	s.w.Header()["Trailer"] = trailerNames
	s.w.Header()["Cache-Control"] = []string{"no-store"} // whether it is whole is not known yet
	s.w.WriteHeader(status)
}

// Write implements io.Writer: what is written reaches the client at once.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return 0, io.ErrClosedPipe
	}
	n, err := s.w.Write(p)
	if err == nil {
		err = s.rc.Flush()
	}
	return n, err
}

// stop keeps the stream from beginning, and says whether it has begun already.
func (s *stream) stop() (begun bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	return s.status != 0
}

// cut makes a write that hangs on a slow client return.
func (s *stream) cut() {
	if s.stop() {
		s.rc.SetWriteDeadline(time.Unix(1, 0))
	}
}

// trailers are where the final numbers go.
func (s *stream) trailers() http.Header { return s.w.Header() }

// pass copies a stream to the client as it comes.
func pass(w http.ResponseWriter, r io.Reader) error {
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if ferr := rc.Flush(); ferr != nil {
				return ferr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

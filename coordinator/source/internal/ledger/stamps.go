package ledger

import (
	"sync"
	"time"
)

// Stamps are the times of publication of one source. Each is later than the one before, also where the clock tells the same time
// twice or goes back. The zero value is ready.
type Stamps struct {
	mu   sync.Mutex
	last int64
}

// Next is the time now, or just after the last where that is later.
func (s *Stamps) Next() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(time.Now().UnixNano(), s.last+1)
	return time.Unix(0, s.last)
}

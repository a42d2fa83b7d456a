package gather

import (
	"context"
	"sync"
)

// Memory bounds what all requests hold: bodies, and what their leaf calls take. Who wants more than there is waits: a leaf is then read more slowly, and the
// request's deadline decides. One request at a time may go beyond the bound, by one body after the other: otherwise many that are
// half read would wait for each other. It goes on with the next body when one was given back, or is kept to the request's end.
type Memory struct {
	limit   int64
	buffers buffers

	mu    sync.Mutex
	used  int64
	over  *claim        // of the request that may go beyond the bound
	body  *hold         // its body that does
	freed chan struct{} // closed when something is given back; nil while nobody waits
}

// NewMemory returns a bound of so many bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }

// claim is what one request holds, in bytes, and the most it held so far. Its memory's lock guards it.
type claim struct{ bytes, most int64 }

// hold is what one body takes. Its zero value holds nothing.
type hold struct {
	memory *Memory
	of     *claim
	bytes  int64
}

// grow takes bytes until h has n of them.
func (h *hold) grow(ctx context.Context, n int64) error {
	m := h.memory
	for {
		m.mu.Lock()
		more := n - h.bytes
		if m.used+more > m.limit && m.body == nil && (m.over == nil || m.over == h.of) {
			m.over, m.body = h.of, h
		}
		if m.used+more <= m.limit || m.body == h {
			m.used += more
			h.of.bytes += more
			h.of.most = max(h.of.most, h.of.bytes)
			h.bytes = n
			m.mu.Unlock()
			return nil
		}
		if m.freed == nil {
			m.freed = make(chan struct{})
		}
		freed := m.freed
		m.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release gives everything back.
func (h *hold) release() {
	m := h.memory
	if m == nil || h.bytes == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= h.bytes
	h.of.bytes -= h.bytes
	h.bytes = 0
	if m.body == h {
		m.body = nil
	}
	if m.over == h.of && h.of.bytes == 0 {
		m.over = nil
	}
	m.wake()
}

// keep says that a body which is read is kept to the request's end: only then can the next one go on.
func (h *hold) keep() {
	m := h.memory
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.body == h {
		m.body = nil
		m.wake()
	}
}

func (m *Memory) wake() {
	if m.freed != nil {
		close(m.freed)
		m.freed = nil
	}
}

// goesBeyond says whether it is this request that may go beyond the bound.
func (m *Memory) goesBeyond(of *claim) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.over == of
}

// most returns the most that a request held.
func (m *Memory) most(of *claim) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return of.most
}

// Used returns what is held now.
func (m *Memory) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

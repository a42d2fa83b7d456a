package gather

import (
	"context"
	"sync"
	"testing"
	"time"
)

// TestMemoryEndsNobodysProgress: many requests with many bodies each want several times what there is. Each holds what it has until
// it has all, as a root does; all of them come to their end.
func TestMemoryEndsNobodysProgress(t *testing.T) {
	const requests, bodies, chunks, chunk = 32, 8, 5, 1 << 10
	m := NewMemory(requests * bodies * chunk) // of each body the first chunk fits
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for range requests {
		all.Go(func() {
			var of claim
			var reading sync.WaitGroup
			holds := make([]hold, bodies)
			for i := range holds {
				holds[i] = hold{memory: m, of: &of}
				reading.Go(func() {
					for n := int64(1); n <= chunks; n++ {
						if err := holds[i].grow(ctx, n*chunk); err != nil {
							t.Errorf("a body waits for ever: %v", err)
							return
						}
						time.Sleep(time.Millisecond)
					}
					holds[i].keep()
				})
			}
			reading.Wait()
			for i := range holds {
				holds[i].release()
			}
		})
	}
	all.Wait()
	if m.Used() != 0 || m.over != nil || m.body != nil {
		t.Errorf("%d bytes are still held, beyond the bound: %v", m.Used(), m.over)
	}
}

package gather

import (
	"math/bits"
	"sync"
)

// buffers keep the memory of bodies that were given back for those that come next. Large bodies are most of what a root allocates,
// and the garbage collector would let its heap grow beyond what Memory counts before it finds them. What nobody takes, it frees.
//
// There is a pool for each size, in sixteenths of a power of two: hardly more is taken than was counted.
type buffers struct {
	pools [(maxBufferPower - minBufferPower) * bufferSteps]sync.Pool // of *[]byte
}

const (
	minBufferPower = 12 // sizes above 4 KiB: below, it is not worth it
	maxBufferPower = 24 // and up to 16 MiB: above, bodies are too rare
	bufferSteps    = 16
)

// sizeOf returns the size that has room for n bytes, and its pool.
func (b *buffers) sizeOf(n int64) (size int64, pool *sync.Pool) {
	power := bits.Len64(uint64(max(n, 1)-1)) - 1 // that of the largest power of two below n
	if power < minBufferPower || power >= maxBufferPower {
		return n, nil
	}
	step := int64(1) << power / bufferSteps
	steps := (n - int64(1)<<power + step - 1) / step
	return int64(1)<<power + steps*step, &b.pools[(power-minBufferPower)*bufferSteps+int(steps)-1]
}

// get returns an empty body with room for n bytes.
func (b *buffers) get(n int64) []byte {
	size, pool := b.sizeOf(n)
	if pool != nil {
		if body, ok := pool.Get().(*[]byte); ok {
			return (*body)[:0]
		}
	}
	return make([]byte, 0, size)
}

// put gives a body back, which nobody may use any more.
func (b *buffers) put(body []byte) {
	if size, pool := b.sizeOf(int64(cap(body))); pool != nil && size == int64(cap(body)) {
		pool.Put(&body)
	}
}

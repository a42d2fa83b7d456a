package gather

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// callBytes is what a leaf call takes besides its body: a connection with its buffers, the stacks of three goroutines, headers.
const callBytes = 40 << 10

// Admission bounds the requests under way by what they are going to hold: their leaf calls, and answers of the size that is usual.
// Requests that do not fit wait in line. Without it, all of them would begin, fill the memory with answers that are half read, and
// none would come to its end but the one that may go beyond the bound.
type Admission struct {
	limit  int64
	memory *Memory
	room   *semaphore.Weighted // first come, first served
	usual  atomic.Int64        // bytes of bodies for each leaf call of late
}

// unknownShare is for how many answers of one call there is room before it is known how large they are.
const unknownShare = 1024

// NewAdmission returns an admission to memory. It plans with three quarters of it: some answers are larger than usual, and what was
// given back is free only when the garbage collector has been there.
func NewAdmission(memory *Memory) *Admission {
	limit := memory.limit * 3 / 4
	a := &Admission{limit: limit, memory: memory, room: semaphore.NewWeighted(limit)}
	a.usual.Store(memory.limit / unknownShare)
	return a
}

// admit waits until there is room for a request with so many leaf calls, which then has to leave. One that needs more than there is
// at all is admitted alone.
func (a *Admission) admit(ctx context.Context, of *claim, calls int) (leave func(), err error) {
	fixed := int64(calls) * callBytes
	need := min(fixed+int64(calls)*a.usual.Load(), a.limit)
	if a.memory.goesBeyond(of) { // with its body: others wait for it, so it must not stand in line behind them
		need = 0
	} else if err := a.room.Acquire(ctx, need); err != nil {
		return nil, err
	}
	held := hold{memory: a.memory, of: of}
	if err := held.grow(ctx, fixed); err != nil {
		a.room.Release(need)
		return nil, err
	}
	held.keep()
	return func() {
		a.learn((a.memory.most(of) - fixed) / int64(max(calls, 1)))
		held.release()
		a.room.Release(need)
	}, nil
}

// learn follows a larger size at once, and a smaller one an eighth of the way. Two at once may lose a step: it is an estimate.
func (a *Admission) learn(perCall int64) {
	usual := a.usual.Load()
	a.usual.Store(max(perCall, usual+(perCall-usual)/8))
}

package gather

import (
	"context"
	"io"
	"net/http"
	"time"
)

// answer is what one leaf said. Whoever takes it releases its memory.
type answer struct {
	shard    int
	status   int
	header   http.Header
	body     []byte
	coverage float64
	took     time.Duration
	replica  string

	item any // what a built-in merge made of the body

	hold hold
}

// release gives its memory back: neither the body nor an item that is a part of it may be used any more.
func (a *answer) release() {
	if a == nil {
		return
	}
	if m := a.hold.memory; m != nil {
		m.buffers.put(a.body)
		a.body, a.item = nil, nil
	}
	a.hold.release()
}

// ending is what a merge is told when there is nothing more to come.
type ending struct {
	reason   string // complete, policy or deadline
	coverage Coverage
	shards   []ShardProblem // those that are not whole
}

// The reasons of an ending.
const (
	reasonComplete = "complete"
	reasonPolicy   = "policy"
	reasonDeadline = "deadline"
)

// reply is the answer for the client: parts of a body, then the rest of a stream.
type reply struct {
	status int
	header http.Header
	parts  [][]byte
	rest   io.ReadCloser
}

func (r *reply) close() {
	if r != nil && r.rest != nil {
		r.rest.Close()
	}
}

// merger makes one answer of many, for one request. prepare is called by many goroutines at once, everything else by the one that
// owns the request.
type merger interface {
	// prepare reads a body; an error is a failure of that shard.
	prepare(a *answer) error
	// add takes an answer. It does not block.
	add(a *answer)
	// early is closed when the merge is done before the end, well or not.
	early() <-chan struct{}
	// failed says, after early, why there will be no answer; nil when there is one.
	failed() error
	// finish returns the answer, which is nil when it was streamed to the client already.
	finish(ctx context.Context, end ending) (*reply, error)
	// close ends the merge and gives back what it holds. After a finish without error, the reply is read before.
	close()
}

// newMerger starts the merge of one request. out is where an answer is streamed to; nil when it is not.
func (root *Root) newMerger(ctx context.Context, req *request, out *stream) merger {
	spec := root.cfg.Merge
	if spec.Kind == MergeContainer {
		return root.newContainer(ctx, req, out)
	}
	if req.method == http.MethodHead && spec.Kind != MergeFirst {
		return &headMerge{}
	}
	switch spec.Kind {
	case MergeArray:
		return &arrayMerge{}
	case MergeSum:
		return &sumMerge{}
	case MergeTopK:
		return &topKMerge{spec: spec}
	case MergeFirst:
		return &firstMerge{done: make(chan struct{})}
	}
	if out != nil {
		return newConcatStream(out)
	}
	return &concatMerge{}
}

// held is what built-in merges that need all answers have in common.
type held struct{ answers []*answer }

func (h *held) add(a *answer) {
	if a.status != http.StatusNoContent {
		a.hold.keep()
		h.answers = append(h.answers, a)
	}
}

func (h *held) early() <-chan struct{} { return nil }

func (h *held) failed() error { return nil }

func (h *held) close() {
	for _, a := range h.answers {
		a.release()
	}
	h.answers = nil
}

func jsonReply(parts ...[]byte) *reply {
	return &reply{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}}, parts: parts}
}

// headMerge answers HEAD: there are no bodies to merge.
type headMerge struct{ held }

func (*headMerge) prepare(*answer) error { return nil }

func (*headMerge) finish(context.Context, ending) (*reply, error) {
	return &reply{status: http.StatusOK, header: http.Header{}}, nil
}

package gather

import (
	"context"
	"errors"
	"net/http"
)

// firstMerge passes the first answer on as it is.
type firstMerge struct {
	answer *answer
	done   chan struct{}
}

func (*firstMerge) prepare(*answer) error { return nil }

func (m *firstMerge) add(a *answer) {
	if m.answer != nil {
		a.release()
		return
	}
	a.hold.keep()
	m.answer = a
	close(m.done)
}

func (m *firstMerge) early() <-chan struct{} { return m.done }

func (m *firstMerge) failed() error { return nil }

func (m *firstMerge) finish(context.Context, ending) (*reply, error) {
	if m.answer == nil {
		return nil, errors.New("no leaf answered") // the policy, quorum(1), does not let it come to this unless no shard is needed
	}
	return &reply{status: m.answer.status, header: passOn(m.answer.header), parts: [][]byte{m.answer.body}}, nil
}

func (m *firstMerge) close() { m.answer.release() }

// passOn copies the end-to-end headers of an answer.
func passOn(h http.Header) http.Header {
	out := make(http.Header, len(h))
	for name, values := range h {
		if !ownHeader(name) && name != "Server-Timing" && name != "Date" {
			out[name] = values
		}
	}
	return out
}

package gather

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// concatMerge puts all lines of all leaves behind each other, in the order of arrival.
type concatMerge struct{ held }

func (*concatMerge) prepare(a *answer) error { return prepareLines(a) }

// prepareLines makes whole lines of a body. JSON, which may span lines, becomes one line for each element.
func prepareLines(a *answer) error {
	if !isJSON(a.header.Get("Content-Type")) {
		if n := len(a.body); n > 0 && a.body[n-1] != '\n' {
			a.body = append(a.body, '\n')
		}
		a.item = a.body
		return nil
	}
	values, err := jsonValues(a.body)
	if err != nil {
		return err
	}
	var lines bytes.Buffer
	for _, v := range values {
		if err := json.Compact(&lines, v); err != nil {
			return err
		}
		lines.WriteByte('\n')
	}
	a.item = lines.Bytes()
	return nil
}

var linesHeader = http.Header{"Content-Type": {"application/x-ndjson"}}

func (m *concatMerge) finish(context.Context, ending) (*reply, error) {
	r := &reply{status: http.StatusOK, header: linesHeader, parts: make([][]byte, 0, len(m.answers))}
	for _, a := range m.answers {
		r.parts = append(r.parts, a.item.([]byte))
	}
	return r, nil
}

func isJSON(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	return media == "application/json" || strings.HasSuffix(media, "+json")
}

// jsonValues reads JSON values that follow each other; an array at the top gives its elements.
func jsonValues(body []byte) ([]json.RawMessage, error) {
	var values []json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(body))
	for {
		var v json.RawMessage
		if err := dec.Decode(&v); err == io.EOF {
			return values, nil
		} else if err != nil {
			return nil, fmt.Errorf("body is not JSON: %w", err)
		}
		if v[0] != '[' {
			values = append(values, v)
			continue
		}
		var elements []json.RawMessage
		if err := json.Unmarshal(v, &elements); err != nil {
			return nil, fmt.Errorf("body is not JSON: %w", err)
		}
		values = append(values, elements...)
	}
}

// concatStream is concatMerge for --stream: lines go to the client as they come, written by a goroutine of its own, because a
// slow client must not delay the request's owner.
type concatStream struct {
	out   *stream
	queue queue
	ended chan struct{}
	err   error
}

func newConcatStream(out *stream) *concatStream {
	m := &concatStream{out: out, ended: make(chan struct{})}
	m.queue.init()
	go func() {
		defer close(m.ended)
		for {
			batch, more := m.queue.take()
			for _, a := range batch {
				if m.err == nil {
					out.begin(http.StatusOK, linesHeader)
					_, m.err = out.Write(a.item.([]byte))
				}
				a.release()
			}
			if !more {
				return
			}
		}
	}()
	return m
}

func (*concatStream) prepare(a *answer) error { return prepareLines(a) }

func (m *concatStream) add(a *answer) {
	if a.status == http.StatusNoContent {
		a.release()
		return
	}
	m.queue.put(a)
}

func (m *concatStream) early() <-chan struct{} { return nil }

func (m *concatStream) failed() error { return nil }

func (m *concatStream) finish(ctx context.Context, _ ending) (*reply, error) {
	m.queue.end()
	select {
	case <-m.ended:
	case <-ctx.Done():
		m.out.cut() // the client reads too slowly
		<-m.ended
		return nil, ctx.Err()
	}
	m.out.begin(http.StatusOK, linesHeader)
	return nil, m.err
}

func (m *concatStream) close() {
	m.queue.end()
	select {
	case <-m.ended:
	default:
		m.out.cut()
		<-m.ended
	}
}

// queue hands answers from a request's owner to the goroutine that writes them. It never blocks the owner; what it can hold is
// bounded by the memory of the answers.
type queue struct {
	mu     sync.Mutex
	some   sync.Cond
	items  []*answer
	closed bool
}

func (q *queue) init() { q.some.L = &q.mu }

func (q *queue) put(a *answer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		a.release()
		return
	}
	q.items = append(q.items, a)
	q.some.Signal()
}

func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.some.Signal()
}

// take waits for answers, and says whether more may come.
func (q *queue) take() (batch []*answer, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.some.Wait()
	}
	batch, q.items = q.items, nil
	return batch, !q.closed
}

package gather

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
)

// earlyBuffer is how much of an answer is read ahead, to see whether it is complete before the leaves are.
const earlyBuffer = 64 << 10

// container is a merge by the user's container: one request to it, whose body goes on while leaves answer.
type container struct {
	root   *Root
	req    *request
	ctx    context.Context
	cancel context.CancelFunc
	out    *stream // nil: the answer waits for the leaves
	first  []byte  // the request, encoded

	answers []*answer // of a batch
	queue   queue     // of the other formats
	pipe    *io.PipeWriter
	ending  *ending // set before the queue ends

	sent     bool          // there is an exchange; the rest is valid when it is over
	complete chan struct{} // closed when nothing of the answer is to come any more, be it whole or an error
	over     chan struct{} // closed when the answer is read as far as the buffer goes
	reply    *reply
	err      error
}

// newContainer opens the request to the merge container. A batch is sent at the end only.
func (root *Root) newContainer(ctx context.Context, req *request, out *stream) *container {
	m := &container{root: root, req: req, out: out, complete: make(chan struct{}), over: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(ctx)
	m.first, _ = json.Marshal(map[string]RequestLine{"request": root.requestLine(req)}) // strings and numbers only: it cannot fail
	if root.cfg.Merge.Format == FormatBatch {
		return m
	}
	m.queue.init()
	body, pipe := io.Pipe()
	m.pipe = pipe
	contentType := "application/x-ndjson"
	var parts *multipart.Writer
	if root.cfg.Merge.Format == FormatMultipart {
		parts = multipart.NewWriter(pipe)
		contentType = "multipart/mixed; boundary=" + parts.Boundary()
	}
	m.sent = true
	r := m.request(contentType, body)
	go m.exchange(r.WithContext(endWith(r.Context(), body, m.over)))
	go m.write(parts)
	return m
}

func (m *container) request(contentType string, body io.Reader) *http.Request {
	req := m.req
	r, _ := http.NewRequestWithContext(m.ctx, http.MethodPost, m.root.merge.url, body) // the URL was checked with the configuration
	r.Header = http.Header{"Content-Type": {contentType}, "Retinue-Request-Id": {req.id}, "Traceparent": {req.trace.Span()},
		"Retinue-Deadline-Ms": {FormatDeadline(req.deadline.Total - m.root.clock.Now().Sub(req.start))}, "User-Agent": {"retinue"}}
	return r
}

// write sends the request, the answers as they come, and the end.
func (m *container) write(parts *multipart.Writer) {
	failed := m.send(parts, m.first, nil) != nil
	for {
		batch, more := m.queue.take()
		for _, a := range batch {
			if !failed {
				failed = m.sendAnswer(parts, a) != nil
			}
			a.release()
		}
		if more {
			continue
		}
		end := m.ending
		if end == nil || failed {
			m.pipe.CloseWithError(errAbandoned) // no end line: the merge sees a body that was cut off
			return
		}
		if m.send(parts, endLine(end), nil) == nil && parts != nil {
			parts.Close()
		}
		m.pipe.Close()
		return
	}
}

var errAbandoned = errors.New("the request was abandoned")

// send writes one object: a line, or a part.
func (m *container) send(parts *multipart.Writer, object []byte, a *answer) error {
	if parts == nil {
		_, err := m.pipe.Write(append(object, '\n'))
		return err
	}
	h := textproto.MIMEHeader{"Retinue-Part": {string(object)}}
	var body []byte
	if a != nil {
		body = a.body
		if ct := a.header.Get("Content-Type"); ct != "" {
			h.Set("Content-Type", ct)
		}
	}
	w, err := parts.CreatePart(h)
	if err == nil {
		_, err = w.Write(body)
	}
	return err
}

func (m *container) sendAnswer(parts *multipart.Writer, a *answer) error {
	object, err := leafLine(a, parts == nil)
	if err != nil {
		return err
	}
	return m.send(parts, object, a)
}

// LeafLine is one leaf's answer as the merge gets it.
type LeafLine struct {
	Shard    int               `json:"shard"`
	Status   int               `json:"status"`
	MS       float64           `json:"ms"`
	Replica  string            `json:"replica"`
	Coverage float64           `json:"coverage"`
	Headers  map[string]string `json:"headers"`
	Encoding string            `json:"encoding,omitempty"`
	Body     json.RawMessage   `json:"body,omitempty"`
}

func leafLine(a *answer, body bool) ([]byte, error) {
	line := LeafLine{Shard: a.shard, Status: a.status, MS: ms(a.took), Replica: a.replica, Coverage: a.coverage, Headers: flat(a.header)}
	if body && len(a.body) > 0 {
		line.Body, line.Encoding = encodeBody(a.header.Get("Content-Type"), a.body)
	}
	return json.Marshal(line)
}

// EndLine is the last thing that a merge gets.
type EndLine struct {
	End      bool           `json:"end"`
	Reason   string         `json:"reason"`
	Coverage CoverageLine   `json:"coverage"`
	Shards   []ShardProblem `json:"shards,omitempty"`
}

// CoverageLine is a coverage as JSON.
type CoverageLine struct {
	Fraction float64 `json:"fraction"`
	Total    int     `json:"total"`
	OK       int     `json:"ok"`
	Empty    int     `json:"empty"`
	Partial  int     `json:"partial"`
	Timeout  int     `json:"timeout"`
	Failed   int     `json:"failed"`
	Missing  int     `json:"missing"`
	Skipped  int     `json:"skipped"`
}

func (c Coverage) line() CoverageLine {
	return CoverageLine{c.Fraction(), c.Total, c.OK, c.Empty, c.Partial, c.Timeout, c.Failed, c.Missing, c.Skipped}
}

func endLine(end *ending) []byte {
	b, _ := json.Marshal(EndLine{End: true, Reason: end.reason, Coverage: end.coverage.line(), Shards: end.shards}) // it cannot fail
	return b
}

// exchange sends the request and reads the answer as far ahead as the buffer goes.
func (m *container) exchange(req *http.Request) {
	defer close(m.over)
	resp, err := m.root.merge.transport.RoundTrip(req)
	if err == nil && resp.StatusCode >= 500 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		resp.Body.Close()
		err = fmt.Errorf("status %d: %s", resp.StatusCode, bytes.TrimSpace(text))
	}
	if err != nil {
		m.err = err
		close(m.complete)
		return
	}
	m.reply = &reply{status: resp.StatusCode, header: passOn(resp.Header)}
	if m.out != nil {
		m.out.begin(resp.StatusCode, m.reply.header)
		_, m.err = io.Copy(m.out, resp.Body)
		resp.Body.Close()
		close(m.complete)
		return
	}
	head, err := readAhead(resp.Body)
	m.reply.parts = [][]byte{head}
	if err == nil {
		m.reply.rest = resp.Body // there is more
		return
	}
	resp.Body.Close()
	if err != io.EOF {
		m.err = err
	}
	close(m.complete)
}

// readAhead reads until the buffer is full. io.EOF says that this was all.
func readAhead(r io.Reader) (head []byte, err error) {
	head = make([]byte, 0, 4<<10)
	for len(head) < earlyBuffer {
		if len(head) == cap(head) {
			head = append(head, 0)[:len(head)]
		}
		n, err := r.Read(head[len(head):min(cap(head), earlyBuffer)])
		if head = head[:len(head)+n]; err != nil {
			return head, err
		}
	}
	return head, nil
}

func (*container) prepare(*answer) error { return nil }

func (m *container) add(a *answer) {
	if m.pipe == nil {
		a.hold.keep()
		m.answers = append(m.answers, a)
		return
	}
	m.queue.put(a)
}

func (m *container) early() <-chan struct{} { return m.complete }

func (m *container) failed() error { return m.err }

func (m *container) finish(ctx context.Context, end ending) (*reply, error) {
	if m.pipe == nil {
		if err := m.sendBatch(end); err != nil {
			return nil, err
		}
	} else {
		m.ending = &end
		m.queue.end()
	}
	select {
	case <-m.over:
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer in time: %w", ctx.Err())
	}
	if m.err != nil || m.out != nil {
		return nil, m.err
	}
	return m.reply, nil
}

// sendBatch starts the exchange with everything in one array.
func (m *container) sendBatch(end ending) error {
	var body bytes.Buffer
	body.WriteByte('[')
	body.Write(m.first)
	for _, a := range m.answers {
		line, err := leafLine(a, true)
		if err != nil {
			return err
		}
		body.WriteByte(',')
		body.Write(line)
	}
	body.WriteByte(',')
	body.Write(endLine(&end))
	body.WriteByte(']')
	m.sent = true
	go m.exchange(m.request("application/json", &body))
	return nil
}

func (m *container) close() {
	m.cancel() // the answer was read, or nobody wants it
	for _, a := range m.answers {
		a.release()
	}
	if m.pipe != nil {
		m.pipe.CloseWithError(errAbandoned)
		m.queue.end()
	}
	if !m.sent {
		return
	}
	if m.out == nil {
		go func() { // the transport may need a moment to let go; the client need not wait for that
			<-m.over
			m.reply.close()
		}()
		return
	}
	select {
	case <-m.over:
	default:
		m.out.cut()
		<-m.over // nobody may write to the client after this
	}
}

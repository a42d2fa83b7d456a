// Package sqsfake is a server that speaks Amazon SQS's JSON protocol as
// current SDKs do, for tests and measurements where AWS cannot be had. It
// does what the documents of SQS say about receive counts, visibility and its
// end after 12 hours, redrive, FIFO groups and their deduplication, delays,
// limits of batches and sizes, receipt handles and refused credentials. What
// was sent or deleted and answered is in a journal, so the process may be
// killed; receive counts and visibility begin anew then.
//
// It is not SQS: it never delivers twice without a reason, keeps a strict
// order in standard queues, and its counts are exact.
package sqsfake

import (
	"bufio"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// latency is what a request takes at least.
const latency = 2 * time.Millisecond

// Server is the fake. It is an http.Handler.
type Server struct {
	// Key is the access key that is let in.
	Key string
	// Hold is how long a message may be invisible after its delivery, whatever is asked for: 12 hours at AWS.
	Hold time.Duration

	journal *os.File

	mu      sync.Mutex
	queues  map[string]*queue
	serial  int64
	changed chan struct{}
}

type queue struct {
	name     string
	attrs    map[string]string
	messages []*message
	deduped  map[string]time.Time
}

type message struct {
	ID       string
	Body     string
	Attrs    map[string]attribute
	Group    string
	Dedupe   string
	Sent     int64 // milliseconds
	count    int
	first    int64
	visible  time.Time
	taken    time.Time // when it was delivered last; zero: it is not in flight
	delayed  bool
	receipt  string
	sequence int64
}

type attribute struct {
	DataType    string
	StringValue *string `json:",omitempty"`
	BinaryValue []byte  `json:",omitempty"`
}

// New returns a fake whose journal is in a folder.
func New(dir, key string, hold time.Duration) (*Server, error) {
	s := &Server{Key: key, Hold: hold, queues: map[string]*queue{}, changed: make(chan struct{})}
	path := filepath.Join(dir, "sqs.journal")
	if err := s.replay(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	s.journal = f
	return s, err
}

// record is a line of the journal.
type record struct {
	Op    string
	Queue string
	Attrs map[string]string `json:",omitempty"`
	M     *message          `json:",omitempty"`
	ID    string            `json:",omitempty"`
}

func (s *Server) replay(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // a line that was cut off was not answered
		}
		if err != nil {
			return err
		}
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		switch q := s.queues[r.Queue]; {
		case r.Op == "create":
			s.queues[r.Queue] = &queue{name: r.Queue, attrs: r.Attrs, deduped: map[string]time.Time{}}
		case r.Op == "send":
			q.messages = append(q.messages, r.M)
			s.serial++
			r.M.sequence = s.serial
			if r.M.Dedupe != "" {
				q.deduped[r.M.Dedupe] = time.UnixMilli(r.M.Sent)
			}
		case r.Op == "delete":
			q.remove(r.ID)
		}
	}
}

func (s *Server) write(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = s.journal.Write(append(line, '\n'))
	return err
}

func (q *queue) remove(id string) {
	for i, m := range q.messages {
		if m.ID == id {
			q.messages = append(q.messages[:i], q.messages[i+1:]...)
			return
		}
	}
}

func (q *queue) fifo() bool { return strings.HasSuffix(q.name, ".fifo") }

func (q *queue) number(name string, otherwise int) int {
	if n, err := strconv.Atoi(q.attrs[name]); err == nil {
		return n
	}
	return otherwise
}

// fault is an error of the protocol.
type fault struct {
	code, text string
	status     int
}

func (f *fault) Error() string { return f.code + ": " + f.text }

func refuse(code, format string, args ...any) error {
	return &fault{code, fmt.Sprintf(format, args...), http.StatusBadRequest}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := s.serve(r)
	// No network answers in microseconds. An answer that overtakes the end of its own request hits a race in the SDK
	// (smithy-go 1.28.8 closes the request's body while net/http still reads its end): it drops the connection, and what was
	// received over it waits for the end of its lease.
	time.Sleep(latency)
	status := http.StatusOK
	if err != nil {
		f := &fault{"InternalError", err.Error(), http.StatusInternalServerError}
		errors.As(err, &f)
		status, answer = f.status, map[string]string{"__type": "com.amazonaws.sqs#" + f.code, "message": f.text}
	}
	body, err := json.Marshal(answer)
	if err != nil {
		status, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

func (s *Server) serve(r *http.Request) (any, error) {
	if ct := r.Header.Get("Content-Type"); ct != "application/x-amz-json-1.0" {
		return nil, &fault{"UnsupportedMediaType", ct, http.StatusUnsupportedMediaType}
	}
	if !strings.Contains(r.Header.Get("Authorization"), "Credential="+s.Key+"/") {
		return nil, &fault{"InvalidClientTokenId", "The security token included in the request is invalid.", http.StatusForbidden}
	}
	op, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	handle := map[string]func(*http.Request, []byte) (any, error){
		"CreateQueue": s.create, "GetQueueUrl": s.find, "GetQueueAttributes": s.attributes, "SendMessage": s.send, "SendMessageBatch": s.sendBatch,
		"ReceiveMessage": s.receive, "DeleteMessage": s.delete, "DeleteMessageBatch": s.deleteBatch,
		"ChangeMessageVisibility": s.change, "ChangeMessageVisibilityBatch": s.changeBatch,
	}[op]
	if !ok || handle == nil {
		return nil, refuse("UnsupportedOperation", "%s", op)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	return handle(r, body)
}

func parse[T any](body []byte) (T, error) {
	var in T
	if err := json.Unmarshal(body, &in); err != nil {
		return in, refuse("SerializationException", "%v", err)
	}
	return in, nil
}

func digest(s string) string { sum := md5.Sum([]byte(s)); return hex.EncodeToString(sum[:]) }

// queueLocked finds the queue of a URL.
func (s *Server) queueLocked(url string) (*queue, error) {
	q := s.queues[url[strings.LastIndexByte(url, '/')+1:]]
	if q == nil {
		return nil, refuse("QueueDoesNotExist", "The specified queue does not exist.")
	}
	return q, nil
}

func (s *Server) url(r *http.Request, name string) any {
	return map[string]string{"QueueUrl": "http://" + r.Host + "/000000000000/" + name}
}

func (s *Server) create(r *http.Request, body []byte) (any, error) {
	in, err := parse[struct {
		QueueName  string
		Attributes map[string]string
	}](body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(in.QueueName) == 0 || len(in.QueueName) > 80 || strings.Trim(strings.TrimSuffix(in.QueueName, ".fifo"), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return nil, refuse("InvalidParameterValue", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	if strings.HasSuffix(in.QueueName, ".fifo") != (in.Attributes["FifoQueue"] == "true") {
		return nil, refuse("InvalidParameterValue", "The name of a FIFO queue can only end in .fifo")
	}
	if q := s.queues[in.QueueName]; q != nil {
		for name, value := range in.Attributes {
			if q.attrs[name] != value {
				return nil, refuse("QueueNameExists", "A queue already exists with the same name and a different value for attribute %s", name)
			}
		}
		return s.url(r, in.QueueName), nil
	}
	s.queues[in.QueueName] = &queue{name: in.QueueName, attrs: in.Attributes, deduped: map[string]time.Time{}}
	return s.url(r, in.QueueName), s.write(record{Op: "create", Queue: in.QueueName, Attrs: in.Attributes})
}

func (s *Server) find(r *http.Request, body []byte) (any, error) {
	in, err := parse[struct{ QueueName string }](body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.queueLocked(in.QueueName); err != nil {
		return nil, err
	}
	return s.url(r, in.QueueName), nil
}

func (s *Server) attributes(_ *http.Request, body []byte) (any, error) {
	in, err := parse[struct{ QueueUrl string }](body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queueLocked(in.QueueUrl)
	if err != nil {
		return nil, err
	}
	var ready, flying, delayed int
	now := time.Now()
	for _, m := range q.messages {
		switch {
		case !now.Before(m.visible):
			ready++
		case m.delayed:
			delayed++
		default:
			flying++
		}
	}
	return map[string]any{"Attributes": map[string]string{
		"ApproximateNumberOfMessages": strconv.Itoa(ready), "ApproximateNumberOfMessagesNotVisible": strconv.Itoa(flying),
		"ApproximateNumberOfMessagesDelayed": strconv.Itoa(delayed), "VisibilityTimeout": strconv.Itoa(q.number("VisibilityTimeout", 30)),
	}}, nil
}

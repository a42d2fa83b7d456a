package activemq

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"retinue/coordinator/source"
)

// conn is one connection to the broker. It is dead from its first error on; nothing is repeated.
type conn struct {
	net     net.Conn
	deliver func(*frame) // gets each MESSAGE, one after the other
	beat    time.Duration
	silence time.Duration // how long the broker may say nothing

	dead chan struct{}
	once sync.Once
	wake chan struct{}

	mu       sync.Mutex
	err      error
	queue    []byte // what the writer has not taken yet
	receipts map[string]chan error
	last     uint64
}

// brokerError is an ERROR frame.
type brokerError struct{ message, body string }

func (e *brokerError) Error() string { return "the broker answers: " + e.message }

var errLostConnection = errors.New("the connection was lost")

// dial connects and logs in.
func dial(ctx context.Context, c *Config, deliver func(*frame)) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	login, password, err := c.credentials()
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil, err
	}
	if c.tls != nil {
		raw = tls.Client(raw, c.tls)
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) }) // a context cannot end the handshake, a deadline does
	beats, wanted := c.beats()
	hello := newFrame("CONNECT", "accept-version", "1.2", "host", c.host, "heart-beat", fmt.Sprintf("%d,%d", beats.Milliseconds(), wanted.Milliseconds()))
	if login != "" {
		hello.headers["login"], hello.headers["passcode"] = login, password
	}
	cn := &conn{
		net: raw, deliver: deliver, beat: beats / 4, dead: make(chan struct{}), wake: make(chan struct{}, 1), receipts: map[string]chan error{},
	}
	r := bufio.NewReaderSize(listener{cn}, 64<<10)
	answer, err := hello.exchange(raw, r)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	if from, _, _ := strings.Cut(answer.headers["heart-beat"], ","); from != "0" && from != "" {
		cn.silence = 4 * wanted
	}
	go cn.read(r)
	go cn.write()
	return cn, nil
}

// exchange is the handshake.
func (f *frame) exchange(to net.Conn, from *bufio.Reader) (*frame, error) {
	for name, value := range f.headers {
		if strings.ContainsAny(value, "\r\n\x00") {
			return nil, fmt.Errorf("%w: a line break in %s", source.ErrConfig, name)
		}
	}
	if _, err := to.Write(f.append(nil)); err != nil {
		return nil, err
	}
	answer, err := readFrame(from)
	switch {
	case err != nil:
		return nil, err
	case answer.command == "ERROR":
		return nil, answer.failure()
	case answer.command != "CONNECTED" || answer.headers["version"] != "1.2":
		return nil, fmt.Errorf("%w: the broker answers %.20q, version %.10q", source.ErrConfig, answer.command, answer.headers["version"])
	}
	return answer, nil
}

func (f *frame) failure() error {
	return &brokerError{message: f.headers["message"], body: string(f.body[:min(len(f.body), 4<<10)])}
}

func (cn *conn) alive() bool {
	select {
	case <-cn.dead:
		return false
	default:
		return true
	}
}

// fail ends the connection with a cause. Everybody who waits for an answer is told.
func (cn *conn) fail(err error) {
	cn.once.Do(func() {
		cn.mu.Lock()
		cn.err = err
		cn.mu.Unlock()
		close(cn.dead)
		cn.net.Close()
	})
}

// cause is why the connection is dead.
func (cn *conn) cause() error {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.err == nil {
		return errLostConnection
	}
	return cn.err
}

// listener moves the deadline along with what arrives.
type listener struct{ cn *conn }

func (l listener) Read(p []byte) (int, error) {
	if l.cn.silence > 0 {
		l.cn.net.SetReadDeadline(time.Now().Add(l.cn.silence))
	}
	return l.cn.net.Read(p)
}

func (cn *conn) read(r *bufio.Reader) {
	for {
		f, err := readFrame(r)
		if err != nil {
			cn.fail(fmt.Errorf("%w: %w", errLostConnection, err))
			return
		}
		switch f.command {
		case "MESSAGE":
			cn.deliver(f)
		case "RECEIPT":
			cn.answer(f.headers["receipt-id"], nil)
		case "ERROR":
			// ActiveMQ keeps the connection where a single request failed.
			if !cn.answer(f.headers["receipt-id"], f.failure()) {
				cn.fail(f.failure())
				return
			}
		}
	}
}

func (cn *conn) answer(id string, err error) bool {
	cn.mu.Lock()
	waits := cn.receipts[id]
	delete(cn.receipts, id)
	cn.mu.Unlock()
	if waits == nil {
		return false
	}
	waits <- err
	return true
}

// write sends what is queued, and a heart-beat when there was nothing for long.
func (cn *conn) write() {
	ticker := time.NewTicker(cn.beat)
	defer ticker.Stop()
	for {
		var beat bool
		select {
		case <-cn.dead:
			return
		case <-cn.wake:
		case <-ticker.C:
			beat = true
		}
		cn.mu.Lock()
		out := cn.queue
		cn.queue = nil
		cn.mu.Unlock()
		if len(out) == 0 && beat {
			out = []byte("\n")
		}
		if len(out) == 0 {
			continue
		}
		if _, err := cn.net.Write(out); err != nil {
			cn.fail(fmt.Errorf("%w: %w", errLostConnection, err))
			return
		}
	}
}

// post sends a frame. It never waits, so it may be called under a lock that orders frames.
func (cn *conn) post(f *frame) {
	cn.mu.Lock()
	cn.queue = f.append(cn.queue)
	cn.mu.Unlock()
	select {
	case cn.wake <- struct{}{}:
	default:
	}
}

// ask sends a frame and returns where its answer comes.
func (cn *conn) ask(f *frame) chan error {
	answer := make(chan error, 1)
	cn.mu.Lock()
	cn.last++
	id := strconv.FormatUint(cn.last, 10)
	cn.receipts[id] = answer
	cn.mu.Unlock()
	f.headers["receipt"] = id
	cn.post(f)
	return answer
}

// wait returns the answer.
func (cn *conn) wait(ctx context.Context, answer chan error) error {
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-cn.dead:
	}
	select {
	case err := <-answer: // it was the last that arrived
		return err
	default:
		return cn.cause()
	}
}

// ping asks the broker whether it still knows this connection: there is no other frame without an effect that it answers.
func (cn *conn) ping(ctx context.Context) error {
	name := "ping-" + source.NewID()
	cn.post(newFrame("BEGIN", "transaction", name))
	return cn.wait(ctx, cn.ask(newFrame("ABORT", "transaction", name)))
}

// close ends the connection in order, so that the broker gives back at once what it had delivered.
func (cn *conn) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if cn.alive() {
		cn.wait(ctx, cn.ask(newFrame("DISCONNECT")))
	}
	cn.fail(source.ErrClosed)
}

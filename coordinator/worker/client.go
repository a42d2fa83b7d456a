package worker

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// client speaks HTTP/1.1 to one server. A call has a connection for itself and is written and read by its caller, where
// net/http.Transport has two goroutines for each connection: with a worker on the same machine their turns are most of what a
// call costs, and their stacks and buffers most of what a thousand calls hold. Answers are read by net/http.
type client struct {
	dial func(context.Context) (net.Conn, error)
	line string // of the request, and the headers that are always the same

	mu   sync.Mutex
	idle []*connection // the last one used at the end
	shut bool
}

// connection is one to the server, on which nothing is under way when it is idle.
type connection struct {
	net.Conn
	reader *bufio.Reader
	raw    syscall.RawConn
	peek   [1]byte
	used   time.Time // for the last time; zero for a new one
}

// idleTime is how long a connection may be idle and have another call. Servers close theirs after two seconds (Gunicorn), five (Node, Uvicorn, Apache) or more,
// and one that does so at the moment in which an item comes looks like one that died of it. A new connection costs less than that.
const idleTime = time.Second

const (
	readBuffer = 512                   // of a connection; larger bodies are read past it
	inline     = 16 << 10              // a body up to this goes with its headers in one write, and before the answer is waited for
	last       = 50 * time.Millisecond // for what is left of a body after its answer
)

// reply is an answer with its body, of which at most maxReply and one byte are read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// CheckAddress says what is wrong with the address of an HTTP worker.
func CheckAddress(address string) error {
	_, err := newClient(address)
	return err
}

// newClient returns a client of http://HOST:PORT/path or unix:///path/to/socket.
func newClient(address string) (*client, error) {
	network, at := "tcp", ""
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, at, address = "unix", path, "http://localhost/"
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("worker address %s: it is http://HOST:PORT/path or unix:///path/to/socket", u.Redacted())
	}
	if network == "tcp" {
		port := u.Port()
		if port == "" {
			port = "80"
		}
		at = net.JoinHostPort(u.Hostname(), port)
	}
	host, _, _ := strings.Cut(u.Host, "%") // of an address with a zone
	if host != u.Host {
		host += u.Host[strings.IndexByte(u.Host, ']'):]
	}
	line := "POST " + u.RequestURI() + " HTTP/1.1\r\nHost: " + host + "\r\n"
	if user := u.User; user != nil {
		password, _ := user.Password()
		line += "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	return &client{line: line, dial: func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, network, at) }}, nil
}

// close ends what is idle. No call is under way.
func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = true
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
}

// begin returns the head of a request, to which headers can be added.
func (c *client) begin() *head {
	h := heads.Get().(*head)
	*h = append((*h)[:0], c.line...)
	return h
}

// post sends a request that was begun, and reads the answer. An error of the operation "dial" means that nobody got it.
//
// Most of a call is the wait in here. The frames of all its callers are small, so that the stacks of those who wait are: the garbage
// collector shrinks one of which less than a quarter is in use.
func (c *client) post(ctx context.Context, h *head, body []byte) (*reply, error) {
	if len(body) > inline {
		return c.postLarge(ctx, h, int64(len(body)), func(conn *connection) error {
			_, err := conn.Write(body)
			return err
		})
	}
	h.number("Content-Length", int64(len(body)))
	*h = append(append(*h, "\r\n"...), body...)
	conn, stop, err := c.write(ctx, *h)
	heads.Put(h) // whoever waits for a thousand answers need not keep a thousand requests
	if conn == nil {
		return nil, err
	}
	_, _ = conn.reader.Peek(1)
	return c.settle(conn, stop, err == nil)
}

// postFile sends a file as the body.
func (c *client) postFile(ctx context.Context, h *head, path string) (*reply, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, unread{err}
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, unread{err}
	}
	short := false
	answer, err := c.postLarge(ctx, h, info.Size(), func(conn *connection) error {
		_, err := io.CopyN(conn.Conn, file, info.Size())
		if short = errors.Is(err, io.EOF); short {
			conn.Close() // the server would wait for the rest for ever
		}
		return err
	})
	if short {
		return nil, unread{fmt.Errorf("%s became shorter while it was sent", path)}
	}
	return answer, err
}

// postLarge reads the answer while the body is on its way.
func (c *client) postLarge(ctx context.Context, h *head, size int64, send func(*connection) error) (*reply, error) {
	h.number("Content-Length", size)
	*h = append(*h, "\r\n"...)
	conn, stop, err := c.write(ctx, *h)
	heads.Put(h)
	if conn == nil {
		return nil, err
	}
	if err != nil {
		return c.settle(conn, stop, false)
	}
	sent := make(chan error, 1)
	go func() { sent <- send(conn) }()
	answer, again, err := conn.read()
	if err != nil {
		conn.Close()
	}
	// Who has answered before the whole body came does not need the rest.
	late := time.AfterFunc(last, func() { conn.Close() })
	unsent := <-sent
	if late.Stop() && stop() && err == nil && again && unsent == nil {
		c.keep(conn)
	} else {
		stop()
		conn.Close()
	}
	return answer, err
}

// settle reads the answer to a request, of which all was sent or not: who does not want all of it may have answered all the same.
func (c *client) settle(conn *connection, stop func() bool, whole bool) (*reply, error) {
	answer, again, err := conn.read()
	if stop() && err == nil && again && whole {
		c.keep(conn)
	} else {
		conn.Close()
	}
	return answer, err
}

// write sends the beginning of a request. From then on the end of the context ends whatever is done with the connection, until stop is called.
func (c *client) write(ctx context.Context, data []byte) (_ *connection, stop func() bool, _ error) {
	for {
		conn, err := c.connect(ctx)
		if err != nil {
			return nil, nil, err
		}
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		n, err := conn.Write(data)
		if err == nil || n > 0 || conn.used.IsZero() || ctx.Err() != nil {
			return conn, stop, err
		}
		stop()
		conn.Close() // it was closed while it was idle, and nobody has got anything of the request
	}
}

// unread is an error of the file that was to be posted.
type unread struct{ error }

// Unwrap returns the error of the file.
func (u unread) Unwrap() error { return u.error }

// connect takes an idle connection, or makes one.
func (c *client) connect(ctx context.Context) (*connection, error) {
	for {
		c.mu.Lock()
		n := len(c.idle)
		if n == 0 {
			c.mu.Unlock()
			break
		}
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		var old *connection
		if len(c.idle) > 0 && time.Since(c.idle[0].used) > idleTime { // more than are needed
			old, c.idle = c.idle[0], c.idle[1:]
		}
		c.mu.Unlock()
		if old != nil {
			old.Close()
		}
		if time.Since(conn.used) < idleTime && conn.quiet() {
			return conn, nil
		}
		conn.Close()
	}
	plain, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := plain.(syscall.Conn).SyscallConn()
	if err != nil {
		plain.Close()
		return nil, err
	}
	return &connection{Conn: plain, reader: bufio.NewReaderSize(plain, readBuffer), raw: raw}, nil
}

// keep puts a connection back.
func (c *client) keep(conn *connection) {
	conn.used = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

// quiet says that the server has neither closed an idle connection nor sent anything on it.
func (c *connection) quiet() bool {
	quiet := false
	err := c.raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), c.peek[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && quiet
}

var posted = &http.Request{Method: http.MethodPost}

// read reads an answer, and says whether another call can have the connection.
func (c *connection) read() (*reply, bool, error) {
	var resp *http.Response
	for resp == nil || resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
		var err error
		if resp, err = http.ReadResponse(c.reader, posted); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("the connection was closed before the answer: %w", err)
			}
			return nil, false, err
		}
	}
	defer resp.Body.Close()
	answer := &reply{status: resp.StatusCode, header: resp.Header}
	var err error
	if n := resp.ContentLength; n >= 0 && n <= maxReply {
		answer.body = make([]byte, n)
		_, err = io.ReadFull(resp.Body, answer.body)
	} else {
		answer.body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	}
	if err != nil {
		return nil, false, fmt.Errorf("the answer was cut off: %w", err)
	}
	whole := len(answer.body) <= maxReply && resp.StatusCode != http.StatusSwitchingProtocols
	return answer, whole && !resp.Close && c.reader.Buffered() == 0, nil
}

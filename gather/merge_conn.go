package gather

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
)

// watchedConn is a connection to the merge container that says when the other end is gone.
//
// The transport notices that too, but tells nobody before it has sent the whole request, whose body here goes on until the last
// leaf has answered: a merge that was killed would cost a request all of its time.
type watchedConn struct {
	net.Conn
	once sync.Once
	gone chan struct{}
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.once.Do(func() { close(c.gone) })
	}
	return n, err
}

// watched makes the connections of a transport watched ones.
func watched(t *http.Transport) {
	dial := t.DialContext
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &watchedConn{Conn: c, gone: make(chan struct{})}, nil
	}
}

// endWith returns a context for a request whose body ends when the other end is gone, unless over is closed before.
func endWith(ctx context.Context, body *io.PipeReader, over <-chan struct{}) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		c, ok := info.Conn.(*watchedConn)
		if !ok {
			return
		}
		go func() {
			select {
			case <-c.gone:
				body.CloseWithError(io.ErrClosedPipe)
			case <-over:
			}
		}()
	}})
}

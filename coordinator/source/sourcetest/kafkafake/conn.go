package kafkafake

import (
	"encoding/binary"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// conn is a client's connection that is listened to.
type conn struct {
	net.Conn
	journal *journal
	in      []byte // what arrived of a request

	mu    sync.Mutex
	asked map[int32]kmsg.Request // by correlation, those whose answers matter
}

func newConn(c net.Conn, j *journal) *conn {
	return &conn{Conn: c, journal: j, asked: map[int32]kmsg.Request{}}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in = append(c.in, p[:n]...)
	for len(c.in) >= 4 {
		end := 4 + int(binary.BigEndian.Uint32(c.in))
		if len(c.in) < end {
			break
		}
		c.request(c.in[4:end])
		c.in = c.in[end:]
	}
	return n, err
}

// request remembers a request whose answer matters.
func (c *conn) request(body []byte) {
	r := kbin.Reader{Src: body}
	key, version, correlation := kmsg.Key(r.Int16()), r.Int16(), r.Int32()
	switch key {
	case kmsg.Metadata, kmsg.IncrementalAlterConfigs, kmsg.ShareFetch, kmsg.ShareAcknowledge:
	default:
		return
	}
	r.NullableString()
	req := kmsg.RequestForKey(int16(key))
	req.SetVersion(version)
	if req.IsFlexible() {
		kmsg.SkipTags(&r)
	}
	if req.ReadFrom(append([]byte(nil), r.Src...)) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[correlation] = req
}

// Write is called with one whole answer.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.answer(p); err != nil {
		c.Close()
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *conn) answer(p []byte) error {
	if len(p) < 8 {
		return nil
	}
	r := kbin.Reader{Src: p[4:]}
	correlation := r.Int32()
	c.mu.Lock()
	req := c.asked[correlation]
	delete(c.asked, correlation)
	c.mu.Unlock()
	if req == nil {
		return nil
	}
	resp := req.ResponseKind()
	if resp.IsFlexible() {
		kmsg.SkipTags(&r)
	}
	if err := resp.ReadFrom(append([]byte(nil), r.Src...)); err != nil {
		return err
	}
	return c.journal.answered(req, resp)
}

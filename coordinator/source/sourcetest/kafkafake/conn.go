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
	goodbye []byte // what is left of the request that the client did not send any more
	over    bool   // nothing comes from the client any more

	mu    sync.Mutex
	asked map[int32]kmsg.Request // by correlation, those whose answers matter
	join  *kmsg.JoinGroupRequest // that waits for its answer
	deaf  bool                   // nobody reads answers any more
}

func newConn(c net.Conn, j *journal) *conn {
	return &conn{Conn: c, journal: j, asked: map[int32]kmsg.Request{}}
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.goodbye) > 0 {
		n := copy(p, c.goodbye)
		c.goodbye = c.goodbye[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if err != nil && n == 0 && !c.over && len(c.in) == 0 {
		c.over = true
		if c.goodbye = c.leave(); len(c.goodbye) > 0 {
			return c.Read(p)
		}
	}
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

// leave is the request by which a client that died while it waited to join a group leaves it. kfake sets no end to the session of
// a member whose answer finds no connection: it would keep its partitions for ever, or let everybody wait for it. Kafka's
// sessions do not hang on connections.
func (c *conn) leave() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.join == nil {
		return nil
	}
	c.deaf = true
	req := kmsg.NewPtrLeaveGroupRequest()
	req.SetVersion(3)
	req.Group = c.join.Group
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = c.join.MemberID
	req.Members = append(req.Members, m)
	return kmsg.NewRequestFormatter().AppendRequest(nil, req, 0)
}

// request remembers a request whose answer matters.
func (c *conn) request(body []byte) {
	r := kbin.Reader{Src: body}
	key, version, correlation := kmsg.Key(r.Int16()), r.Int16(), r.Int32()
	switch key {
	case kmsg.Metadata, kmsg.IncrementalAlterConfigs, kmsg.ShareFetch, kmsg.ShareAcknowledge, kmsg.JoinGroup:
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
	if join, ok := req.(*kmsg.JoinGroupRequest); ok && join.MemberID != "" {
		c.join = join
	}
}

// Write is called with one whole answer.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.answer(p); err != nil {
		c.Close()
		return 0, err
	}
	c.mu.Lock()
	deaf := c.deaf
	c.mu.Unlock()
	if deaf {
		return len(p), nil
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
	if _, ok := req.(*kmsg.JoinGroupRequest); ok {
		c.mu.Lock()
		c.join = nil
		c.mu.Unlock()
		return nil
	}
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

// Package kafkafake is kfake of franz-go as a broker that may be killed with -9.
// kfake stores records and the positions of classic groups before it answers,
// but what share groups have finished only at an orderly end. Kafka stores that
// before it answers, so here it is too: the answers are read on their way to the
// clients, what they say is appended to a journal, and a start gives kfake the
// journal's sum as the state of its last end.
//
// Members of classic groups that die while they wait to join leave their groups
// (see conn.leave). A partition of which all records are deleted keeps its last
// one (see keepEnds).
//
// Only what the project's own adapter does is kept: groups that begin at the
// earliest record. A lock dies with the broker, as it does in Kafka.
package kafkafake

import (
	"net"
	"os"

	"github.com/twmb/franz-go/pkg/kfake"
)

// NewCluster starts kfake in a folder with an fsync before each answer.
func NewCluster(dir string, opts ...kfake.Opt) (*kfake.Cluster, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	j, err := openJournal(dir)
	if err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	defer close(ready)
	listen := func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return listener{l, j, ready}, err
	}
	c, err := kfake.NewCluster(append(opts, kfake.DataDir(dir), kfake.SyncWrites(), kfake.ListenFn(listen))...)
	if err != nil {
		return nil, err
	}
	keepEnds(c)
	return c, nil
}

type listener struct {
	net.Listener
	journal *journal
	ready   <-chan struct{} // nobody is served before
}

func (l listener) Accept() (net.Conn, error) {
	<-l.ready
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newConn(c, l.journal), nil
}

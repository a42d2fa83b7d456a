// Package broker is the message broker for those who run none: NATS JetStream
// as a library in one process of its own, the queue task. It is never part of
// a coordinator, because those come and go with the workers and a queue must
// not. Any NATS client can use it; package coordinator/source/nats does.
//
// It promises that what a publisher got an answer for is on disk: over a kill
// -9 of the process always, over a power failure with Durability Always, the
// default.
package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"retinue/internal/hint"
)

// Durability is when what was published reaches the disk.
type Durability string

// The durabilities, the safest first.
const (
	// Always: before each answer. One fsync a message.
	Always Durability = "always"
	// Interval: ten times a second. A power failure loses what the last tenth of a second brought.
	Interval Durability = "interval"
	// Process: when the kernel likes. A kill -9 loses nothing, a power failure up to two minutes.
	Process Durability = "process"
)

// MaxBody is the largest message, headers included: far above what should travel in a message, by-reference items begin earlier.
const MaxBody = 8<<20 + 64<<10

// Config is what the broker is started with.
type Config struct {
	// Dir holds the messages; it must live as long as the queues: a host volume, not the allocation's directory.
	Dir string
	// Listen is host:port; port 0 takes a free one.
	Listen string
	// User and Password are asked of clients; both empty: nobody is asked.
	User, Password string
	Durability     Durability
	// Name, Cluster and Routes make one of three brokers out of it: Name is unique and stays, as its copies go by it; Cluster is
	// the host:port for the others, Routes are theirs. All empty: it is alone.
	Name    string
	Cluster string
	Routes  []string
	// RoutesFile has the routes instead, one a line. Start waits until it has two, or where this broker has been one of three
	// before, one.
	RoutesFile string
	// Advertise is where the others reach Cluster, when that is not the address itself; "" for that.
	Advertise string
	// Health is the host:port of GET /health; "" for none.
	Health string
	// MaxStore bounds what is kept on disk, in bytes; 0: three quarters of what is free.
	MaxStore int64
}

// Broker is a running one.
type Broker struct {
	srv    *server.Server
	health *http.Server
}

// Start returns when the broker takes clients.
func Start(ctx context.Context, c Config) (*Broker, error) {
	if c.RoutesFile != "" {
		if err := c.await(ctx); err != nil {
			return nil, fmt.Errorf("start the broker: %w", err)
		}
	}
	opts, err := c.options()
	if err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	b := &Broker{srv: srv}
	srv.Start()
	for !srv.ReadyForConnections(100 * time.Millisecond) {
		if err := ctx.Err(); err != nil {
			b.Close()
			return nil, fmt.Errorf("start the broker on %s: %w", c.Listen, err)
		}
		if !srv.Running() {
			return nil, hint.Wrap(fmt.Errorf("start the broker on %s: it ended at once", c.Listen), "is the port free, and can %s be written?", c.Dir)
		}
	}
	if !srv.JetStreamEnabled() {
		b.Close()
		return nil, fmt.Errorf("start the broker: its store in %s cannot be used", c.Dir)
	}
	if err := b.tell(c.Health); err != nil {
		b.Close()
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	return b, nil
}

// Addr is where clients connect.
func (b *Broker) Addr() string { return b.srv.Addr().String() }

// Done is closed when the broker has ended by itself.
func (b *Broker) Done() <-chan struct{} {
	done := make(chan struct{})
	go func() { b.srv.WaitForShutdown(); close(done) }()
	return done
}

// Close writes out what is left and ends the broker. Clients connect again when it is back.
func (b *Broker) Close() {
	if b.health != nil {
		b.health.Close()
	}
	b.srv.Shutdown()
	b.srv.WaitForShutdown()
}

func (c Config) options() (*server.Options, error) {
	host, port, err := split(c.Listen)
	if err != nil {
		return nil, err
	}
	if c.Dir == "" {
		return nil, errors.New("no folder for the messages")
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	o := &server.Options{
		ServerName: c.Name, Host: host, Port: port, Username: c.User, Password: c.Password,
		JetStream: true, StoreDir: c.Dir, JetStreamMaxStore: c.MaxStore, MaxPayload: MaxBody,
		NoSigs: true, NoLog: true, DisableShortFirstPing: true,
	}
	switch c.Durability {
	case Always, "":
		o.SyncAlways = true
	case Interval:
		o.SyncInterval = 100 * time.Millisecond
	case Process:
	default:
		return nil, fmt.Errorf("durability %q: always, interval or process", c.Durability)
	}
	if c.Cluster == "" {
		return o, nil
	}
	if c.Name == "" || len(c.Routes) == 0 {
		return nil, errors.New("a broker of a cluster needs a name and the addresses of the others")
	}
	if o.Cluster.Host, o.Cluster.Port, err = split(c.Cluster); err != nil {
		return nil, err
	}
	o.Cluster.Name, o.Cluster.Advertise = "retinue", c.Advertise
	// Clients are not told of the other brokers: what these know of their own addresses may be true in their network alone.
	o.Cluster.NoAdvertise = true
	o.Cluster.Username, o.Cluster.Password = c.User, c.Password
	for _, r := range c.Routes {
		u := &url.URL{Scheme: "nats", Host: r}
		if c.User != "" {
			u.User = url.UserPassword(c.User, c.Password)
		}
		o.Routes = append(o.Routes, u)
	}
	return o, nil
}

func split(addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	if port, err = strconv.Atoi(text); err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("port %q of %s", text, addr)
	}
	return host, port, nil
}

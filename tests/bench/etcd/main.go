// Command etcd is the benchmarks' etcd: a server of a cluster, and a candidate
// that leads through the client library's concurrency.Election, one session
// for all its elections. It is a module of its own so that etcd's dependencies
// do not move those of the tests, and talks to the runner as retinue/tests/bench/wire
// describes.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: etcd server|candidate [flags]")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	name := flags.String("name", "", "name of the server")
	dir := flags.String("dir", "", "data folder of the server")
	client := flags.String("client", "", "URLs for clients, separated by commas")
	peer := flags.String("peer", "", "URL for the other servers")
	cluster := flags.String("cluster", "", "name=url of all servers")
	ttl := flags.Int("ttl", 2, "seconds of the session's lease")
	elections := flags.String("elections", "leader", "elections, separated by commas")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] == "server" {
		return serve(*name, *dir, *client, *peer, *cluster)
	}
	return campaign(strings.Split(*client, ","), *ttl, strings.Split(*elections, ","))
}

func serve(name, dir, client, peer, cluster string) error {
	config := embed.NewConfig()
	clientURL, err := url.Parse(client)
	if err != nil {
		return err
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return err
	}
	config.Name, config.Dir, config.InitialCluster, config.LogLevel = name, dir, cluster, "warn"
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Err():
		return err
	}
}

// event and command are those of retinue/tests/bench/wire.
type event struct {
	From     string `json:"from"`
	PID      int    `json:"pid"`
	Name     string `json:"name"`
	At       int64  `json:"at"`
	Election string `json:"election,omitempty"`
	Text     string `json:"text,omitempty"`
}

type command struct {
	Name string `json:"name"`
}

func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every Linux has it
	}
	return ts.Nano()
}

// candidate runs all its elections on one session.
type candidate struct {
	client    *clientv3.Client
	ttl       int
	elections []string

	mu  sync.Mutex
	out *json.Encoder
}

func campaign(endpoints []string, ttl int, elections []string) error {
	conn, err := net.Dial("unix", os.Getenv("RETINUE_BENCH_SOCKET"))
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	c := &candidate{client: client, ttl: ttl, elections: elections, out: json.NewEncoder(conn)}
	c.send(event{Name: "hello", At: now()})
	in := json.NewDecoder(bufio.NewReader(conn))
	var resign func() error
	for {
		var cmd command
		if in.Decode(&cmd) != nil {
			return nil // the runner is gone
		}
		switch {
		case cmd.Name == "campaign":
			resign, err = c.campaign()
		case cmd.Name == "resign" && resign != nil:
			err = resign()
		}
		if err != nil {
			c.send(event{Name: "failed", At: now(), Text: err.Error()})
		}
	}
}

func (c *candidate) send(e event) {
	e.From, e.PID = os.Getenv("RETINUE_BENCH_NAME"), os.Getpid()
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.out.Encode(e)
}

// campaign enters every election, and returns how to leave them: one election
// with Resign, many at once with the end of their session.
func (c *candidate) campaign() (func() error, error) {
	session, err := concurrency.NewSession(c.client, concurrency.WithTTL(c.ttl))
	if err != nil {
		return nil, err
	}
	c.send(event{Name: "campaigning", At: now()})
	var first *concurrency.Election
	for _, name := range c.elections {
		election := concurrency.NewElection(session, "/bench/"+name)
		if first == nil {
			first = election
		}
		go func() {
			if err := election.Campaign(session.Client().Ctx(), os.Getenv("RETINUE_BENCH_NAME")); err != nil {
				c.send(event{Name: "failed", At: now(), Text: err.Error()})
				return
			}
			c.send(event{Name: "elected", Election: name, At: now()})
		}()
	}
	return func() error {
		began := now()
		var err error
		if len(c.elections) == 1 {
			err = first.Resign(context.Background())
		} else {
			err = session.Close()
		}
		c.send(event{Name: "resigning", At: began})
		c.send(event{Name: "released", At: now()})
		if len(c.elections) == 1 && err == nil {
			err = session.Close()
		}
		return err
	}, nil
}

package kafka

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
	"retinue/coordinator/source/sourcetest/kafkafake"
)

const (
	serverVariable = "RETINUE_KAFKA_TEST"
	portVariable   = "RETINUE_KAFKA_TEST_PORT"
	folderVariable = "RETINUE_KAFKA_TEST_FOLDER"
)

func TestMain(m *testing.M) {
	// The cases wait for leases more than they work, so a machine of two processors can do more than two at a time.
	flag.Set("test.parallel", "8")
	sourcetest.Main(m, map[string]func() error{
		"consumer": sourcetest.Consumer(func(ctx context.Context, o source.Options) (source.Source, error) {
			return Open(ctx, Config{URL: os.Getenv(serverVariable), Partitions: partitions, Session: session, Options: o})
		}),
		"kafka": serve,
	})
}

// Few and short, so that the tests are quick.
const (
	partitions = 4
	session    = time.Second
)

// shareConfig is as short as session for share groups, with the limits that Kafka has by itself.
var shareConfig = map[string]string{
	"group.share.record.lock.duration.ms": fmt.Sprint(2 * session.Milliseconds()), "share.record.lock.sweep.interval.ms": "200",
	"group.share.session.timeout.ms": "10000", "group.share.heartbeat.interval.ms": "1000",
}

// serve is a broker: a fake one, which is not Kafka, but speaks its protocol and keeps what it confirmed.
func serve() error {
	port, err := strconv.Atoi(os.Getenv(portVariable))
	if err != nil {
		return err
	}
	cluster, err := kafkafake.NewCluster(os.Getenv(folderVariable),
		kfake.Ports(port), kfake.EnableSASL(), kfake.GroupMinSessionTimeout(session), kfake.BrokerConfigs(shareConfig),
		kfake.Superuser("SCRAM-SHA-256", "u", "p"), kfake.Superuser("PLAIN", "u", "p"), kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelWarn)),
	)
	if err != nil {
		return err
	}
	// The fake one closes the connection on a wrong password. Kafka answers.
	cluster.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if !bytes.Equal(req.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes, []byte("\x00u\x00wrong")) {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
		return resp, nil, true
	})
	select {}
}

func at(addr, password string) string {
	return (&url.URL{Scheme: "kafka", User: url.UserPassword("u", password), Host: addr, Path: "/work"}).String()
}

func start(t *testing.T) (addr string, srv *sourcetest.Server) {
	port := sourcetest.Port(t)
	addr = sourcetest.Loopback(port)
	c := sourcetest.Role(t, "kafka", fmt.Sprintf("%s=%d", portVariable, port), folderVariable+"="+t.TempDir())
	return addr, sourcetest.StartServer(t, c, sourcetest.Listens(addr))
}

func TestContract(t *testing.T) {
	for _, groups := range []string{groupsClassic, groupsShare} {
		t.Run(groups, func(t *testing.T) {
			t.Parallel()
			contract(t, groups)
		})
	}
}

func contract(t *testing.T, groups string) {
	lease := 4 * session
	if groups == groupsShare {
		lease /= 2
	}
	addr, srv := start(t)
	open := func(ctx context.Context, c Config) (source.Source, error) {
		s, err := Open(ctx, c)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	sourcetest.Run(t, sourcetest.Harness{
		Lease: lease, Lingers: groups == groupsClassic, Addr: addr, Server: srv, Child: []string{serverVariable + "=" + at(addr, "p")},
		Open: func(ctx context.Context, via string, o source.Options) (source.Source, error) {
			c := Config{URL: at(addr, "p"), Partitions: partitions, Session: session, Groups: groups, Options: o}
			if via != "" {
				c.URL = at(via, "p")
				// The server tells its own address to everybody, which would be past a proxy.
				c.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, via)
				}
			}
			return open(ctx, c)
		},
		Denied: func(ctx context.Context, o source.Options) (source.Source, error) {
			return open(ctx, Config{URL: at(addr, "wrong"), SASL: "plain", Options: o})
		},
		Foreign: func(ctx context.Context, queue string, body []byte) error {
			s := &Source{cfg: Config{URL: at(addr, "p"), Options: source.Options{Queue: queue}}}
			var err error
			if s.place, err = s.cfg.complete(); err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			defer c.Close()
			return c.ProduceSync(ctx, &kgo.Record{Topic: s.topic(0), Value: body}).FirstErr()
		},
	})
}

package nats

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"retinue/coordinator/broker"
	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

const (
	serverVariable = "RETINUE_NATS_TEST"
	storeVariable  = "RETINUE_NATS_TEST_STORE"
	// name, own address and those of the others
	clusterVariable = "RETINUE_NATS_TEST_CLUSTER"
)

func TestMain(m *testing.M) {
	sourcetest.SideBySide(10)
	sourcetest.Main(m, map[string]func() error{
		"consumer": sourcetest.Consumer(func(ctx context.Context, o source.Options) (source.Source, error) {
			return Open(ctx, Config{URL: os.Getenv(serverVariable), Options: o})
		}),
		"broker": serve,
	})
}

// serve is the embedded broker, in a process of its own.
func serve() error {
	c := broker.Config{Dir: os.Getenv(storeVariable), Listen: os.Getenv(serverVariable), User: "u", Password: "p"}
	if of := strings.Fields(os.Getenv(clusterVariable)); len(of) > 0 {
		c.Name, c.Cluster, c.Routes = of[0], of[1], of[2:]
	}
	b, err := broker.Start(context.Background(), c)
	if err != nil {
		return err
	}
	<-b.Done()
	return nil
}

// settings writes a server's configuration.
func settings(t *testing.T, port int) string {
	file := t.TempDir() + "/nats.conf"
	text := fmt.Sprintf(`
listen: "127.0.0.1:%d"
max_payload: 8MB
jetstream { store_dir: %q }
authorization { user: u, password: p }
`, port, t.TempDir())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestContract(t *testing.T) {
	t.Parallel()
	port := sourcetest.Port(t)
	cmd := sourcetest.Role(t, "broker", serverVariable+"="+sourcetest.Loopback(port), storeVariable+"="+t.TempDir())
	contract(t, cmd, port)
}

// A server of a distribution, several versions older.
func TestContractOlderServer(t *testing.T) {
	t.Parallel()
	port := sourcetest.Port(t)
	contract(t, sourcetest.Command{Name: "nats-server", Path: sourcetest.Need(t, "nats-server"), Args: []string{"-c", settings(t, port)}}, port)
}

func contract(t *testing.T, cmd sourcetest.Command, port int) {
	addr := sourcetest.Loopback(port)
	at := func(addr, password string) string {
		return (&url.URL{Scheme: "nats", User: url.UserPassword("u", password), Host: addr}).String()
	}
	srv := sourcetest.StartServer(t, cmd, func(ctx context.Context) error {
		nc, err := nats.Connect(at(addr, "p"))
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		_, err = js.AccountInfo(ctx)
		return err
	})
	open := func(ctx context.Context, addr, password string, o source.Options) (source.Source, error) {
		s, err := Open(ctx, Config{URL: at(addr, password), Options: o})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	sourcetest.Run(t, sourcetest.Harness{
		Addr: addr, Server: srv, Together: true, Child: []string{serverVariable + "=" + at(addr, "p")},
		Open: func(ctx context.Context, via string, o source.Options) (source.Source, error) {
			if via == "" {
				via = addr
			}
			return open(ctx, via, "p", o)
		},
		Denied: func(ctx context.Context, o source.Options) (source.Source, error) { return open(ctx, addr, "wrong", o) },
		Foreign: func(ctx context.Context, queue string, body []byte) error {
			nc, err := nats.Connect(at(addr, "p"))
			if err != nil {
				return err
			}
			defer nc.Close()
			_, err = nc.Request("queue."+queue+".0", body, 5*time.Second)
			return err
		},
	})
}

package redis

import (
	"context"
	"net/url"
	"os"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

const serverVariable = "RETINUE_REDIS_TEST"

func TestMain(m *testing.M) {
	sourcetest.Main(m, map[string]func() error{
		"consumer": sourcetest.Consumer(func(ctx context.Context, o source.Options) (source.Source, error) {
			return Open(ctx, Config{URL: os.Getenv(serverVariable), Options: o})
		}),
	})
}

func at(addr, password string) string {
	return (&url.URL{Scheme: "redis", User: url.UserPassword("", password), Host: addr}).String()
}

// start runs a server of its own.
func start(t *testing.T) (*sourcetest.Server, string) {
	program := sourcetest.Need(t, "redis-server")
	port := sourcetest.Port(t)
	addr := sourcetest.Loopback(port)
	return sourcetest.StartServer(t, sourcetest.Command{Name: "redis-server", Path: program, Args: []string{
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", t.TempDir(), "--requirepass", "p",
		"--appendonly", "yes", "--appendfsync", "always", "--save", "",
	}}, func(ctx context.Context) error {
		o, err := redis.ParseURL(at(addr, "p"))
		if err != nil {
			return err
		}
		db := redis.NewClient(o)
		defer db.Close()
		return db.Ping(ctx).Err()
	}), addr
}

func TestContract(t *testing.T) { testContract(t, false) }

func TestContractAbreast(t *testing.T) { testContract(t, true) }

func testContract(t *testing.T, abreast bool) {
	t.Parallel()
	srv, addr := start(t)
	open := func(ctx context.Context, addr, password string, o source.Options) (source.Source, error) {
		o.Abreast = abreast
		s, err := Open(ctx, Config{URL: at(addr, password), Options: o})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	sourcetest.Run(t, sourcetest.Harness{
		Addr: addr, Server: srv, Child: []string{serverVariable + "=" + at(addr, "p")},
		Open: func(ctx context.Context, via string, o source.Options) (source.Source, error) {
			if via == "" {
				via = addr
			}
			return open(ctx, via, "p", o)
		},
		Denied: func(ctx context.Context, o source.Options) (source.Source, error) { return open(ctx, addr, "wrong", o) },
		Foreign: func(ctx context.Context, queue string, body []byte) error {
			o, err := redis.ParseURL(at(addr, "p"))
			if err != nil {
				return err
			}
			db := redis.NewClient(o)
			defer db.Close()
			return db.XAdd(ctx, &redis.XAddArgs{Stream: "queue:{" + queue + "}:0", Values: []string{"body", string(body)}}).Err()
		},
	})
}

package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

const serverVariable = "RETINUE_RABBITMQ_TEST"

func TestMain(m *testing.M) {
	sourcetest.SideBySide(10)
	sourcetest.Main(m, map[string]func() error{
		"consumer": sourcetest.Consumer(func(ctx context.Context, o source.Options) (source.Source, error) {
			return Open(ctx, Config{URL: os.Getenv(serverVariable), Options: o})
		}),
	})
}

func TestContract(t *testing.T) {
	t.Parallel()
	h := harness(t, 30*time.Minute, 2*time.Second)
	sourcetest.Run(t, h)
	t.Run("a receive begins as what nobody asked for goes back", func(t *testing.T) { receiveBeginsAsItGoesBack(t, h) })
}

// receiveBeginsAsItGoesBack: that nobody asks may be over by the time at which what was fetched would go back. The Receive would wait for ever.
func receiveBeginsAsItGoesBack(t *testing.T, h sourcetest.Harness) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	src, err := h.Open(ctx, "", source.Options{Queue: "turning", Lease: time.Minute, Prefetch: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close(context.Background())
	s := src.(*Source)
	receive := func() error {
		ms, err := s.Receive(ctx, 1)
		if err == nil {
			err = s.Ack(ctx, ms...)
		}
		return err
	}
	if err := errors.Join(s.Publish(ctx, source.Out{ID: "1"}), receive()); err != nil {
		t.Fatal(err)
	}
	received := make(chan error, 1)
	err = s.giveBackIf(ctx, s.current(), func() bool {
		go func() { received <- receive() }()
		for asks := false; !asks; time.Sleep(time.Millisecond) {
			s.mu.Lock()
			asks = s.receiving
			s.mu.Unlock()
		}
		return s.unused()
	})
	if err := errors.Join(err, s.Publish(ctx, source.Out{ID: "2"}), <-received); err != nil {
		t.Fatal(err)
	}
}

// A message is kept for longer than consumer_timeout, half an hour where nobody changes it.
func TestHold(t *testing.T) {
	t.Parallel()
	const timeout = 6 * time.Second
	h := harness(t, timeout, 0)
	sourcetest.RunHold(t, h, timeout)
	sourcetest.RunOrderHold(t, h, timeout)
}

// harness starts a broker. Queues count as grown up after a time; 0 is the time of everywhere else.
func harness(t *testing.T, timeout, grown time.Duration, changes ...func(*Config)) sourcetest.Harness {
	var addr string
	srv := start(t, &addr, timeout)
	at := func(addr, password string) string {
		return (&url.URL{Scheme: "amqp", User: url.UserPassword("guest", password), Host: addr}).String()
	}
	open := func(ctx context.Context, addr, password string, o source.Options) (source.Source, error) {
		c := Config{URL: at(addr, password), ConsumerTimeout: timeout, Options: o, grown: grown}
		for _, change := range changes {
			change(&c)
		}
		s, err := Open(ctx, c)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return sourcetest.Harness{
		Addr: addr, Server: srv, Together: true, Child: []string{serverVariable + "=" + at(addr, "guest")}, Settle: 10 * time.Second,
		Open: func(ctx context.Context, via string, o source.Options) (source.Source, error) {
			if via == "" {
				via = addr
			}
			return open(ctx, via, "guest", o)
		},
		Denied: func(ctx context.Context, o source.Options) (source.Source, error) { return open(ctx, addr, "wrong", o) },
		Foreign: func(ctx context.Context, queue string, body []byte) error {
			conn, err := amqp.Dial(at(addr, "guest"))
			if err != nil {
				return err
			}
			defer conn.Close()
			ch, err := conn.Channel()
			if err != nil {
				return err
			}
			if err := ch.Confirm(false); err != nil {
				return err
			}
			c, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", "queue."+queue+".0", false, false, amqp.Publishing{Body: body})
			if err != nil {
				return err
			}
			_, err = c.WaitContext(ctx)
			return err
		},
	}
}

// start runs a broker of its own: no plugins, no shared name service, nothing outside its folder.
func start(t *testing.T, addr *string, timeout time.Duration) *sourcetest.Server {
	program := sourcetest.Need(t, "/usr/lib/rabbitmq/bin/rabbitmq-server")
	dir, port := t.TempDir(), sourcetest.Port(t)
	*addr = sourcetest.Loopback(port)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("rabbitmq.conf", fmt.Sprintf("listeners.tcp.1 = %s\nconsumer_timeout = %d\nlog.console = true\nlog.console.level = warning\n", *addr, timeout.Milliseconds()))
	write("advanced.config", "[{rabbit, [{channel_tick_interval, 1000}]}].")
	write("plugins", "[].")
	// The broker would start its name service as a daemon that outlives the test.
	names := strconv.Itoa(sourcetest.Port(t))
	epmd, err := filepath.Glob("/usr/lib/erlang/erts-*/bin/epmd")
	if err != nil || len(epmd) == 0 {
		t.Fatalf("no epmd beside Erlang: %v", err)
	}
	sourcetest.StartServer(t, sourcetest.Command{Name: "epmd", Path: epmd[0], Args: []string{"-address", "127.0.0.1", "-port", names}}, sourcetest.Listens("127.0.0.1:"+names))
	return sourcetest.StartServer(t, sourcetest.Command{Name: "rabbitmq", Path: program, Dir: dir, Env: []string{
		"HOME=" + dir, "RABBITMQ_CONFIG_FILE=" + dir + "/rabbitmq.conf", "RABBITMQ_ADVANCED_CONFIG_FILE=" + dir + "/advanced.config",
		"RABBITMQ_MNESIA_BASE=" + dir + "/db", "RABBITMQ_LOG_BASE=" + dir + "/log", "RABBITMQ_LOGS=-", "RABBITMQ_ENABLED_PLUGINS_FILE=" + dir + "/plugins",
		"RABBITMQ_CONF_ENV_FILE=" + dir + "/none", "RABBITMQ_GENERATED_CONFIG_DIR=" + dir + "/generated", "RABBITMQ_PID_FILE=" + dir + "/pid",
		"RABBITMQ_NODENAME=retinue" + strconv.Itoa(port) + "@localhost", "RABBITMQ_DIST_PORT=" + strconv.Itoa(sourcetest.Port(t)),
		// The script becomes the broker, so that the broker dies with the test.
		"RUNNING_UNDER_SYSTEMD=true",
		"ERL_EPMD_PORT=" + names, "ERL_EPMD_ADDRESS=127.0.0.1",
	}}, func(ctx context.Context) error {
		conn, err := amqp.DialConfig("amqp://guest:guest@"+*addr+"/", amqp.Config{Dial: amqp.DefaultDial(2 * time.Second)})
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

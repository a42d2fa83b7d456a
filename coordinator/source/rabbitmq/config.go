// Package rabbitmq is the source on RabbitMQ 3.10 or newer (AMQP 0.9.1): one
// durable quorum queue per priority class.
//
// The broker has no lease: a message belongs to a channel until the channel is
// gone. The lease is kept here, and what nobody extends is returned. The
// broker also has a limit that no client can extend, consumer_timeout (30
// minutes by default), after which it closes the channel and gives all its
// messages to others. A message that comes near it is moved to a queue of this
// consumer alone, from which it is taken at once with a new limit; if this
// process dies, that queue gives it back by the time to live of its messages.
// In an ordered queue it is returned and taken again instead (retake.go).
//
// Delays are queues too: a message waits in one for every digit of its delay,
// and what is left below a second is waited for here. All copies are confirmed
// before the original is acknowledged, dead lettering is at least once, and no
// copy goes into a queue that is too young to survive a kill of the broker, so
// a kill at any moment may double a delivery but loses nothing.
//
// A producer without this package publishes to the default exchange with the
// routing key queue.<name>.<class>, class 0 for the ordinary one.
package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// Config says which server and how to get in.
type Config struct {
	// URL is amqp:// or amqps://, with user, password, host, port and virtual host.
	URL string
	TLS *tls.Config
	// ConsumerTimeout is what the broker is configured with. Default 30m, its own default.
	ConsumerTimeout time.Duration
	source.Options

	fast  float64       // see adjust; tests have less to do
	grown time.Duration // age at which a queue survives a kill of the broker; tests have no time
}

const maxBody = 16 << 20 // the default limit of RabbitMQ 4

func (c *Config) queue(class int) string { return fmt.Sprintf("queue.%s.%d", c.Queue, class) }

// heldQueue is this consumer's own.
func (c *Config) heldQueue(class int) string {
	return fmt.Sprintf("queue.%s.%d.held.%s", c.Queue, class, c.Consumer)
}

// qos is how many deliveries the broker sends before it has a verdict: those that are in hand, and as many that may have one which
// waits to be sent with others.
func (c *Config) qos() int { return 2 * c.Prefetch }

// moveAt is the age of a delivery at which it is moved.
func (c *Config) moveAt() time.Duration { return c.ConsumerTimeout / 2 }

// dial connects. A context cannot end the handshake, a deadline does.
func (c *Config) dial(ctx context.Context) (*amqp.Connection, error) {
	limit := 5 * time.Second
	if at, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(at))
	}
	props := amqp.NewConnectionProperties()
	props.SetClientConnectionName("retinue " + c.Consumer)
	conn, err := amqp.DialConfig(c.URL, amqp.Config{
		TLSClientConfig: c.TLS,
		Heartbeat:       min(max((c.Lease/2).Round(time.Second), time.Second), 20*time.Second),
		Dial: func(network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: limit}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return conn, conn.SetDeadline(time.Now().Add(limit)) // the client lifts it after the handshake
		},
		Properties: props,
	})
	return conn, err
}

// declare makes the queues of the classes.
func (c *Config) declare(conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	defer ch.Close()
	args := amqp.Table{"x-queue-type": "quorum"}
	if version, _ := conn.Properties["version"].(string); c.Order {
		// Since 3.10 what is returned goes to the end of a queue that has no such limit, and to the front of one that has. After so
		// many returns a message would be dropped.
		args["x-delivery-limit"] = int32(math.MaxInt32)
	} else if major(version) >= 4 {
		// It would drop a message after 20 returns. Attempts are counted by the coordinator.
		args["x-delivery-limit"] = int32(-1)
	}
	for class := range c.Classes {
		if _, err := ch.QueueDeclare(c.queue(class), true, false, false, false, args); err != nil {
			return err
		}
	}
	return nil
}

func major(version string) int {
	first, _, _ := strings.Cut(version, ".")
	n, _ := strconv.Atoi(first)
	return n
}

// explain gives the client's errors the meaning of the contract.
func explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, source.ErrClosed) || errors.Is(err, source.ErrUnavailable) {
		return err
	}
	var broker *amqp.Error
	if errors.As(err, &broker) {
		switch {
		case errors.Is(err, amqp.ErrCredentials), errors.Is(err, amqp.ErrSASL), broker.Code == amqp.AccessRefused, broker.Code == amqp.NotAllowed:
			return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err), "check user, password and virtual host; the user needs configure, write and read on queue\\..* and write and read on the default exchange")
		case broker.Code == amqp.PreconditionFailed:
			return hint.Wrap(fmt.Errorf("%w: %w", source.ErrConfig, err), "a queue of that name exists with other properties; all consumers and producers of a queue must declare the same")
		}
	}
	var uri interface{ Timeout() bool }
	if !errors.As(err, &uri) && strings.Contains(err.Error(), "URI") {
		return fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
}

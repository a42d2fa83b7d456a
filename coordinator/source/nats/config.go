// Package nats is the source on NATS JetStream: one work-queue stream per
// queue, one subject and one durable pull consumer per priority class.
//
// The broker has leases (AckWait), extension (in progress), delayed release
// (negative acknowledgement with a delay) and counts deliveries over its own
// restarts. It forgets the delay of a release when it restarts: such a message
// comes as soon as a lease has passed. All consumers of a queue share one
// lease; the one that connected last sets it.
//
// A producer without this package publishes to the subject
// queue.<name>.<class>, class 0 for the ordinary one.
package nats

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// Config says which server and how to get in.
type Config struct {
	// URL is nats:// or tls:// with host and port, several separated by commas. User and password may stand in it.
	URL string
	// Credentials is the file of a user's JWT and key; "" for none.
	Credentials string
	// PasswordFile has the password of the URL's user; it is read at each connection, so that it can change. "" for none.
	PasswordFile string
	TLS          *tls.Config
	// Dialer connects in another way than to the URL's host; nil for that.
	Dialer nats.CustomDialer
	// Replicas of a stream that is created; an existing one stays as it is. Default 1.
	Replicas int
	source.Options
}

// dedupeWindow is how long the stream remembers ids of publications.
const dedupeWindow = 2 * time.Minute

func streamName(queue string) string       { return "QUEUE_" + queue }
func durable(class int) string             { return fmt.Sprintf("class%d", class) }
func (s *Source) subject(class int) string { return fmt.Sprintf("queue.%s.%d", s.cfg.Queue, class) }
func pingInterval(l time.Duration) time.Duration {
	return min(max(l/2, 500*time.Millisecond), 20*time.Second)
}

// connect opens the connection; state is called when it was lost, again when it could not be made anew, and without an error when it is back.
func (c *Config) connect(ctx context.Context, state func(error)) (*nats.Conn, error) {
	timeout := 5 * time.Second
	if at, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(at))
	}
	opts := []nats.Option{
		nats.Name("retinue " + c.Consumer),
		nats.Timeout(timeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 200*time.Millisecond),
		// A write to a broker that is away fails at once: whoever wrote decides what to do.
		nats.ReconnectBufSize(-1),
		nats.PingInterval(pingInterval(c.Lease)),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { state(cmp.Or(err, nats.ErrDisconnected)) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { state(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { state(nil) }),
		nats.ClosedHandler(func(*nats.Conn) { state(nats.ErrConnectionClosed) }),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // each request has its own error
	}
	if c.Credentials != "" {
		if _, err := os.Stat(c.Credentials); err != nil {
			return nil, fmt.Errorf("%w: %w", source.ErrConfig, err)
		}
		opts = append(opts, nats.UserCredentials(c.Credentials))
	}
	if c.TLS != nil {
		opts = append(opts, nats.Secure(c.TLS))
	}
	if c.Dialer != nil { // it knows where the servers are; what they say of each other may be true on their network alone
		opts = append(opts, nats.SetCustomDialer(c.Dialer), nats.SkipHostLookup(), nats.IgnoreDiscoveredServers())
	}
	address, err := c.user(&opts)
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(address, opts...)
	if err != nil {
		return nil, explain(err)
	}
	return nc, nil
}

// Connect connects to a server for something else than a queue.
func Connect(ctx context.Context, c Config) (*nats.Conn, error) {
	return c.connect(ctx, func(error) {})
}

// user returns the URL for the client, which takes a user in it for all there is to know: with a password file it stands in an option.
func (c *Config) user(opts *[]nats.Option) (string, error) {
	if c.PasswordFile == "" {
		return c.URL, nil
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return "", fmt.Errorf("%w: a password file needs one address", source.ErrConfig)
	}
	if _, err := os.Stat(c.PasswordFile); err != nil {
		return "", fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	name := u.User.Username()
	u.User = nil
	*opts = append(*opts, nats.UserInfoHandler(func() (string, string) {
		data, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return name, "" // refused by the server, which is what it is
		}
		return name, strings.TrimSpace(string(data))
	}))
	return u.String(), nil
}

// patience is how long an answer may take that needs no work. What a broker of several was asked when it was killed, or when
// they had no leader, is never answered: it has to be asked again.
const patience = 5 * time.Second

// bounded gives up a question to the broker after patience; the caller asks again.
func bounded(ctx context.Context, ask func(context.Context) error) error {
	try, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := ask(try)
	if err != nil && try.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: no answer in %v", source.ErrUnavailable, patience)
	}
	return err
}

// declare makes the stream and its consumers where they do not exist.
func (c *Config) declare(ctx context.Context, js jetstream.JetStream) error {
	return bounded(ctx, func(ctx context.Context) error { return c.make(ctx, js) })
}

func (c *Config) make(ctx context.Context, js jetstream.JetStream) error {
	_, err := js.Stream(ctx, streamName(c.Queue))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name:        streamName(c.Queue),
			Description: "work queue " + c.Queue,
			Subjects:    []string{"queue." + c.Queue + ".*"},
			Retention:   jetstream.WorkQueuePolicy,
			Storage:     jetstream.FileStorage,
			Replicas:    max(1, c.Replicas),
			Duplicates:  dedupeWindow,
		})
	}
	if err != nil {
		return explain(err)
	}
	for class := range c.Classes {
		_, err := js.Consumer(ctx, streamName(c.Queue), durable(class))
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			err = c.consumer(ctx, js, class)
		}
		if err != nil {
			return explain(err)
		}
	}
	return nil
}

// tune makes sure that a class's consumer exists and has our lease. It looks first: who leads the consumer answers that, while
// a change is decided by the leader of all brokers, and between two leaders by nobody.
func (c *Config) tune(ctx context.Context, js jetstream.JetStream, class int) error {
	return bounded(ctx, func(ctx context.Context) error {
		known, err := js.Consumer(ctx, streamName(c.Queue), durable(class))
		if err == nil && known.CachedInfo().Config.AckWait == c.Lease {
			return nil
		}
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
		return c.consumer(ctx, js, class)
	})
}

// consumer makes a class's consumer, or gives it our lease.
func (c *Config) consumer(ctx context.Context, js jetstream.JetStream, class int) error {
	_, err := js.CreateOrUpdateConsumer(ctx, streamName(c.Queue), jetstream.ConsumerConfig{
		Durable:       durable(class),
		FilterSubject: fmt.Sprintf("queue.%s.%d", c.Queue, class),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       c.Lease,
		MaxDeliver:    -1,
		MaxAckPending: -1,
		MaxWaiting:    4096,
	})
	return err
}

// Codes of the server for which the client has no names.
const (
	noPeers   jetstream.ErrorCode = 10005 // too few brokers at the moment, with the code of a wrong configuration
	noCluster jetstream.ErrorCode = 10074
)

// explain gives the client's errors the meaning of the contract.
func explain(err error) error {
	var dns *net.DNSError
	var api *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, source.ErrConfig), errors.Is(err, source.ErrUnavailable):
		return err
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrPermissionViolation), strings.Contains(strings.ToLower(err.Error()), "authorization violation"):
		return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err), "check user, password or credentials file; the user needs $JS.API.>, $JS.ACK.>, queue.> and _INBOX.>")
	case errors.As(err, &dns):
		return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", source.ErrTooLarge, err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return hint.Wrap(fmt.Errorf("%w: %w", source.ErrConfig, err), "start nats-server with JetStream (-js) and a store folder")
	case errors.As(err, &api) && api.ErrorCode == noPeers:
		return hint.Wrap(fmt.Errorf("%w: %w", source.ErrUnavailable, err), "a new queue with replicas=3 needs all three brokers")
	case errors.As(err, &api) && api.ErrorCode == noCluster:
		return hint.Wrap(fmt.Errorf("%w: %w", source.ErrConfig, err), "replicas=3 needs three brokers that are one cluster")
	case errors.As(err, &api) && api.Code >= 400 && api.Code < 500:
		return fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
}

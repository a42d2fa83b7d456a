// Package redis is the source on Redis Streams (Redis 6.2 or newer): one
// stream per priority class with one consumer group, a sorted set for what is
// delayed, a key per id for what was published.
//
// The lease is the idle time in the group's list of pending entries. A
// consumer that asks for messages also takes over those whose lease ended and
// moves what is due from the sorted set, so nothing else has to run. Every
// step is one script: none is ever half done.
//
// What is given back is a new entry at the end. In an ordered queue it stays
// where it is, with a lease that is over, and a consumer takes over all such
// entries before it reads what nobody had.
//
// Redis keeps what it confirmed only as well as it is configured to: with
// "appendonly yes" and "appendfsync always" over a kill and a power failure,
// with "everysec" up to a second or two are lost, without a file everything.
// A failover to a replica loses what was not replicated yet.
//
// A producer without this package adds an entry with the field "body" to the
// stream queue:{<name>}:0; other fields are headers.
package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// Config says which server and how to get in.
type Config struct {
	// URL is redis:// or rediss:// (TLS), with user, password, host, port and number of the database.
	URL string
	TLS *tls.Config
	source.Options
}

const (
	group        = "workers"
	dedupeWindow = 10 * time.Minute
	// tickEvery is how often a consumer looks for what is due.
	tickEvery = 150 * time.Millisecond
	// maxBody is Redis's own limit of a string, less what goes along.
	maxBody = 500 << 20
)

func (c *Config) prefix() string { return "queue:{" + c.Queue + "}:" }

// keys are the delayed set and the streams of the classes.
func (c *Config) keys() []string {
	keys := []string{c.prefix() + "delayed"}
	for class := range c.Classes {
		keys = append(keys, c.stream(class))
	}
	return keys
}

func (c *Config) stream(class int) string { return fmt.Sprintf("%s%d", c.prefix(), class) }

// connect makes the client. It connects when it is used.
func (c *Config) connect() (*redis.Client, error) {
	o, err := redis.ParseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("%w: address of Redis: %w", source.ErrConfig, err)
	}
	if c.TLS != nil {
		o.TLSConfig = c.TLS
	}
	o.ClientName = "retinue-" + c.Consumer
	o.DialTimeout, o.WriteTimeout = 3*time.Second, 3*time.Second
	o.ReadTimeout = min(max(c.Lease, time.Second), 5*time.Second)
	// A repeated command could find its own work done and take it for somebody else's.
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.Protocol, o.DisableIdentity = 2, true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(o), nil
}

// Connect returns a client for something else than a queue. It connects when it is used.
func Connect(c Config) (*redis.Client, error) { return c.connect() }

// declare makes the streams and their group.
func (c *Config) declare(ctx context.Context, db *redis.Client) error {
	for class := range c.Classes {
		err := db.XGroupCreateMkStream(ctx, c.stream(class), group, "0").Err()
		if err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
			return explain(err)
		}
	}
	return nil
}

// explain gives the client's errors the meaning of the contract.
func explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, source.ErrClosed) {
		return err
	}
	var answer redis.Error
	if errors.As(err, &answer) {
		word, _, _ := strings.Cut(answer.Error(), " ")
		switch word {
		case "WRONGPASS", "NOAUTH", "NOPERM", "DENIED":
			return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err), "check user and password; the user needs the keys queue:* and the stream, sorted set and scripting commands")
		case "ERR", "WRONGTYPE", "UNKNOWN":
			if strings.Contains(err.Error(), "AUTH") {
				return fmt.Errorf("%w: %w", source.ErrAccess, err)
			}
			return fmt.Errorf("%w: %w", source.ErrConfig, err)
		}
	}
	return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
}

// Package kafka is the source on Apache Kafka: a topic and a group per priority
// class. A queue is read by groups of one kind, for its whole life (kind.go).
//
// Share groups (Kafka 4.2 or newer) have a lock on each record that is
// delivered: link.go speaks with the broker, pool.go has the links of a class,
// sharing.go is the whole. A record that is delivered again goes on as a copy, so
// that the broker's limit of deliveries ends none.
//
// Classic groups (Kafka 2.4 or newer) give out partitions and know no lease of a
// message. Here a message is taken by a mark: before a consumer hands
// messages out, it writes a mark for each into the topic of marks and then
// commits the group's position behind them. From then on the message hangs on
// its mark and no longer on its partition, so a partition can go to another
// consumer at any moment while its messages are in work. Extend writes the mark
// again, Ack writes its end, Release writes when the message is due.
//
// A delayed message hangs on a mark with either kind: what a share group has
// locked is accepted when the mark is written.
//
// Whoever receives also takes part in a classic group over the marks. Who gets a
// partition of the marks watches over their leases: a message whose lease
// ended or whose delay is over is read again at its offset, published as a copy
// at the end of its class, and only then the mark is ended. Before that a line
// is written to the marks and waited for, so that nothing which was confirmed
// before is overlooked. The order of the steps is such that a kill at any
// moment may double a delivery but loses nothing.
//
// The marks are compacted by their key. Where a partition of them is continued
// from is the oldest mark that still counts, and stands in the group's commit
// together with how many messages are in flight and delayed.
//
// A producer without this package publishes to the topic queue.<name>.0, with
// or without a key.
package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// Config says which servers, how to get in and how the topics are made.
type Config struct {
	// URL is kafka:// or kafkas:// (TLS) with user and password where the servers ask for them, hosts separated by commas
	// (port 9092 where none is given), and as its path what the names of topics and groups begin with (default queue).
	URL string
	// PasswordFile has the password of the URL's user; it is read at each connection, so that it can change. "" for none.
	PasswordFile string
	// SASL is scram-sha-256 (the default), scram-sha-512 or plain.
	SASL string
	// Partitions of a topic that is made. No more consumers than that receive from one class at a time. Default 16.
	Partitions int
	// Replicas of a topic that is made. Default: the broker's.
	Replicas int
	// Groups is share or classic; auto, the default, is what the queue was made with, and for a new one share where the brokers
	// have share groups.
	Groups string
	// Session is how long a consumer that is not heard of keeps its partitions. Default 6s, the least that Kafka's own default allows.
	Session time.Duration
	source.Options

	dial func(ctx context.Context, network, host string) (net.Conn, error) // nil: the ordinary
	trim time.Duration                                                     // how often finished records are deleted; 0: every minute
}

const (
	patience   = 10 * time.Second // for one request
	mebibyte   = 1 << 20
	maxTopic   = 16 * mebibyte // of a message in a topic that is made
	overhead   = 32 << 10      // headers, ours too, and the batch around the record
	smallTopic = mebibyte      // what every broker takes, where it does not tell
)

// place is a Config in the client's words.
type place struct {
	seeds  []string
	prefix string
	tls    *tls.Config
	auth   sasl.Mechanism
}

func (c *Config) complete() (place, error) {
	if err := c.Complete(); err != nil {
		return place{}, err
	}
	if err := c.NoOrder("Kafka"); err != nil {
		return place{}, err
	}
	if c.Partitions == 0 {
		c.Partitions = 16
	}
	if c.Replicas == 0 {
		c.Replicas = -1
	}
	if c.trim == 0 {
		c.trim = time.Minute
	}
	switch c.Groups {
	case "":
		c.Groups = groupsAuto
	case groupsAuto, groupsShare, groupsClassic:
	default:
		return place{}, fmt.Errorf("%w: groups %q: auto, share and classic are possible", source.ErrConfig, c.Groups)
	}
	if c.Session == 0 {
		c.Session = 6 * time.Second
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		// The error of url.Parse repeats the address, and with it the password.
		return place{}, fmt.Errorf("%w: the address of the broker is not a URL", source.ErrConfig)
	}
	p := place{prefix: strings.Trim(u.Path, "/")}
	if p.prefix == "" {
		p.prefix = "queue"
	}
	for host := range strings.SplitSeq(u.Host, ",") {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), "9092")
		}
		p.seeds = append(p.seeds, host)
	}
	switch {
	case u.Scheme == "kafkas":
		p.tls = &tls.Config{}
	case u.Scheme != "kafka":
		return place{}, fmt.Errorf("%w: %s is no scheme of Kafka", source.ErrConfig, u.Scheme)
	}
	if len(p.prefix) > source.MaxQueue || strings.Trim(p.prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
		return place{}, fmt.Errorf("%w: prefix %q: letters, digits, dot, - and _, at most %d of them", source.ErrConfig, p.prefix, source.MaxQueue)
	}
	if c.Partitions < 1 || c.Session < 0 {
		return place{}, fmt.Errorf("%w: %d partitions, a session of %v", source.ErrConfig, c.Partitions, c.Session)
	}
	p.auth, err = c.login(u.User)
	return p, err
}

// login says who we are, with the password as it is at each connection.
func (c *Config) login(user *url.Userinfo) (sasl.Mechanism, error) {
	if user == nil {
		return nil, nil
	}
	password := func() (string, error) {
		if c.PasswordFile == "" {
			p, _ := user.Password()
			return p, nil
		}
		data, err := os.ReadFile(c.PasswordFile)
		return strings.TrimSpace(string(data)), err
	}
	if _, err := password(); err != nil {
		return nil, fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	hashed := func(context.Context) (scram.Auth, error) {
		p, err := password()
		return scram.Auth{User: user.Username(), Pass: p}, err
	}
	switch strings.ToLower(c.SASL) {
	case "", "scram-sha-256":
		return scram.Sha256(hashed), nil
	case "scram-sha-512":
		return scram.Sha512(hashed), nil
	case "plain":
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			p, err := password()
			return plain.Auth{User: user.Username(), Pass: p}, err
		}), nil
	}
	return nil, fmt.Errorf("%w: sasl %q: scram-sha-256, scram-sha-512 and plain are possible", source.ErrConfig, c.SASL)
}

// client makes a client; it connects when it is used.
func (s *Source) client(more ...kgo.Opt) (*kgo.Client, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(s.place.seeds...), kgo.ClientID("retinue-" + s.cfg.Consumer), kgo.DisableClientMetrics(),
		kgo.DialTimeout(3 * time.Second), kgo.RetryTimeout(patience), kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.RetryBackoffFn(func(n int) time.Duration { return min(50*time.Millisecond<<min(n, 5), time.Second) }),
		// A wrong password that closes the connection is an error, no matter for another try.
		kgo.RequestRetries(8),
	}
	if s.cfg.dial != nil {
		opts = append(opts, kgo.Dialer(s.cfg.dial))
	} else if s.place.tls != nil {
		opts = append(opts, kgo.DialTLSConfig(s.place.tls))
	}
	if s.place.auth != nil {
		opts = append(opts, kgo.SASL(s.place.auth))
	}
	c, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	return c, nil
}

// member makes a client that takes part in the group of a topic.
func (s *Source) member(topic string, more ...kgo.Opt) (*kgo.Client, error) {
	return s.client(append([]kgo.Opt{
		kgo.ConsumerGroup(topic), kgo.ConsumeTopics(topic), kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), kgo.SessionTimeout(s.cfg.Session), kgo.HeartbeatInterval(s.cfg.Session / 8),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxBytes(8 * mebibyte), kgo.FetchMaxWait(time.Second),
	}, more...)...)
}

func (s *Source) topic(class int) string {
	return fmt.Sprintf("%s.%s.%d", s.place.prefix, s.cfg.Queue, class)
}

func (s *Source) marksTopic() string { return s.place.prefix + "." + s.cfg.Queue + ".marks" }

// declare makes the topics that do not exist, and learns of which kind the queue is and how large a message may be.
func (s *Source) declare(ctx context.Context) error {
	// What nobody has finished must not go: who watches over the marks deletes what is finished.
	topics := s.topics()
	if err := s.create(ctx, map[string]string{"retention.ms": "-1", "retention.bytes": "-1", "max.message.bytes": fmt.Sprint(maxTopic)}, topics...); err != nil {
		return err
	}
	if err := s.declareMarks(ctx); err != nil {
		return err
	}
	s.maxBody = s.largest(ctx, topics) - overhead
	return nil
}

// largest is the largest message that all topics take.
func (s *Source) largest(ctx context.Context, topics []string) int {
	all, err := s.admin.DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return smallTopic
	}
	least := maxTopic
	for _, r := range all {
		here := smallTopic
		for _, c := range r.Configs {
			if c.Key == "max.message.bytes" && c.Value != nil {
				fmt.Sscan(*c.Value, &here)
			}
		}
		least = min(least, here)
	}
	return max(least, 2*overhead)
}

// explain gives the client's errors the meaning of the contract.
func explain(err error) error {
	var net *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, source.ErrClosed), errors.Is(err, source.ErrUnavailable), errors.Is(err, source.ErrConfig), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, kgo.ErrClientClosed):
		return source.ErrClosed
	case errors.Is(err, kerr.SaslAuthenticationFailed), errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.GroupAuthorizationFailed),
		errors.Is(err, kerr.ClusterAuthorizationFailed), errors.Is(err, kerr.IllegalSaslState), errors.Is(err, kerr.UnsupportedSaslMechanism):
		return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err),
			"check user, password and mechanism; the user needs Create, Read, Write, Describe, DescribeConfigs and Delete on the topics, and Read and (for share groups) AlterConfigs on the groups that begin with the prefix")
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return fmt.Errorf("%w: %w", source.ErrTooLarge, err)
	case errors.Is(err, kerr.InvalidSessionTimeout):
		return hint.Wrap(fmt.Errorf("%w: %w", source.ErrConfig, err), "the broker's group.min.session.timeout.ms is above the session: set session in the address")
	case errors.Is(err, kerr.InvalidReplicationFactor), errors.Is(err, kerr.InvalidTopicException), errors.Is(err, kerr.PolicyViolation), errors.Is(err, kerr.InvalidPartitions):
		return fmt.Errorf("%w: %w", source.ErrConfig, err)
	case errors.As(err, &net):
	}
	return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
}

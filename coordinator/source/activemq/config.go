// Package activemq is the source on ActiveMQ Classic 5.17 or newer, over STOMP
// 1.2: one queue per priority class, by connections of its own for what is
// published and what is received.
//
// A STOMP client of ActiveMQ can keep a message or end it, but not give it
// back: NACK sends it to the broker's dead letter queue. What does give a
// message back is the end of its subscription. So each message that this
// consumer may have at a time is a subscription of its own, of one message: a
// slot. To release a message ends its slot, and nothing is copied.
//
// The broker has no lease either. It is kept here, as is the heart-beat by
// which the broker notices that this process hangs: not before the lease is
// over.
//
// A delay is a copy that the broker's scheduler holds (schedulerSupport, which
// must be switched on), confirmed before the original is acknowledged. Not in
// one transaction with it: the broker hands a message to its scheduler after
// the commit, and a kill between the two would lose it. The scheduler rounds
// up to half seconds, so a message is scheduled half a second early and waited
// for here.
//
// A producer without this package publishes to the queue queue.<name>.<class>,
// class 0 for the ordinary one, with persistent:true.
package activemq

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

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// Config says which server and how to get in.
type Config struct {
	// URL is stomp:// or stomps:// (TLS), with host and port. User and password may stand in it.
	URL string
	// PasswordFile has the password of the URL's user; it is read at each connection, so that it can change. "" for none.
	PasswordFile string
	// TLS changes how a stomps:// server is checked. Nil: by the system's roots.
	TLS *tls.Config
	source.Options

	addr, host     string
	user, password string
	tls            *tls.Config
}

const (
	maxBody = 16 << 20
	// early is how much before its time a message leaves the broker's scheduler, which rounds up by as much.
	early = 500 * time.Millisecond
)

// destination is the queue of a class.
func (c *Config) destination(class int) string {
	return fmt.Sprintf("/queue/queue.%s.%d", c.Queue, class)
}

// complete checks the address and takes it apart.
func (c *Config) complete() error {
	if err := c.Complete(); err != nil {
		return err
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" || u.Scheme != "stomp" && u.Scheme != "stomps" || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		// Not repeated: a password may stand in it.
		return hint.Wrap(fmt.Errorf("%w: the address of the broker", source.ErrConfig), "it is stomp://HOST:61613, or stomps:// for TLS")
	}
	c.host, c.user = u.Hostname(), u.User.Username()
	c.password, _ = u.User.Password()
	port := u.Port()
	if u.Scheme == "stomps" {
		c.tls = c.TLS.Clone()
		if c.tls == nil {
			c.tls = &tls.Config{}
		}
		if c.tls.ServerName == "" {
			c.tls.ServerName = c.host
		}
		if port == "" {
			port = "61614"
		}
	}
	if port == "" {
		port = "61613"
	}
	c.addr = net.JoinHostPort(c.host, port)
	return nil
}

// credentials are the user and the password as they are now.
func (c *Config) credentials() (user, password string, err error) {
	if c.PasswordFile == "" {
		return c.user, c.password, nil
	}
	data, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", "", fmt.Errorf("%w: the password file: %w", source.ErrConfig, err)
	}
	return c.user, strings.TrimSpace(string(data)), nil
}

// beats are how often the broker hears of us at least, and we of it. The broker ends a connection it has not heard of for
// nine tenths of the first at the earliest: later than our leases end.
func (c *Config) beats() (ours, theirs time.Duration) {
	return max(3*c.Lease/2, 3*time.Second), min(max(c.Lease/6, 750*time.Millisecond), 10*time.Second)
}

// explain gives errors the meaning of the contract.
func explain(err error) error {
	for _, known := range []error{context.Canceled, source.ErrClosed, source.ErrUnavailable, source.ErrAccess, source.ErrConfig, source.ErrLost} {
		if err == nil || errors.Is(err, known) {
			return err
		}
	}
	var broker *brokerError
	if errors.As(err, &broker) {
		words := strings.ToLower(broker.message + broker.body)
		for _, refusal := range []string{"password is invalid", "not authorized", "securityexception", "loginexception", "authentication failed", "authenticationexception"} {
			if strings.Contains(words, refusal) {
				return hint.Wrap(fmt.Errorf("%w: %w", source.ErrAccess, err), "check user and password; the user needs read, write and admin on queue.> (and ActiveMQ.Advisory.>, which the broker writes for it)")
			}
		}
	}
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	if errors.As(err, &certificate) || errors.As(err, &record) || errors.Is(err, errFrame) {
		return fmt.Errorf("%w: %w", source.ErrConfig, err)
	}
	return fmt.Errorf("%w: %w", source.ErrUnavailable, err)
}

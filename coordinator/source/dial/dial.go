// Package dial opens a source by its address: the one place that knows the
// adapters that are linked into the multi-call binary. Packages source/kafka
// and source/sqs are not among them: their libraries would make every idle
// helper larger than it may be. Package dial/every has them too, and the
// program retinue-coordinator with it.
package dial

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/activemq"
	"retinue/coordinator/source/nats"
	"retinue/coordinator/source/rabbitmq"
	"retinue/coordinator/source/redis"
	"retinue/internal/hint"
)

// Schemes are the addresses that Open understands.
const Schemes = "nats, tls, redis, rediss, amqp, amqps, stomp, stomps"

// Others are those that only the larger program understands.
const Others = "kafka, kafkas, sqs"

// Open opens the queue of o at an address:
//
//	nats://user:password@host:4222?credentials=FILE&replicas=3   tls:// for TLS
//	nats://user@NAME.service.consul?password_file=FILE           a service in Consul, asked at each connection
//	redis://user:password@host:6379/0                            rediss:// for TLS
//	amqp://user:password@host:5672/vhost?consumer_timeout=30m    amqps:// for TLS
//	stomp://user@host:61613?password_file=FILE                   ActiveMQ; stomps:// for TLS
//
// What follows the question mark may be left out. An address with an unknown scheme or parameter is ErrConfig.
func Open(ctx context.Context, address string, o source.Options) (source.Source, error) {
	p, err := Parse(address)
	if err != nil {
		return nil, err
	}
	switch p.URL.Scheme {
	case "nats", "tls":
		c, err := natsConfig(p, o)
		if err != nil {
			return nil, err
		}
		return Adapter(ctx, p, c, nats.Open)
	case "redis", "rediss":
		c := redis.Config{Options: o}
		c.URL = p.Rest()
		return Adapter(ctx, p, c, redis.Open)
	case "amqp", "amqps":
		c := rabbitmq.Config{ConsumerTimeout: p.Duration("consumer_timeout"), Options: o}
		c.URL = p.Rest()
		return Adapter(ctx, p, c, rabbitmq.Open)
	case "stomp", "stomps":
		c := activemq.Config{PasswordFile: p.Text("password_file"), Options: o}
		c.URL = p.Rest()
		return Adapter(ctx, p, c, activemq.Open)
	}
	if advice := Elsewhere(p.URL.Scheme); advice != "" {
		return nil, hint.Wrap(fmt.Errorf("%w: this program does not have the broker %s", source.ErrConfig, p.URL.Scheme), "%s", advice)
	}
	return nil, hint.Wrap(fmt.Errorf("%w: %q is no broker", source.ErrConfig, p.URL.Scheme), "an address begins with one of %s, as in nats://127.0.0.1:4222", Schemes)
}

// natsConfig reads an address of NATS.
func natsConfig(p *Address, o source.Options) (nats.Config, error) {
	c := nats.Config{Credentials: p.Text("credentials"), PasswordFile: p.Text("password_file"), Replicas: p.Number("replicas"), Options: o}
	if service := serviceOf(p.URL.Hostname()); service != "" {
		where, err := newCatalog(service)
		if err != nil {
			return c, err
		}
		c.Dialer = where
	}
	c.URL = p.Rest()
	return c, p.err
}

// Elsewhere says what to do about a broker that only the larger program has; "" for any other.
func Elsewhere(scheme string) string {
	if scheme != "" && slices.Contains(strings.Split(Others, ", "), scheme) {
		return "put the program retinue-coordinator beside this one, which then becomes it, or use it in place of `retinue coordinator`: the same flags, and this broker too"
	}
	return ""
}

// Adapter opens a source with a configuration taken from an address, unless the address was wrong. It keeps a nil pointer from becoming a source
// that is not nil.
func Adapter[C any, S source.Source](ctx context.Context, p *Address, c C, f func(context.Context, C) (S, error)) (source.Source, error) {
	if p.err != nil {
		return nil, p.err
	}
	s, err := f(ctx, c)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Address is the address of a broker, from which parameters are taken one by one.
type Address struct {
	URL    *url.URL
	values url.Values
	err    error
}

// Parse reads an address.
func Parse(address string) (*Address, error) {
	u, err := url.Parse(address)
	if err != nil {
		// The error of url.Parse repeats the address, and with it the password.
		return nil, fmt.Errorf("%w: the address of the broker is not a URL", source.ErrConfig)
	}
	return &Address{URL: u, values: u.Query()}, nil
}

// Text takes a parameter.
func (p *Address) Text(name string) string {
	v := p.values.Get(name)
	p.values.Del(name)
	return v
}

// Number takes a parameter that is a number.
func (p *Address) Number(name string) int { return parsed(p, name, strconv.Atoi) }

// Duration takes a parameter like 30s.
func (p *Address) Duration(name string) time.Duration { return parsed(p, name, time.ParseDuration) }

func parsed[T any](p *Address, name string, parse func(string) (T, error)) (v T) {
	text := p.Text(name)
	if text == "" {
		return v
	}
	v, err := parse(text)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("%w: %s=%s in the address of the broker", source.ErrConfig, name, text)
	}
	return v
}

// Bool takes a parameter that is true or false.
func (p *Address) Bool(name string) bool { return parsed(p, name, strconv.ParseBool) }

// Rest is the address without parameters; one that nobody took is an error, which Adapter returns.
func (p *Address) Rest() string {
	for name := range p.values {
		if p.err == nil {
			p.err = fmt.Errorf("%w: a %s address has no parameter %s", source.ErrConfig, p.URL.Scheme, name)
		}
	}
	plain := *p.URL
	plain.RawQuery = ""
	return plain.String()
}

// Refuse makes Adapter return an error of configuration.
func (p *Address) Refuse(why string) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s", source.ErrConfig, why)
	}
}

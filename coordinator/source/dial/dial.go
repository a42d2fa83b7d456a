// Package dial opens a source by its address: the one place that knows the
// adapters that are linked into the multi-call binary. Package source/sqs is
// not among them: AWS's SDK would cost every helper six megabytes of memory.
// Package source/kafka is with the build tag kafka only.
package dial

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
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

// Open opens the queue of o at an address:
//
//	nats://user:password@host:4222?credentials=FILE&replicas=3   tls:// for TLS
//	nats://user@NAME.service.consul?password_file=FILE           a service in Consul, asked at each connection
//	redis://user:password@host:6379/0                            rediss:// for TLS
//	amqp://user:password@host:5672/vhost?consumer_timeout=30m    amqps:// for TLS
//	stomp://user@host:61613?password_file=FILE                   ActiveMQ; stomps:// for TLS
//	kafka://user:password@host:9092,host:9092/prefix?sasl=plain&password_file=FILE&partitions=16&replicas=3&session=10s
//	                                                             kafkas:// for TLS; with the build tag kafka only
//
// What follows the question mark may be left out. An address with an unknown scheme or parameter is ErrConfig.
func Open(ctx context.Context, address string, o source.Options) (source.Source, error) {
	u, err := url.Parse(address)
	if err != nil {
		// The error of url.Parse repeats the address, and with it the password.
		return nil, fmt.Errorf("%w: the address of the broker is not a URL", source.ErrConfig)
	}
	p := params{u: u, values: u.Query()}
	switch u.Scheme {
	case "nats", "tls":
		c, err := natsConfig(&p, o)
		if err != nil {
			return nil, err
		}
		return open(ctx, p, c, nats.Open)
	case "redis", "rediss":
		c := redis.Config{Options: o}
		c.URL = p.rest()
		return open(ctx, p, c, redis.Open)
	case "amqp", "amqps":
		c := rabbitmq.Config{ConsumerTimeout: p.duration("consumer_timeout"), Options: o}
		c.URL = p.rest()
		return open(ctx, p, c, rabbitmq.Open)
	case "stomp", "stomps":
		c := activemq.Config{PasswordFile: p.text("password_file"), Options: o}
		c.URL = p.rest()
		return open(ctx, p, c, activemq.Open)
	case "kafka", "kafkas":
		return openKafka(ctx, p, o)
	}
	return nil, hint.Wrap(fmt.Errorf("%w: %q is no broker", source.ErrConfig, u.Scheme), "an address begins with one of %s, as in nats://127.0.0.1:4222", Schemes)
}

// natsConfig reads an address of NATS.
func natsConfig(p *params, o source.Options) (nats.Config, error) {
	c := nats.Config{Credentials: p.text("credentials"), PasswordFile: p.text("password_file"), Replicas: p.number("replicas"), Options: o}
	if service := serviceOf(p.u.Hostname()); service != "" {
		where, err := newCatalog(service)
		if err != nil {
			return c, err
		}
		c.Dialer = where
	}
	c.URL = p.rest()
	return c, p.err
}

// open keeps a nil pointer from becoming a source that is not nil.
func open[C any, S source.Source](ctx context.Context, p params, c C, f func(context.Context, C) (S, error)) (source.Source, error) {
	if p.err != nil {
		return nil, p.err
	}
	s, err := f(ctx, c)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// params takes parameters out of an address.
type params struct {
	u      *url.URL
	values url.Values
	err    error
}

func (p *params) text(name string) string {
	v := p.values.Get(name)
	p.values.Del(name)
	return v
}

func (p *params) number(name string) int { return parsed(p, name, strconv.Atoi) }

func (p *params) duration(name string) time.Duration { return parsed(p, name, time.ParseDuration) }

func parsed[T any](p *params, name string, parse func(string) (T, error)) (v T) {
	text := p.text(name)
	if text == "" {
		return v
	}
	v, err := parse(text)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("%w: %s=%s in the address of the broker", source.ErrConfig, name, text)
	}
	return v
}

// rest is the address without parameters; one that nobody took is an error.
func (p *params) rest() string {
	for name := range p.values {
		if p.err == nil {
			p.err = fmt.Errorf("%w: a %s address has no parameter %s", source.ErrConfig, p.u.Scheme, name)
		}
	}
	plain := *p.u
	plain.RawQuery = ""
	return plain.String()
}

package dial

import (
	"context"
	"fmt"

	natsgo "github.com/nats-io/nats.go"

	"retinue/coordinator/commit"
	"retinue/coordinator/source"
	"retinue/coordinator/source/nats"
	"retinue/coordinator/source/redis"
	"retinue/internal/hint"
)

// Journal opens the key-value store that the broker at an address has beside its queues, for commit records: a bucket of JetStream, or keys
// of Redis. It connects when it is used. Other brokers have none.
func Journal(address, name string) (commit.KV, error) {
	p, err := Parse(address)
	if err != nil {
		return nil, err
	}
	o := source.Options{Queue: name}
	if err := o.Complete(); err != nil {
		return nil, err
	}
	switch p.URL.Scheme {
	case "nats", "tls":
		c, err := natsConfig(p, o)
		if err != nil {
			return nil, err
		}
		return &commit.NATS{Connect: func(ctx context.Context) (*natsgo.Conn, error) { return nats.Connect(ctx, c) }, Bucket: "retinue-" + name, Replicas: c.Replicas}, nil
	case "redis", "rediss":
		db, err := redis.Connect(redis.Config{URL: p.Rest(), Options: o})
		if p.err != nil {
			return nil, p.err
		}
		if err != nil {
			return nil, err
		}
		return commit.Redis{DB: db, Prefix: "queue:{" + name + "}:"}, nil
	}
	return nil, hint.Wrap(fmt.Errorf("%w: %s has no store for records of its own", source.ErrConfig, p.URL.Scheme), "NATS and Redis have; use --journal consul:NAME or s3://BUCKET/PREFIX, or --commit rename")
}

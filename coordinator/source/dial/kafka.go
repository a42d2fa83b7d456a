//go:build kafka

package dial

import (
	"context"

	"retinue/coordinator/source"
	"retinue/coordinator/source/kafka"
)

// openKafka is part of programs built with the tag kafka.
func openKafka(ctx context.Context, p params, o source.Options) (source.Source, error) {
	c := kafka.Config{
		PasswordFile: p.text("password_file"), SASL: p.text("sasl"), Partitions: p.number("partitions"), Replicas: p.number("replicas"),
		Session: p.duration("session"), Options: o,
	}
	c.URL = p.rest()
	return open(ctx, p, c, kafka.Open)
}

// Package every opens a source by its address on any broker there is an
// adapter for, those included that are too large for the multi-call binary.
package every

import (
	"context"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
	"retinue/coordinator/source/kafka"
	"retinue/coordinator/source/sqs"
)

// Schemes are the addresses that Open understands.
const Schemes = dial.Schemes + ", " + dial.Others

// Open opens the queue of o at an address: those of dial.Open, and
//
//	kafka://user:password@host:9092,host:9092/prefix?sasl=plain&password_file=FILE&partitions=16&replicas=3&session=10s&groups=share
//	                                                             kafkas:// for TLS
//	sqs://us-east-1?fifo=true&endpoint=http://127.0.0.1:9324     without a region, sqs://, AWS_REGION says it; credentials as in all of AWS's programs
func Open(ctx context.Context, address string, o source.Options) (source.Source, error) {
	p, err := dial.Parse(address)
	if err != nil {
		return nil, err
	}
	switch p.URL.Scheme {
	case "kafka", "kafkas":
		c := kafka.Config{
			PasswordFile: p.Text("password_file"), SASL: p.Text("sasl"), Partitions: p.Number("partitions"), Replicas: p.Number("replicas"),
			Session: p.Duration("session"), Groups: p.Text("groups"), Options: o,
		}
		c.URL = p.Rest()
		return dial.Adapter(ctx, p, c, kafka.Open)
	case "sqs":
		c := sqs.Config{Region: p.URL.Host, Endpoint: p.Text("endpoint"), FIFO: p.Bool("fifo"), Options: o}
		p.Rest()
		if p.URL.User != nil || p.URL.Path != "" && p.URL.Path != "/" {
			p.Refuse("an sqs address is sqs://REGION: credentials come from AWS's own environment and files, and the queue is --queue")
		}
		return dial.Adapter(ctx, p, c, sqs.Open)
	}
	return dial.Open(ctx, address, o)
}

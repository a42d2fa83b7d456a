package command

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/internal/cli"
	"retinue/internal/hint"
)

// brokerTimeout bounds the opening of one queue.
const brokerTimeout = 15 * time.Second

// open returns what opens the queues of the broker at url.
func (b Brokers) open(url string) (func(source.Options) (source.Source, error), error) {
	scheme, _, _ := strings.Cut(url, ":")
	switch scheme {
	case "memory":
		broker := memory.New()
		return func(o source.Options) (source.Source, error) { return broker.Open(o) }, nil
	case "":
		return nil, cli.Usage(hint.Wrap(fmt.Errorf("no broker named"), "give --broker URL; memory: tries a worker without one"))
	}
	if !slices.Contains(strings.Split(b.Schemes, ", "), scheme) {
		if b.Elsewhere != nil {
			if advice := b.Elsewhere(scheme); advice != "" {
				return nil, cli.Usage(hint.Wrap(fmt.Errorf("this program does not have the broker %s", scheme), "%s", advice))
			}
		}
		schemes := b.Schemes
		if b.Others != "" {
			schemes += " (and with " + Program + " beside this program " + b.Others + ")"
		}
		return nil, cli.Usage(hint.Wrap(fmt.Errorf("broker %q is unknown", scheme), "use one of %s, as in nats://HOST:PORT, or memory: (a queue that ends with this process)", schemes))
	}
	return func(o source.Options) (source.Source, error) {
		ctx, cancel := context.WithTimeout(context.Background(), brokerTimeout)
		defer cancel()
		return b.Open(ctx, url, o)
	}, nil
}

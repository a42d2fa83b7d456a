package command

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
	"retinue/internal/cli"
	"retinue/internal/envflag"
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

// SchemeOf is the scheme of the broker's address that a command line names, `retinue VERB ARGS`, by a flag, the environment or the
// file of --config. It is "" where none is named, for other verbs, and where the command line asks for help or is wrong.
func SchemeOf(verb string, args []string, lookup func(string) (string, bool)) string {
	var cmd *cobra.Command
	var address func() string
	switch verb {
	case "coordinator":
		c, f := newCoordinator(Brokers{})
		cmd, address = c, func() string {
			s, err := f.settings(nil, func(string) string { return "" })
			if err != nil {
				return ""
			}
			return s.Source.Broker
		}
	case "scaler":
		c, f := newScaler(Brokers{})
		cmd, address = c, func() string { return f.broker }
	default:
		return ""
	}
	root := &cobra.Command{Use: "retinue"} // the environment's names begin with it
	root.AddCommand(cmd)
	if cmd.ParseFlags(args) != nil || envflag.Apply(cmd, lookup) != nil {
		return ""
	}
	scheme, _, _ := strings.Cut(address(), ":")
	return scheme
}

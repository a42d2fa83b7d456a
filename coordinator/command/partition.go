package command

import (
	"context"
	"sync"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator"
	"retinue/coordinator/partition"
	"retinue/coordinator/source/partitioned"
	"retinue/internal/cli"
	"retinue/internal/clock"
)

// ownPartitions has this coordinator stand for partitions of its queue; nil where that has none. leave gives them back, and is to be called when all
// that we have of them has ended.
func ownPartitions(ctx context.Context, s coordinator.Settings, cfg coordinator.Config, log hclog.Logger) (owner partitioned.Owner, leave func(), err error) {
	if cfg.Partitions == 0 {
		return nil, func() {}, nil
	}
	place, client, err := openPlace(s.Load, cfg.Queue)
	if err != nil {
		return nil, nil, cli.Usage(err)
	}
	h, err := partition.New(partition.Config{Client: client, Prefix: place.Prefix, Queue: cfg.Queue, ID: cfg.ID, Partitions: cfg.Partitions, Clock: clock.Recent(), Log: log.Named("partitions")})
	if err != nil {
		return nil, nil, cli.Usage(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { h.Run(ctx) })
	return h, func() { cancel(); running.Wait() }, nil
}

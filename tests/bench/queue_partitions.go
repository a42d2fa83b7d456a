package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
	"retinue/coordinator/source/partitioned"
	"retinue/internal/clock"
	"retinue/internal/toolchain"
)

const (
	partitionCount = 8
	partitionKeys  = 1000
	// partitionWarmUp are items before the clock starts: enough that every partition has some of them, so that when they are done all partitions are
	// held, what might have been left in them has been waited for, and items flow.
	partitionWarmUp = 200

	partitionsName   = queueName + " with partitions"
	configOrder      = configHTTP + "\n  order { key = \"message\" }"
	configPartitions = configHTTP + `
  load = "consul:bench"
  order {
    key        = "message"
    partitions = PARTITIONS
  }`
)

const partitionsExplain = "What it costs to keep the order of keys over all coordinators. Items of 1 KiB with %d different keys, a POST over a Unix socket for each, one coordinator. Consul is one server on loopback. " +
	"%d items have been done when the clock starts: all partitions are held and flow then."

// partitions compares a queue with partitions with the same coordinator that keeps the order only of what it has itself.
func (q *queueRig) partitions(ctx context.Context, report *Report) (err error) {
	if len(q.brokers) == 0 {
		return nil
	}
	if q.consul, err = q.tool(ctx, toolchain.Consul, "RETINUE_TEST_CONSUL"); err != nil {
		return err
	}
	q.say("starting a Consul server")
	if err := q.startConsul(ctx, 1, 0); err != nil {
		return err
	}
	consul := q.servers[0]
	defer consul.kill()
	return q.each(func(kind string) error {
		one, all := q.httpWorker(q.coordinator(kind, queueName, "order message", configOrder)), q.httpWorker(q.coordinator(kind, partitionsName, fmt.Sprintf("order message, %d partitions", partitionCount),
			strings.ReplaceAll(configPartitions, "PARTITIONS", fmt.Sprint(partitionCount))))
		all.env = []string{"CONSUL_HTTP_ADDR=" + consul.http()}
		open := func(ctx context.Context, o source.Options) (source.Source, error) {
			return dial.Open(ctx, q.brokers[kind].URL, o)
		}
		q.keyed(one, open)
		q.keyed(all, func(ctx context.Context, o source.Options) (source.Source, error) {
			return partitioned.New(partitioned.Config{Options: o, Partitions: partitionCount, Clock: clock.Boot(), Log: hclog.NewNullLogger(),
				Open: func(o source.Options) (source.Source, error) { return open(ctx, o) }})
		})
		return q.rounds(ctx, "Order over all coordinators: "+kind, fmt.Sprintf(partitionsExplain, partitionKeys, partitionWarmUp), kind+", partitions", []*queuer{one, all}, q.amounts.partitions, kibi, report)
	})
}

// keyed has a contender's items published with keys, and has it begin with some of them.
func (q *queueRig) keyed(c *queuer, open func(context.Context, source.Options) (source.Source, error)) {
	c.warmUp = partitionWarmUp
	published := 0
	c.publish = func(ctx context.Context, n, size int) error {
		src, err := open(ctx, source.Options{Queue: c.queue})
		if err != nil {
			return err
		}
		defer src.Close(ctx)
		return inPortions(n, size, func(_ int, bodies [][]byte) error {
			outs := keyedItems(c.queue, published, bodies)
			published += len(bodies)
			return src.Publish(ctx, outs...)
		})
	}
}

// keyedItems are items of which the first is the one after published others. Two of one key are as far apart as they can be.
func keyedItems(queue string, published int, bodies [][]byte) []source.Out {
	outs := make([]source.Out, len(bodies))
	for i, body := range bodies {
		outs[i] = source.Out{ID: fmt.Sprintf("%s-%d", queue, published+i), Body: body, Key: fmt.Sprintf("key-%d", (published+i)%partitionKeys)}
	}
	return outs
}

// warmed has a contender that runs do items of its warm up, and publishes the others while its worker answers nothing: publishing takes the processor
// that the contender needs.
func (q *queueRig) warmed(ctx context.Context, c *queuer, p *process, n, size int) error {
	if err := c.publish(ctx, c.warmUp, size); err != nil {
		return fmt.Errorf("%s: publish: %w", c.name, err)
	}
	err := eventually(ctx, 40*time.Second, "the warm up is done", func(ctx context.Context) error {
		done, err := c.count(ctx)
		if err == nil && done < c.warmUp {
			err = fmt.Errorf("%s took %d of %d items\n%s", c.name, done, c.warmUp, p.tail())
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := getSocket(ctx, c.socket, "/pause", nil); err != nil {
		return err
	}
	if err := c.publish(ctx, n, size); err != nil {
		return fmt.Errorf("%s: publish: %w", c.name, err)
	}
	return getSocket(ctx, c.socket, "/resume", nil)
}

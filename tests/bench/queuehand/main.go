// Command queuehand is what stands beside `retinue coordinator` in the
// benchmarks: the loop that people write by hand (receive, call the worker,
// acknowledge) on the same client library and broker, asynq, and the HTTP
// worker that the loops and the coordinator call.
//
//	queuehand worker -listen SOCKET
//	queuehand loop -broker redis://... -queue q -slots 8 -call http|exec|batch|dispatch -worker SOCKET -count FILE
//	queuehand lines                  NDJSON in, verdicts out; counts in $BENCH_COUNT
//	queuehand asynq -broker redis://... -slots 8 -count FILE
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "Error: worker, loop or asynq")
		os.Exit(2)
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	var o options
	flags.StringVar(&o.broker, "broker", "", "redis:// or amqp://")
	flags.StringVar(&o.queue, "queue", "q", "stream or queue")
	flags.IntVar(&o.slots, "slots", 8, "calls at once")
	flags.StringVar(&o.call, "call", "http", "http, exec, batch or dispatch")
	flags.StringVar(&o.worker, "worker", "", "socket of the HTTP worker")
	flags.StringVar(&o.nomad, "nomad", "", "Nomad, of call dispatch: the parameterized job is named as the queue is")
	flags.StringVar(&o.listen, "listen", "", "socket to listen on")
	flags.StringVar(&o.count, "count", "", "file that grows by a byte for each item that is done")
	flags.DurationVar(&o.hold, "hold", 0, "of the HTTP worker: how long an item takes")
	flags.StringVar(&o.work, "work", "", "folder for the files of call exec")
	flags.BoolVar(&o.sync, "sync", false, "of call exec: bring outputs and their names to the disk")
	flags.Parse(os.Args[2:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch os.Args[1] {
	case "worker":
		err = serve(o)
	case "lines":
		err = lines(os.Stdin, os.Stdout)
	case "asynq":
		err = o.asynq(ctx)
	case "loop":
		if err = o.prepare(); err != nil {
			break
		}
		if strings.HasPrefix(o.broker, "redis:") {
			err = o.redis(ctx)
		} else {
			err = o.rabbitmq(ctx)
		}
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	broker, queue, call, worker, nomad, listen, count, work string
	slots                                                   int
	hold                                                    time.Duration
	sync                                                    bool

	counter *os.File
	do      func(ctx context.Context, items []item) error
	size    int // items in a call
}

// item is a message in a loop.
type item struct {
	id   string
	body []byte
	ack  func() error
}

// done counts items.
func (o *options) done(n int) {
	_, _ = o.counter.Write(make([]byte, n)) // the benchmark would wait in vain, and say so
}

// stamp is when an item was published, in nanoseconds, as its body begins; 0 where it does not say.
func stamp(body []byte) int64 {
	const digits = 19
	if len(body) < digits {
		return 0
	}
	at, err := strconv.ParseInt(string(body[:digits]), 10, 64)
	if err != nil {
		return 0
	}
	return at
}

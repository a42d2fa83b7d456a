package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/coordinator/source"
	"retinue/internal/cli"
	"retinue/internal/clock"
	"retinue/internal/hint"
	"retinue/internal/listen"
	"retinue/internal/obs"
)

// coordinatorFlags are the flags of `retinue coordinator`. What a flag says counts more than what the file says.
type coordinatorFlags struct {
	brokers                                   Brokers
	config, id, node, mode, install, logLevel string
	apply                                     []func(*coordinator.Settings)
}

// New is the verb `coordinator`.
func New(b Brokers) *cobra.Command {
	cmd, _ := newCoordinator(b)
	return cmd
}

func newCoordinator(b Brokers) (*cobra.Command, *coordinatorFlags) {
	f := &coordinatorFlags{brokers: b}
	cmd := &cobra.Command{
		Use:   "coordinator [flags] [-- COMMAND [ARG...]]",
		Short: "The work queue beside a container: takes items from a broker, hands them to the worker, commits what comes out once",
		Long: `Takes items from a queue and gives them to the worker beside it: a command for
each item (exec), folders that a long-lived worker claims (watch), HTTP, or
lines of JSON. The worker knows nothing of the queue. What comes out is
committed exactly once, goes to the next stage, and only then is the item
acknowledged.

On SIGTERM nothing new is taken; what runs has the drain timeout to finish, and
the rest goes back to the queue, uncounted. A second SIGTERM ends at once.`,
		Example: `  retinue coordinator --queue thumbs --broker memory: --done /shared/done --work /tmp/wq --listen unix:///tmp/c.sock -- ./thumbnail
  retinue coordinator --queue thumbs --broker nats://127.0.0.1:4222 --mode http --url http://127.0.0.1:9000/ --commit none
  retinue coordinator --config queue.hcl`,
		Args: behindDash,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.add(cmd)
	return cmd, f
}

// behindDash lets a command be behind -- alone: a word that was meant for something else must not become the worker.
func behindDash(cmd *cobra.Command, args []string) error {
	if at := cmd.ArgsLenAtDash(); len(args) > 0 && at != 0 {
		return cli.Usage(hint.Wrap(fmt.Errorf("unexpected argument %q", args[0]), "the worker's command comes behind --, as in `-- ./thumbnail --small`"))
	}
	return nil
}

func (f *coordinatorFlags) add(cmd *cobra.Command) {
	flags, d := cmd.Flags(), coordinator.DefaultSettings()
	text := func(name, usage string, at func(*coordinator.Settings) *string) {
		v := flags.String(name, *at(&d), usage)
		f.apply = append(f.apply, func(s *coordinator.Settings) {
			if flags.Changed(name) {
				*at(s) = *v
			}
		})
	}
	number := func(name, usage string, at func(*coordinator.Settings) *int) {
		v := flags.Int(name, *at(&d), usage)
		f.apply = append(f.apply, func(s *coordinator.Settings) {
			if flags.Changed(name) {
				*at(s) = *v
			}
		})
	}
	flag := func(name, usage string, at func(*coordinator.Settings) *bool) {
		v := flags.Bool(name, *at(&d), usage)
		f.apply = append(f.apply, func(s *coordinator.Settings) {
			if flags.Changed(name) {
				*at(s) = *v
			}
		})
	}
	list := func(name, usage string, at func(*coordinator.Settings) *[]string) {
		v := flags.StringSlice(name, nil, usage)
		f.apply = append(f.apply, func(s *coordinator.Settings) {
			if flags.Changed(name) {
				*at(s) = *v
			}
		})
	}
	flags.StringVar(&f.config, "config", "", "HCL file with one work_queue block; flags count more")
	text("queue", "the queue, which names the stage", func(s *coordinator.Settings) *string { return &s.Queue })
	text("broker", "where the queue is: nats://HOST:PORT, nats://SERVICE.service.consul, redis://HOST:PORT, amqp://HOST:PORT, or memory: for one that ends with this process", func(s *coordinator.Settings) *string { return &s.Source.Broker })
	text("lease", "how long a message stays ours without an extension; one is sent every third of it", func(s *coordinator.Settings) *string { return &s.Source.Lease })
	text("mode", "the worker's contract: exec, watch, http, lines or dispatch", func(s *coordinator.Settings) *string { return &s.Worker.Mode })
	text("url", "the worker, in mode http: http://127.0.0.1:PORT/ or unix:///path/to/socket", func(s *coordinator.Settings) *string { return &s.Worker.URL })
	text("format", "what mode http sends: binary (headers and the payload) or structured (a CloudEvents envelope)", func(s *coordinator.Settings) *string { return &s.Worker.Format })
	text("job", "the parameterized Nomad job of which mode dispatch makes a child for each item", func(s *coordinator.Settings) *string { return &s.Worker.Job })
	text("nomad", "Nomad, in mode dispatch: unix:///path/to/socket or http://127.0.0.1:4646; default the socket of this task", func(s *coordinator.Settings) *string { return &s.Worker.Nomad })
	number("outstanding", "children of --job that wait or run at once, of all coordinators", func(s *coordinator.Settings) *int { return &s.Worker.Outstanding })
	text("work", "folder of the attempts; default $NOMAD_ALLOC_DIR/data/wq, and in mode dispatch, where all nodes share it, none", func(s *coordinator.Settings) *string { return &s.Worker.Work })
	number("slots", "calls of the worker at once", func(s *coordinator.Settings) *int { return &s.Worker.Slots })
	number("batch", "items in a call, in modes http and lines", func(s *coordinator.Settings) *int { return &s.Worker.Batch })
	text("max-runtime", "how long one attempt may take", func(s *coordinator.Settings) *string { return &s.Worker.MaxRuntime })
	text("heartbeat", "end an attempt that shows no progress for so long; 0s expects none", func(s *coordinator.Settings) *string { return &s.Worker.Heartbeat })
	number("attempts", "attempts that may fail before an item is dead", func(s *coordinator.Settings) *int { return &s.Retry.Attempts })
	text("backoff", "shortest and longest delay between attempts", func(s *coordinator.Settings) *string { return &s.Retry.Backoff })
	text("order", "items of a key one after the other: message (the message's key) or header:NAME", func(s *coordinator.Settings) *string { return &s.Order.Key })
	number("partitions", "keep the order of a key over all coordinators: each of so many partitions is taken by one of them at a time (with --load)", func(s *coordinator.Settings) *int { return &s.Order.Partitions })
	text("on-fail", "what the items of a key do while the first one fails: block, skip or park", func(s *coordinator.Settings) *string { return &s.Order.OnFail })
	text("rate", "at most so many items, like 10/s; of all coordinators with the same --load together", func(s *coordinator.Settings) *string { return &s.Rate.Queue })
	text("rate-per-key", "at most so many items of a key", func(s *coordinator.Settings) *string { return &s.Rate.PerKey })
	number("classes", "classes of priority of this queue", func(s *coordinator.Settings) *int { return &s.Priority.Classes })
	text("to", "queue of the next stage", func(s *coordinator.Settings) *string { return &s.Output.To })
	number("to-partitions", "partitions of the next stage, as its coordinators have them", func(s *coordinator.Settings) *int { return &s.Output.ToPartitions })
	text("commit", "where an item's end is decided: rename, journal, publish or none", func(s *coordinator.Settings) *string { return &s.Output.Commit })
	text("done", "folder of committed outputs, shared by all nodes (commit rename)", func(s *coordinator.Settings) *string { return &s.Output.Done })
	text("journal", "store of the commit records: consul:NAME, broker:NAME (NATS, Redis) or s3://BUCKET/PREFIX, the same for all coordinators of a queue (commit journal)", func(s *coordinator.Settings) *string { return &s.Output.Journal })
	flag("split", "the messages of one item to --to are a group, which --gather of a later stage makes one item again", func(s *coordinator.Settings) *bool { return &s.Output.Split })
	text("gather", "queue that gets one item when all parts of a group are committed", func(s *coordinator.Settings) *string { return &s.Output.Gather })
	text("keep", "how long records and outputs are kept, like 7d; default for ever", func(s *coordinator.Settings) *string { return &s.Output.Keep })
	text("dead", "queue of dead letters; default STAGE-dead", func(s *coordinator.Settings) *string { return &s.DeadLetter.Queue })
	text("dead-keep", "remove dead letters that are older, like 30d; without it they stay", func(s *coordinator.Settings) *string { return &s.DeadLetter.Keep })
	text("divert", "queue of another coordinator with --stage QUEUE, which gets the items that are too large, take too long or crash too often here", func(s *coordinator.Settings) *string { return &s.Divert.To })
	text("divert-over", "divert items whose payload is larger, like 100MiB; default none for its size", func(s *coordinator.Settings) *string { return &s.Divert.Over })
	text("stage", "whose items these are, where another coordinator diverts them to this queue: its --queue; default --queue", func(s *coordinator.Settings) *string { return &s.Stage })
	text("drain-timeout", "how long a stop waits for what runs; below Nomad's kill_timeout", func(s *coordinator.Settings) *string { return &s.Drain })
	text("cache", "folder of inputs that come from elsewhere; default cache in --work", func(s *coordinator.Settings) *string { return &s.Input.Cache })
	text("cache-size", "what it may hold, like 20GiB", func(s *coordinator.Settings) *string { return &s.Input.CacheSize })
	text("artifacts", "where the files of outputs are uploaded: s3://BUCKET/PREFIX (commit journal)", func(s *coordinator.Settings) *string { return &s.Output.Artifacts })
	list("allow", "folders, and addresses (https://HOST/PATH, s3://BUCKET/PREFIX), below which an input by reference may lie", func(s *coordinator.Settings) *[]string { return &s.Input.Allow })
	text("load", "tell the scaler of the workers, and the coordinators that have a rate together, how the work goes: consul:NAME, NAME being the job", func(s *coordinator.Settings) *string { return &s.Load })
	list("listen", "where to listen: unix:///path or tcp://127.0.0.1:PORT; default unix://$NOMAD_ALLOC_DIR/tmp/coordinator.sock", func(s *coordinator.Settings) *[]string { return &s.Listen })
	flags.StringVar(&f.mode, "socket-mode", "0666", "file mode of Unix sockets; 0666 suits an alloc dir, which only the tasks of a group can enter")
	flags.StringVar(&f.id, "id", "", "name of this coordinator; default ALLOC@HOST")
	flags.StringVar(&f.node, "node", "", "name of this node, in records and dead letters; default its hostname")
	flags.StringVar(&f.install, "install", "", "put a copy of this program there, for a worker container that has none: see retinue worker")
	flags.StringVar(&f.logLevel, "log-level", "info", "trace, debug, info, warn or error")
}

// settings are the defaults, then the file, then the flags, then what a Nomad task knows.
func (f *coordinatorFlags) settings(args []string, getenv func(string) string) (coordinator.Settings, error) {
	s := coordinator.DefaultSettings()
	if f.config != "" {
		if err := s.ReadFile(f.config); err != nil {
			return s, err
		}
	}
	for _, apply := range f.apply {
		apply(&s)
	}
	if len(args) > 0 {
		s.Worker.Command = args
	}
	if dir := getenv("NOMAD_ALLOC_DIR"); dir != "" {
		if s.Worker.Work == "" && s.Worker.Mode != coordinator.ModeDispatch {
			s.Worker.Work = dir + "/data/wq"
		}
		if len(s.Listen) == 0 {
			s.Listen = []string{"unix://" + dir + "/tmp/coordinator.sock"}
		}
	}
	return s, nil
}

func (f *coordinatorFlags) run(cmd *cobra.Command, args []string) error {
	s, err := f.settings(args, os.Getenv)
	if err != nil {
		return cli.Usage(err)
	}
	cfg, err := s.Config()
	if err != nil {
		return cli.Usage(err)
	}
	log, err := obs.Logger(cmd.ErrOrStderr(), "coordinator", f.logLevel)
	if err != nil {
		return cli.Usage(err)
	}
	if err := f.name(&cfg, os.Getenv); err != nil {
		return err
	}
	growHeap()
	if f.install != "" {
		if err := installSelf(f.install); err != nil {
			return hint.Wrap(fmt.Errorf("install a copy of this program: %w", err), "--install names a file in a folder that the worker shares")
		}
	}
	open, err := f.brokers.open(s.Source.Broker)
	if err != nil {
		return err
	}
	open = patient(cmd.Context(), log, open)
	point, err := s.Point(cmd.Context())
	if err != nil {
		return err
	}
	owner, leave, err := ownPartitions(cmd.Context(), s, cfg, log)
	if err != nil {
		return err
	}
	defer leave()
	var c *coordinator.Coordinator
	w, err := s.NewWorker(point, func(id string, again bool) { c.Beat(id, again) })
	if err != nil {
		return err
	}
	if c, err = coordinator.New(cfg, coordinator.Parts{Open: open, Owner: owner, Point: point, Worker: w, Clock: clock.Recent(), Log: log}); err != nil {
		return errors.Join(err, w.Close())
	}
	listeners, err := cli.Listen(s.Listen, f.mode, log)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	log.Info("coordinator started", "queue", cfg.Queue, "id", cfg.ID, "mode", s.Worker.Mode, "commit", s.Output.Commit, "slots", cfg.Slots, "lease", cfg.Lease.String())
	if s.Load != "" {
		stop, err := reportLoad(c, s.Load, cfg.Queue, cfg.Rate > 0 || cfg.KeyRate > 0, log, os.Getenv)
		if err != nil {
			return errors.Join(cli.Usage(err), closeAll(listeners), w.Close())
		}
		defer stop()
	}
	err = serveCoordinator(cmd.Context(), c, listeners)
	log.Info("coordinator stopped")
	return err
}

// patient waits for a broker that is not there yet: in a job both start at once.
func patient(ctx context.Context, log hclog.Logger, open func(source.Options) (source.Source, error)) func(source.Options) (source.Source, error) {
	var opened atomic.Bool // the first queue; later ones are opened while the coordinator works, which waits in its own way
	return func(o source.Options) (source.Source, error) {
		for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
			src, err := open(o)
			if opened.Load() || !errors.Is(err, source.ErrUnavailable) {
				opened.Store(true)
				return src, err
			}
			log.Warn("waiting for the broker", "error", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil, cli.Exit(cli.ExitInterrupted)
			}
		}
	}
}

// name fills in who this is.
func (f *coordinatorFlags) name(cfg *coordinator.Config, getenv func(string) string) error {
	cfg.ID, cfg.Node, cfg.Alloc = f.id, f.node, getenv("NOMAD_ALLOC_ID")
	if cfg.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the hostname: %w", err)
		}
		cfg.Node = host
	}
	if cfg.ID == "" {
		alloc := fmt.Sprint("pid", os.Getpid())
		if id := getenv("NOMAD_ALLOC_ID"); len(id) >= 8 {
			alloc = id[:8]
		}
		cfg.ID = alloc + "@" + cfg.Node
	}
	return nil
}

// serveCoordinator works until ctx ends and what runs has finished. The listeners stay open meanwhile: asynchronous workers report there.
func serveCoordinator(ctx context.Context, c *coordinator.Coordinator, listeners []net.Listener) error {
	hard, abandon := context.WithCancel(context.Background())
	defer abandon()
	go func() {
		<-ctx.Done()
		again := make(chan os.Signal, 1)
		signal.Notify(again, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(again)
		select {
		case <-again:
			abandon()
		case <-hard.Done():
		}
	}()
	serving, closeAll := context.WithCancel(context.Background())
	var served sync.WaitGroup
	for _, l := range listeners {
		served.Go(func() { _ = listen.Serve(serving, l, c.Handler(), time.Second) }) // the work goes on without it; /healthz tells
	}
	err := c.Run(ctx, hard)
	closeAll()
	served.Wait()
	if errors.Is(err, context.Canceled) {
		return cli.Exit(cli.ExitInterrupted)
	}
	return err
}

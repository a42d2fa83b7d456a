package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/coordinator/scale"
	"retinue/coordinator/source"
	"retinue/internal/cli"
	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
	"retinue/internal/listen"
	"retinue/internal/obs"
	"retinue/internal/taskapi"
)

// scalerFlags are the flags of `retinue scaler`. Those of a queue may be lists: a scaler of several queues has the stages of a pipeline.
type scalerFlags struct {
	brokers                           Brokers
	cfg                               scale.Config // what holds for all queues
	queues, groups                    []string
	slots, min, max, partitions       []int
	broker, load, nomad, mode, logLev string
	lease                             time.Duration
	classes                           int
	listen                            []string
}

// NewScaler is the verb `scaler`.
func NewScaler(b Brokers) *cobra.Command {
	cmd, _ := newScaler(b)
	return cmd
}

func newScaler(b Brokers) (*cobra.Command, *scalerFlags) {
	f := &scalerFlags{brokers: b}
	cmd := &cobra.Command{
		Use:   "scaler",
		Short: "Keep as many workers of a queue as the work asks for, down to none",
		Long: `Runs beside the queue, not beside the workers: it is there when there are none.
Once in an interval it asks the broker how much there is to do, computes

  ceil((ready + in flight) * time of an item / (target * slots))

within its limits, and sets the count of the workers' group through the socket
that Nomad gives each task. Several may run; one of them leads, by a session in
Consul. ` + "`retinue queue scale --why`" + ` shows what it does, and why.

With several queues of one job, such as the stages of a pipeline, --group has as
many names, and --slots, --min and --max have as many numbers, or one for all.

The workers' group needs update { max_parallel = 0 }: while a deployment is
under way Nomad scales no job.`,
		Example: `  retinue scaler --queue thumbs --broker nats://127.0.0.1:4222 --job thumbs --max 50
  retinue scaler --queue thumbs --broker redis://127.0.0.1:6379 --job thumbs --min 2 --max 20 --target 30s --nomad http://127.0.0.1:4646
  retinue scaler --queue scans-ocr,scans-pack --group ocr,pack --max 50,4 --job scans --broker nats://127.0.0.1:4222`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.queues, "queue", nil, "the queue, or several")
	flags.StringVar(&f.broker, "broker", "", "where the queue is, as the coordinators have it")
	flags.IntVar(&f.classes, "classes", 1, "classes of priority of the queue, as the coordinators have it")
	flags.IntSliceVar(&f.partitions, "partitions", []int{0}, "partitions of the queue, as the coordinators have them; 0 for none")
	flags.DurationVar(&f.lease, "lease", 10*time.Second, "lease of the queue's messages, as the coordinators have it")
	flags.StringVar(&f.cfg.Job, "job", os.Getenv("NOMAD_JOB_ID"), "the Nomad job of the workers; default this task's own")
	flags.StringSliceVar(&f.groups, "group", []string{"worker"}, "the group of the workers, one for each queue")
	flags.IntSliceVar(&f.slots, "slots", []int{4}, "items that a worker handles at once")
	flags.IntSliceVar(&f.min, "min", []int{0}, "workers at least")
	flags.IntSliceVar(&f.max, "max", []int{10}, "workers at most")
	flags.DurationVar(&f.cfg.Target, "target", time.Minute, "how long it may take to work off what is there")
	flags.DurationVar(&f.cfg.Cooldown, "cooldown", time.Minute, "how long less must have been enough before the count goes down")
	flags.DurationVar(&f.cfg.Drain, "drain", 20*time.Second, "the coordinators' drain timeout: where items take longer, workers that have some are not stopped")
	flags.DurationVar(&f.cfg.Assumed, "service-time", time.Second, "what an item takes, until something was measured")
	flags.DurationVar(&f.cfg.Interval, "interval", time.Second, "time between two decisions; a quarter of it while nobody works")
	flags.StringVar(&f.load, "load", "", "where scalers and coordinators meet: consul:NAME; default consul: and the job's ID")
	flags.StringVar(&f.nomad, "nomad", "", "Nomad: unix:///path/to/socket or http://127.0.0.1:4646; default the socket of this task")
	flags.StringVar(&f.cfg.ID, "id", "", "name of this scaler; default ALLOC@HOST")
	flags.StringSliceVar(&f.listen, "listen", nil, "where to listen: unix:///path or tcp://127.0.0.1:PORT; default unix://$NOMAD_ALLOC_DIR/tmp/scaler.sock")
	flags.StringVar(&f.mode, "socket-mode", "0666", "file mode of Unix sockets")
	flags.StringVar(&f.logLev, "log-level", "info", "trace, debug, info, warn or error")
	return cmd, f
}

// configs are what the scaler of each queue does.
func (f *scalerFlags) configs() ([]scale.Config, error) {
	if len(f.queues) == 0 {
		f.queues = []string{""} // Validate says what is missing
	}
	var all []scale.Config
	for i, queue := range f.queues {
		c := f.cfg
		c.Queue = queue
		errs := []error{pick(&c.Group, "group", f.groups, i, len(f.queues)), pick(&c.Slots, "slots", f.slots, i, len(f.queues)),
			pick(&c.Min, "min", f.min, i, len(f.queues)), pick(&c.Max, "max", f.max, i, len(f.queues))}
		for _, err := range append(errs, c.Validate()) {
			if err != nil {
				return nil, err
			}
		}
		for _, other := range all {
			if other.Queue == c.Queue || other.Group == c.Group {
				return nil, hint.Wrap(fmt.Errorf("queue %s with group %s, and queue %s with group %s", other.Queue, other.Group, c.Queue, c.Group), "each queue is named once, and has a group of its own: --group A,B")
			}
		}
		all = append(all, c)
	}
	return all, nil
}

// pick takes the value of queue i out of a list that has one for all, or one for each.
func pick[V any](to *V, flag string, values []V, i, queues int) error {
	switch len(values) {
	case 1:
		*to = values[0]
	case queues:
		*to = values[i]
	default:
		return hint.Wrap(fmt.Errorf("%d queues, and %d values of --%s", queues, len(values), flag), "give one for all, or one for each queue in the order of --queue")
	}
	return nil
}

func (f *scalerFlags) run(cmd *cobra.Command) (err error) {
	log, err := obs.Logger(cmd.ErrOrStderr(), "scaler", f.logLev)
	if err != nil {
		return cli.Usage(err)
	}
	who := coordinator.Config{ID: f.cfg.ID}
	if err := (&coordinatorFlags{id: f.cfg.ID}).name(&who, os.Getenv); err != nil {
		return err
	}
	f.cfg.ID = who.ID
	configs, err := f.configs()
	if err != nil {
		return cli.Usage(err)
	}
	if f.load == "" {
		f.load = "consul:" + f.cfg.Job
	}
	if _, err := coordinator.LoadPrefix(f.load); err != nil {
		return cli.Usage(err)
	}
	api, err := taskapi.New(taskapi.Config{Addr: f.nomad}, os.Getenv)
	if err != nil {
		return cli.Usage(err)
	}
	open, err := f.brokers.open(f.broker)
	if err != nil {
		return err
	}
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); dir != "" && len(f.listen) == 0 {
		f.listen = []string{"unix://" + dir + "/tmp/scaler.sock"}
	}
	listeners, err := cli.Listen(f.listen, f.mode, log)
	if err != nil {
		return err
	}
	open = patient(cmd.Context(), log, open)
	queues := map[string]source.Source{}
	defer func() {
		bye, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		for _, queue := range queues {
			err = errors.Join(err, queue.Close(bye))
		}
	}()
	var scalers []*scale.Scaler
	for i, c := range configs {
		var partitions int
		if err := pick(&partitions, "partitions", f.partitions, i, len(configs)); err != nil {
			return errors.Join(cli.Usage(err), closeAll(listeners))
		}
		s, err := f.scaler(c, partitions, open, scale.Nomad{API: api}, queues, log)
		if err != nil {
			return errors.Join(err, closeAll(listeners))
		}
		scalers = append(scalers, s)
	}
	handler := http.NewServeMux()
	handler.Handle("/", scale.Handler(scalers...))
	door := coordinator.Door(f.classes, f.queues, queues)
	handler.Handle("/v1/queues", door)
	handler.Handle("/v1/queues/", door)
	serving, stop := context.WithCancel(context.Background())
	var served, running sync.WaitGroup
	for _, l := range listeners {
		served.Go(func() { _ = listen.Serve(serving, l, handler, time.Second) }) // the work goes on without it
	}
	ends := make([]error, len(scalers))
	for i, s := range scalers {
		running.Go(func() { ends[i] = s.Run(cmd.Context()) })
	}
	running.Wait()
	stop()
	served.Wait()
	return errors.Join(ends...)
}

// scaler makes the scaler of one queue, which it opens and puts among queues.
func (f *scalerFlags) scaler(c scale.Config, partitions int, open func(source.Options) (source.Source, error), cluster scale.Cluster, queues map[string]source.Source, log hclog.Logger) (*scale.Scaler, error) {
	place, consul, err := openPlace(f.load, c.Queue)
	if err != nil {
		return nil, err
	}
	queue, err := coordinator.Parts{Open: open, Clock: clock.Boot(), Log: log}.Producer(source.Options{Queue: c.Queue, Lease: f.lease, Classes: f.classes}, partitions)
	if err != nil {
		return nil, err
	}
	queues[c.Queue] = queue
	log.Info("scaler started", "queue", c.Queue, "job", c.Job, "group", c.Group, "min", c.Min, "max", c.Max, "target", c.Target.String())
	return scale.New(c, scale.Parts{Queue: queue, Cluster: cluster, Consul: consul, Place: place, Clock: clock.Boot(), Log: log.With("queue", c.Queue)})
}

func closeAll[C io.Closer](all []C) error {
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// openPlace is where a queue's coordinators and scalers meet.
func openPlace(load, queue string) (scale.Place, *consulkit.Client, error) {
	prefix, err := coordinator.LoadPrefix(load)
	if err != nil {
		return scale.Place{}, nil, err
	}
	client, err := consulkit.New(consulkit.Config{MaxConns: 4})
	return scale.Place{Prefix: prefix, Queue: queue}, client, err
}

// reportLoad tells the scalers of a queue how a coordinator does, and a coordinator with rates which part of them is its own, until stop is called.
func reportLoad(c *coordinator.Coordinator, load, queue string, rates bool, log hclog.Logger, getenv func(string) string) (stop func(), err error) {
	place, client, err := openPlace(load, queue)
	if err != nil {
		return nil, err
	}
	index := -1
	if n, err := strconv.Atoi(getenv("NOMAD_ALLOC_INDEX")); err == nil {
		index = n
	}
	r := scale.Reporter{Client: client, Place: place, Log: log, Clock: clock.Boot(), Load: func(ctx context.Context) (scale.Load, error) {
		l, err := c.Load(ctx)
		l.Index = index
		return l, err
	}}
	if rates {
		r.Share = c.Share
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	return func() { cancel(); running.Wait() }, nil
}

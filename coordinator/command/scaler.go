package command

import (
	"context"
	"errors"
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
	"retinue/internal/listen"
	"retinue/internal/obs"
	"retinue/internal/taskapi"
)

// scalerFlags are the flags of `retinue scaler`.
type scalerFlags struct {
	brokers                           Brokers
	cfg                               scale.Config
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

The workers' group needs update { max_parallel = 0 }: while a deployment is
under way Nomad scales no job.`,
		Example: `  retinue scaler --queue thumbs --broker nats://127.0.0.1:4222 --job thumbs --max 50
  retinue scaler --queue thumbs --broker redis://127.0.0.1:6379 --job thumbs --min 2 --max 20 --target 30s --nomad http://127.0.0.1:4646`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.cfg.Queue, "queue", "", "the queue")
	flags.StringVar(&f.broker, "broker", "", "where the queue is, as the coordinators have it")
	flags.IntVar(&f.classes, "classes", 1, "classes of priority of the queue, as the coordinators have it")
	flags.DurationVar(&f.lease, "lease", 10*time.Second, "lease of the queue's messages, as the coordinators have it")
	flags.StringVar(&f.cfg.Job, "job", os.Getenv("NOMAD_JOB_ID"), "the Nomad job of the workers; default this task's own")
	flags.StringVar(&f.cfg.Group, "group", "worker", "the group of the workers")
	flags.IntVar(&f.cfg.Slots, "slots", 4, "items that a worker handles at once")
	flags.IntVar(&f.cfg.Min, "min", 0, "workers at least")
	flags.IntVar(&f.cfg.Max, "max", 10, "workers at most")
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

func (f *scalerFlags) run(cmd *cobra.Command) error {
	log, err := obs.Logger(cmd.ErrOrStderr(), "scaler", f.logLev)
	if err != nil {
		return cli.Usage(err)
	}
	who := coordinator.Config{ID: f.cfg.ID}
	if err := (&coordinatorFlags{id: f.cfg.ID}).name(&who, os.Getenv); err != nil {
		return err
	}
	f.cfg.ID = who.ID
	if err := f.cfg.Validate(); err != nil {
		return cli.Usage(err)
	}
	if f.load == "" {
		f.load = "consul:" + f.cfg.Job
	}
	place, consul, err := openPlace(f.load, f.cfg.Queue)
	if err != nil {
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
	listeners, err := openListeners(f.listen, f.mode, log)
	if err != nil {
		return err
	}
	queue, err := patient(cmd.Context(), log, open)(source.Options{Queue: f.cfg.Queue, Lease: f.lease, Classes: f.classes})
	if err != nil {
		return errors.Join(err, closeAll(listeners))
	}
	s, err := scale.New(f.cfg, scale.Parts{Queue: queue, Cluster: scale.Nomad{API: api}, Consul: consul, Place: place, Clock: clock.Boot(), Log: log})
	if err != nil {
		return errors.Join(err, closeAll(listeners))
	}
	log.Info("scaler started", "queue", f.cfg.Queue, "job", f.cfg.Job, "group", f.cfg.Group, "min", f.cfg.Min, "max", f.cfg.Max, "target", f.cfg.Target.String())
	handler := http.NewServeMux()
	handler.Handle("/", s.Handler())
	handler.Handle("/v1/queues", coordinator.Door(f.cfg.Queue, f.classes, queue))
	handler.Handle("/v1/queues/", coordinator.Door(f.cfg.Queue, f.classes, queue))
	serving, stop := context.WithCancel(context.Background())
	var served sync.WaitGroup
	for _, l := range listeners {
		served.Go(func() { _ = listen.Serve(serving, l, handler, time.Second) }) // the work goes on without it
	}
	err = s.Run(cmd.Context())
	stop()
	served.Wait()
	bye, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return errors.Join(err, queue.Close(bye))
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

// reportLoad tells the scalers of a queue how a coordinator does, until stop is called.
func reportLoad(c *coordinator.Coordinator, load, queue string, log hclog.Logger, getenv func(string) string) (stop func(), err error) {
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
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	return func() { cancel(); running.Wait() }, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"retinue/gather"
	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
	"retinue/internal/listen"
	"retinue/internal/obs"
)

// gatherFlags are the flags of `retinue gather`.
type gatherFlags struct {
	settings gather.Settings
	file     string
	logLevel string
}

func newGatherCmd() *cobra.Command {
	f := gatherFlags{settings: gather.DefaultSettings()}
	cmd := &cobra.Command{
		Use:   "gather",
		Short: "Scatter/gather: fan a request out to leaves, and merge their answers into one",
		Long: `Serves the root of scatter/gather until SIGTERM. It finds the leaves in the
Consul catalog (as the CONSUL_* environment says) or takes them from --leaf, sends
every request to one replica of each shard, hedges the slow ones, and lets a
merge container or a built-in merge make one answer. A partial answer is an error
unless --partial allows it, and then says exactly what it covers.`,
		Example: `  retinue gather --leaf 0=http://127.0.0.1:9001 --leaf 1=http://127.0.0.1:9002
  retinue gather --service search-leaf --shards 16 --merge http://127.0.0.1:9000/
  retinue gather --config search.hcl --partial 'coverage(0.95)'
  retinue gather query http://127.0.0.1:8080/q?q=tail    send a request and see its fan-out
  retinue gather check --merge http://127.0.0.1:9000/    does my merge keep the contract?`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{hint.Wrap(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), "its commands are check, query, explain and top; `%s --help` shows the flags", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return serveGather(cmd, f) },
	}
	f.add(cmd)
	cmd.AddCommand(newGatherCheckCmd(), newGatherQueryCmd(), newGatherExplainCmd(), newGatherTopCmd())
	return cmd
}

func (f *gatherFlags) add(cmd *cobra.Command) {
	flags, s := cmd.Flags(), &f.settings
	flags.StringVar(&f.file, "config", "", "HCL file with one scatter block; flags win over it")
	flags.StringVar(&s.Name, "name", s.Name, "name of this root, in metrics and problems")
	flags.StringVar(&s.Listen, "listen", s.Listen, "where clients reach the root, HOST:PORT or :PORT")
	flags.StringSliceVar(&s.Admin, "admin", nil, "local addresses of the admin API: unix:///path or tcp://127.0.0.1:PORT; repeat, or separate with commas; default unix://$NOMAD_ALLOC_DIR/tmp/gather.sock, outside Nomad none")
	flags.BoolVar(&s.Stream, "stream", s.Stream, "pass the merge's answer on while leaves still answer; the coverage then comes in trailers")
	flags.IntVar(&s.MaxHops, "max-hops", s.MaxHops, "roots that a request may pass")
	flags.StringVar(&f.logLevel, "log-level", "info", "trace, debug, info, warn or error")

	flags.StringVar(&s.Leaf.Service, "service", "", "the leaves' service in the Consul catalog")
	flags.IntVar(&s.Leaf.Shards, "shards", 0, "how many shards there have to be; default as many as --leaf names")
	flags.StringArrayVar(&s.Leaf.Static, "leaf", nil, "a shard's replicas, SHARD=http://HOST:PORT,http://HOST:PORT; repeat, or separate with ;")
	flags.StringArrayVar(&s.Leaf.Weights, "weight", nil, "how much of the data a shard has, SHARD=WEIGHT; repeat, or separate with ;")
	flags.StringVar(&s.Leaf.Path, "path", "", "put before a request's path on its way to a leaf")
	flags.StringArrayVar(&s.Leaf.Headers, "header", nil, "a further request header that leaves get; repeat, or separate with ;")
	flags.StringVar(&s.Route.ShardBy, "shard-by", "", "send a request that has this key to one shard: header:NAME or query:NAME")
	flags.StringVar(&s.Route.URL, "route", "", "a local container that says which shards a request needs")

	flags.StringVar(&s.Merge.URL, "merge", s.Merge.URL, "concat-ndjson, json-array, sum, top-k(FIELD,LIMIT), first, or the merge container: http://127.0.0.1:PORT/ or unix:///path")
	flags.StringVar(&s.Merge.Format, "merge-format", s.Merge.Format, "how the merge container gets the answers: ndjson, multipart or batch")
	flags.StringVar(&s.Merge.Reserve, "merge-reserve", s.Merge.Reserve, "what the merge gets of the deadline; auto measures it")
	flags.StringVar(&s.Deadline.Default, "deadline", s.Deadline.Default, "of a request that names none")
	flags.StringVar(&s.Deadline.Max, "deadline-max", s.Deadline.Max, "the longest a client can ask for")
	flags.StringVar(&s.Deadline.PerLevel, "per-level", s.Deadline.PerLevel, "taken off the deadline for the network at each level of a tree")

	flags.StringVar(&s.Hedge.Quantile, "hedge-quantile", s.Hedge.Quantile, "a leaf call slower than this quantile gets a second copy; auto is 1 - budget/2")
	flags.StringVar(&s.Hedge.Budget, "hedge-budget", s.Hedge.Budget, "second copies per leaf call, at most; 0 turns them off")
	flags.StringVar(&s.Hedge.Min, "hedge-min", s.Hedge.Min, "no second copy before")
	flags.IntVar(&s.Hedge.MaxPerLeaf, "hedge-max", 0, "second copies of one call; 0 is 1 up to 100 shards and 2 above")
	flags.StringSliceVar(&s.Hedge.Methods, "hedge-methods", s.Hedge.Methods, "methods that may be sent twice; POST:idempotent for searches by POST")
	flags.StringVar(&s.Retry.Budget, "retry-budget", s.Retry.Budget, "retries on another replica per leaf call, at most; 0 turns them off")
	flags.IntVar(&s.Eject.Consecutive, "eject-consecutive", s.Eject.Consecutive, "failures in a row after which a replica is left alone; 0 is never")
	flags.StringVar(&s.Eject.Ratio, "eject-ratio", s.Eject.Ratio, "share of failures within 10s after which a replica is left alone")
	flags.StringVar(&s.Eject.Max, "eject-max", s.Eject.Max, "share of a shard's replicas that may be left alone at once; one may always, the last never")
	flags.StringVar(&s.Eject.For, "eject-for", s.Eject.For, "how long a replica is left alone, at first and at most")
	flags.StringVar(&s.Partial.Policy, "partial", s.Partial.Policy, "which partial answers are answers: fail, coverage(0.95), quorum(13) or best")
	flags.StringVar(&s.Partial.WaitAfter, "wait-after", s.Partial.WaitAfter, "share of the time left to wait once the policy is met: when almost whole, and when just met")

	flags.StringVar(&s.Limits.Request, "limit-request", s.Limits.Request, "size of a request's body")
	flags.StringVar(&s.Limits.LeafResponse, "limit-leaf", s.Limits.LeafResponse, "size of one leaf's answer")
	flags.StringVar(&s.Limits.Gathered, "limit-gathered", s.Limits.Gathered, "size of all answers held at once, and 40 KiB for each leaf call; further requests wait")
	flags.IntVar(&s.Limits.Concurrent, "limit-concurrent", s.Limits.Concurrent, "requests at once; further ones get 503")
}

// config puts the flags that were given over the file, and reads both.
func (f *gatherFlags) config(flags *pflag.FlagSet, getenv func(string) string) (gather.Config, error) {
	if f.file != "" {
		type given struct {
			flag *pflag.Flag
			text string
			list []string
		}
		var all []given
		flags.Visit(func(fl *pflag.Flag) {
			one := given{flag: fl, text: fl.Value.String()}
			if list, ok := fl.Value.(pflag.SliceValue); ok {
				one.list = list.GetSlice()
			}
			all = append(all, one)
		})
		if err := f.settings.ReadFile(f.file); err != nil {
			return gather.Config{}, usageError{err}
		}
		for _, one := range all {
			var err error
			if list, ok := one.flag.Value.(pflag.SliceValue); ok {
				err = list.Replace(one.list)
			} else {
				err = one.flag.Value.Set(one.text)
			}
			if err != nil {
				return gather.Config{}, usageError{err}
			}
		}
	}
	if dir := getenv("NOMAD_ALLOC_DIR"); len(f.settings.Admin) == 0 && dir != "" {
		f.settings.Admin = []string{"unix://" + dir + "/tmp/gather.sock"}
	}
	cfg, err := f.settings.Config()
	if err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

func serveGather(cmd *cobra.Command, f gatherFlags) error {
	cfg, err := f.config(cmd.Flags(), os.Getenv)
	if err != nil {
		return err
	}
	log, err := obs.Logger(cmd.ErrOrStderr(), "gather", f.logLevel)
	if err != nil {
		return usageError{err}
	}
	root, err := gather.New(cfg, clock.Boot(), log)
	if err != nil {
		return err
	}
	defer root.Close()
	var client *consulkit.Client
	if cfg.Service != "" {
		if client, err = consulkit.New(consulkit.Config{MaxConns: 2}); err != nil {
			return err
		}
	}
	public, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return hint.Wrap(fmt.Errorf("listen on %s: %w", cfg.Listen, err), "give another --listen HOST:PORT")
	}
	admin, err := openAdmin(cfg.Admin)
	if err != nil {
		public.Close()
		return err
	}
	log.Info("root started", "name", cfg.Name, "listen", public.Addr().String(), "admin", cfg.Admin, "shards", cfg.Shards, "service", cfg.Service, "merge", cfg.Merge.String(), "policy", cfg.Policy.String())
	boundHeap(cfg.MaxGathered, os.Getenv)
	err = runGather(cmd.Context(), root, client, public, admin, log)
	log.Info("root stopped")
	return err
}

func openAdmin(addresses []string) (listeners []net.Listener, err error) {
	for _, s := range addresses {
		var addr listen.Addr
		if addr, err = listen.Parse(s); err != nil {
			err = usageError{err}
			break
		}
		var l net.Listener
		if l, err = listen.Listen(addr, 0o666); err != nil {
			break
		}
		listeners = append(listeners, l)
	}
	if err != nil {
		for _, l := range listeners {
			l.Close()
		}
	}
	return listeners, err
}

// boundHeap tells the garbage collector what a root needs. Its heap is a few MiB, so that by default every few MiB of answers would
// be a collection, a tenth of its processor time: it may grow to five times of what lives. But not beyond what may be held
// at once, and what a root takes without that. GOGC and GOMEMLIMIT, where they are set, count more.
func boundHeap(gathered int64, getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(max(gathered, leastHeap) + rootBytes)
	}
}

const (
	rootBytes = 6 << 20  // the heap of a root that does nothing. Its program, some 20 MiB in memory, does not count here
	leastHeap = 24 << 20 // below, the garbage collector would be busy with no answer held
)

// runGather serves until ctx ends. The admin API stays until the last request is answered.
func runGather(ctx context.Context, root *gather.Root, client *consulkit.Client, public net.Listener, admin []net.Listener, log hclog.Logger) error {
	watching, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatch()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if client != nil {
			root.Watch(watching, client)
		}
	}()
	serving, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, len(admin))
	for _, l := range admin {
		go func() { ended <- listen.Serve(serving, l, root.Admin(), time.Second) }()
	}
	err := root.Serve(ctx, public)
	stopAdmin()
	for range admin {
		err = errors.Join(err, <-ended)
	}
	stopWatch()
	<-watched
	if err != nil {
		log.Error("serving failed", "error", err)
	}
	return err
}

// Package command is the command line of the elector. Two programs have it: `retinue`, which has all, and `retinue-elector`,
// which has nothing else and so takes half of the memory.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"retinue/elector"
	"retinue/internal/cli"
	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
	"retinue/internal/listen"
	"retinue/internal/obs"
)

// flags are the command line of an elector.
type flags struct {
	cfg        elector.Config
	revocation string
	listen     []string
	mode       string
	logLevel   string
	state      string
	quiet      bool // nobody has to reach it
}

// New is `elector`, with the commands below it.
func New() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "elector",
		Short: "Leader election beside a container: Consul on one side, plain HTTP on the other",
		Long: `Serves leader election to the other tasks of its group, until SIGTERM. It
reaches Consul as the CONSUL_* environment says; a token file
(CONSUL_HTTP_TOKEN_FILE) is read again whenever it changes.

On SIGTERM whoever leads is asked to step down and has its lease to do so; then
the locks are released. A second SIGTERM ends at once: the locks run out. With
--state, and while the applications that lead hold their connections, only the
elector is being restarted: it ends at once, and its next process goes on.`,
		Example: `  retinue elector --app orders --listen unix:///tmp/elector.sock
  curl --unix-socket /tmp/elector.sock -X POST localhost/v1/elections/leader/become
  retinue elector status --addr unix:///tmp/elector.sock
  retinue elector stepdown leader --addr unix:///tmp/elector.sock`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return cli.Usage(hint.Wrap(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), "its commands are run, status and stepdown; `%s --help` shows the flags", cmd.CommandPath()))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return serveElector(cmd, f) },
	}
	f.add(cmd)
	cmd.AddCommand(newRun(), newStatus(), newStepdown())
	return cmd
}

func (f *flags) add(cmd *cobra.Command) {
	set := cmd.Flags()
	set.StringVar(&f.cfg.App, "app", os.Getenv("NOMAD_JOB_NAME"), "application whose replicas compete; default $NOMAD_JOB_NAME")
	set.StringSliceVar(&f.cfg.Elections, "election", []string{"leader"}, "an election's name; repeat, or separate with commas")
	set.DurationVar(&f.cfg.Lease, "lease", 10*time.Second, "how long a leader may act after its last confirmation, 500ms to 1m")
	set.StringVar(&f.revocation, "revocation", string(elector.Safe), "after an invalidated session: safe (nobody leads for one lease) or fast (the next may lead at once; needs fencing)")
	set.StringSliceVar(&f.listen, "listen", nil, "where to listen: unix:///path or tcp://127.0.0.1:PORT; repeat, or separate with commas; default unix://$NOMAD_ALLOC_DIR/tmp/elector.sock")
	set.StringVar(&f.mode, "socket-mode", "0666", "file mode of Unix sockets; 0666 suits an alloc dir, which only the tasks of a group can enter")
	set.StringVar(&f.cfg.Address, "address", "", "HOST:PORT of the application, told to followers and put into DNS")
	set.StringVar(&f.cfg.Host, "host", "", "name of this host for people; default its hostname")
	set.StringVar(&f.cfg.ID, "id", "", "name of this elector among the replicas; default ALLOC@HOST")
	set.StringVar(&f.state, "state", "", "file that lets a restarted elector go on leading, if it is back within the lease; default $NOMAD_SECRETS_DIR/elector.json")
	set.StringVar(&f.logLevel, "log-level", "info", "trace, debug, info, warn or error")
}

// complete fills in what the environment of a Nomad task knows.
func (f *flags) complete(getenv func(string) string) error {
	f.cfg.Revocation = elector.Revocation(f.revocation)
	f.cfg.Alloc = getenv("NOMAD_ALLOC_ID")
	if f.cfg.App == "" {
		return cli.Usage(hint.Wrap(errors.New("no application named"), "give --app NAME; inside a Nomad task it is the job's name"))
	}
	if f.cfg.Host == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the hostname: %w", err)
		}
		f.cfg.Host = host
	}
	if f.cfg.ID == "" {
		alloc := fmt.Sprint("pid", os.Getpid())
		if len(f.cfg.Alloc) >= 8 {
			alloc = f.cfg.Alloc[:8]
		}
		f.cfg.ID = alloc + "@" + f.cfg.Host
	}
	f.cfg.Meta = map[string]string{}
	for key, name := range map[string]string{"job": "NOMAD_JOB_NAME", "group": "NOMAD_GROUP_NAME", "namespace": "NOMAD_NAMESPACE", "dc": "NOMAD_DC"} {
		if v := getenv(name); v != "" {
			f.cfg.Meta[key] = v
		}
	}
	if len(f.listen) == 0 && !f.quiet {
		dir := getenv("NOMAD_ALLOC_DIR")
		if dir == "" {
			return cli.Usage(hint.Wrap(errors.New("no address to listen on"), "give --listen unix:///path/elector.sock; inside a Nomad task the default is in the alloc dir"))
		}
		f.listen = []string{"unix://" + dir + "/tmp/elector.sock"}
	}
	// A wrapped command that outlived a killed wrapper must not share a token with the next one: run keeps no state by itself.
	if dir := getenv("NOMAD_SECRETS_DIR"); f.state == "" && dir != "" && !f.quiet {
		f.state = dir + "/elector.json"
	}
	if f.cfg.Address != "" {
		if _, _, err := net.SplitHostPort(f.cfg.Address); err != nil {
			return cli.Usage(hint.Wrap(fmt.Errorf("--address %q: %w", f.cfg.Address, err), "write HOST:PORT, for example 10.0.0.1:8080"))
		}
	}
	if err := f.cfg.Validate(); err != nil {
		return cli.Usage(err)
	}
	return nil
}

func serveElector(cmd *cobra.Command, f flags) error {
	return f.withElector(cmd, func(el *elector.Elector, listeners []net.Listener) error {
		return runElector(cmd.Context(), el, listeners)
	})
}

// withElector opens what an elector needs, and closes it after run.
func (f *flags) withElector(cmd *cobra.Command, run func(*elector.Elector, []net.Listener) error) (err error) {
	if err := f.complete(os.Getenv); err != nil {
		return err
	}
	log, err := obs.Logger(cmd.ErrOrStderr(), "elector", f.logLevel)
	if err != nil {
		return cli.Usage(err)
	}
	client, err := consulkit.New(consulkit.Config{MaxConns: 4})
	if err != nil {
		return err
	}
	listeners, err := cli.Listen(f.listen, f.mode, log)
	if err != nil {
		return err
	}
	var state *elector.StateFile
	if f.state != "" {
		if state, err = elector.OpenStateFile(f.state); err != nil {
			return err
		}
	}
	clk := clock.Boot()
	el, err := elector.New(f.cfg, elector.NewConsulStore(client, f.cfg, clk), clk, log, state)
	if err != nil {
		return err
	}
	log.Info("elector started", "app", f.cfg.App, "elections", f.cfg.Elections, "id", f.cfg.ID, "consul", client.Address)
	err = run(el, listeners)
	if state != nil {
		err = errors.Join(err, state.Close(el.Kept() || err != nil))
	}
	log.Info("elector stopped", "leadership_kept", el.Kept())
	return err
}

// runElector serves until ctx ends and the elector has let go of everything. The listeners stay open while it does, because
// applications learn there that they have to step down.
func runElector(ctx context.Context, el *elector.Elector, listeners []net.Listener) error {
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
	served := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { served <- listen.Serve(serving, l, el.Handler(), time.Second) }()
	}
	err := el.Run(ctx, hard)
	closeAll()
	for range listeners {
		if serveErr := <-served; err == nil && serveErr != nil {
			err = serveErr
		}
	}
	if errors.Is(err, context.Canceled) {
		return cli.Exit(cli.ExitInterrupted)
	}
	return err
}

// localAddr adds --addr, the way the operator's verbs find the elector of their task group.
func localAddr(cmd *cobra.Command, addr *string) {
	def := os.Getenv("RETINUE_ELECTOR_ADDR")
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); def == "" && dir != "" {
		def = "unix://" + dir + "/tmp/elector.sock"
	}
	cmd.Flags().StringVar(addr, "addr", def, "the elector's address; default $RETINUE_ELECTOR_ADDR, or the socket in the alloc dir")
}

func dial(addr string) (*elector.Client, error) {
	if addr == "" {
		return nil, cli.Usage(hint.Wrap(errors.New("no elector named"), "give --addr unix:///path/elector.sock, or set RETINUE_ELECTOR_ADDR"))
	}
	c, err := elector.NewClient(addr)
	if err != nil {
		return nil, cli.Usage(err)
	}
	return c, nil
}

func newStatus() *cobra.Command {
	var addr string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the elector of this task group leads, and who leads the rest",
		Example: `  retinue elector status --addr unix:///tmp/elector.sock
  nomad alloc exec -task elector ALLOC retinue elector status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dial(addr)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			status, err := c.Status(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), status)
			}
			printStatus(cmd.OutOrStdout(), status)
			return nil
		},
	}
	localAddr(cmd, &addr)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(w io.Writer, s elector.Status) {
	connected := "connected"
	if !s.Connected {
		connected = "NOT CONNECTED to Consul"
	}
	fmt.Fprintf(w, "%s  %s  %s\n", s.App, s.ID, connected)
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	fmt.Fprintf(w, "lease %s, revocation %s, session TTL %s, lock-delay %s: a silent death is noticed within %s\n",
		ms(s.LeaseMS), s.Revocation, ms(s.TTLMS), ms(s.LockDelayMS), ms(s.WorstFailoverMS))
	if s.Warning != "" {
		fmt.Fprintf(w, "warning: %s\n", s.Warning)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nELECTION\tROLE\tTOKEN\tLEADER\tADDRESS\tCANDIDATES")
	for _, e := range s.Elections {
		leader, address, token := "-", "-", uint64(0)
		if e.Leader != nil {
			leader, address, token = e.Leader.Elector, e.Leader.Address, e.Leader.Token
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\t%s\n", e.Election, e.Role, token, leader, address, strings.Join(e.Candidates, " "))
	}
	tw.Flush()
}

func newStepdown() *cobra.Command {
	var addr, to string
	cmd := &cobra.Command{
		Use:   "stepdown [ELECTION...]",
		Short: "Ask the application beside this elector to resign, and wait until it has",
		Long: `Asks the application to resign (event "stepdown"). It has its lease to do so;
then its leadership ends without it, which is just as safe. Without names, all
elections that are led here.`,
		Example: `  retinue elector stepdown
  retinue elector stepdown shard-0 --to any    hand over in one step, no vacancy`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dial(addr)
			if err != nil {
				return err
			}
			return stepdown(cmd, c, args, to)
		},
	}
	localAddr(cmd, &addr)
	cmd.Flags().StringVar(&to, "to", "", "elector ID, allocation or address that shall lead next, or any; default open to all")
	return cmd
}

func stepdown(cmd *cobra.Command, c *elector.Client, elections []string, to string) error {
	if len(elections) == 0 {
		status, err := c.Status(cmd.Context())
		if err != nil {
			return err
		}
		for _, e := range status.Elections {
			if e.Role != elector.Follower {
				elections = append(elections, e.Election)
			}
		}
		if len(elections) == 0 {
			fmt.Fprintln(cmd.OutOrStdout(), "nothing is led here")
			return nil
		}
	}
	for _, name := range elections {
		start := time.Now()
		reason, err := c.Stepdown(cmd.Context(), name, to)
		if err != nil {
			return fmt.Errorf("step down from %s: %w", name, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: leadership ended after %s (%s)\n", name, time.Since(start).Round(time.Millisecond), reason)
	}
	return nil
}

package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"retinue/elector"
	"retinue/internal/cli"
	"retinue/internal/hint"
)

func newRun() *cobra.Command {
	var f flags
	var grace time.Duration
	var priority int
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG...]",
		Short: "Run a command while, and only while, it leads",
		Long: `For programs that know nothing of elections. The command is started when the
election is won, with RETINUE_ELECTION, RETINUE_TOKEN (the fencing token) and
RETINUE_TERM in its environment. When leadership ends it gets SIGTERM, and
SIGKILL with its whole process group after the grace, in any case before the
lease ends; then this elector campaigns again. When the command ends by itself,
leadership is released and its exit code is this program's.`,
		Example: `  retinue elector run --app reports -- ./nightly-report --once
  retinue elector run --app orders --lease 5s --grace 2s -- /usr/local/bin/scheduler`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.quiet = true
			if grace == 0 {
				grace = f.cfg.Lease / 4
			}
			if grace < 0 || grace >= f.cfg.Lease/2 {
				return cli.Usage(hint.Wrap(fmt.Errorf("grace %s is not below half of the lease (%s)", grace, f.cfg.Lease), "give a longer --lease, or a shorter --grace"))
			}
			if len(f.cfg.Elections) != 1 {
				return cli.Usage(hint.Wrap(fmt.Errorf("%d elections", len(f.cfg.Elections)), "one command runs for one election; name it with --election"))
			}
			if _, err := exec.LookPath(args[0]); err != nil { // before it is elected, and others wait for it
				return cli.Usage(hint.Wrap(fmt.Errorf("the command cannot be run: %w", err), "name a program that is on PATH, or the path of one that may be executed, as this task sees it"))
			}
			return runWrapped(cmd, f, args, grace, priority)
		},
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&grace, "grace", 0, "between SIGTERM and SIGKILL, below half of the lease; default a quarter of it")
	cmd.Flags().IntVar(&priority, "priority", 0, "candidates of higher priority are elected first")
	return cmd
}

func runWrapped(cmd *cobra.Command, f flags, args []string, grace time.Duration, priority int) error {
	code := 0
	err := f.withElector(cmd, func(el *elector.Elector, listeners []net.Listener) error {
		w := &elector.Wrapper{Elector: el, Election: f.cfg.Elections[0], ID: "run", Priority: priority, Grace: grace, Command: args,
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		// The elector outlives the command: it has to release what the command held.
		ctx, stop := context.WithCancel(context.WithoutCancel(cmd.Context()))
		defer stop()
		ended := make(chan error, 1)
		go func() {
			defer stop()
			var err error
			code, err = w.Run(cmd.Context())
			ended <- err
		}()
		return errors.Join(runElector(ctx, el, listeners), <-ended)
	})
	if err == nil && code != 0 {
		return cli.Exit(code)
	}
	return err
}

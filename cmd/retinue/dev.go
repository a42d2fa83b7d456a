package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"retinue/internal/devcluster"
	"retinue/internal/hint"
)

func newDevCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:                        "dev",
		SuggestionsMinimumDistance: 2,
		Short:                      "A local Nomad and Consul cluster in the background",
		Long: `Runs a local cluster of real Consul and Nomad agents in the background, with
all of its state in one folder. docs/dev.md is its contract.`,
		Example: `  retinue dev up
  eval "$(retinue dev env)"
  nomad node status
  retinue dev down`,
	}
	cmd.AddCommand(newDevUpCmd(), newDevDownCmd(), newDevStatusCmd(), newDevEnvCmd(), newDevLogsCmd())
	return cmd
}

const dirUsage = "folder of the cluster (default: retinue/dev in the user's state folder)"

func newDevUpCmd() *cobra.Command {
	cfg := devcluster.Config{}
	offset := "0"
	asJSON := false
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the cluster, or complete it, and wait until it schedules",
		Example: `  retinue dev up
  retinue dev up --servers 3 --clients 3
  retinue dev up --acl --dir /tmp/acl --port-offset auto`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.PortOffset, err = parseOffset(offset); err != nil {
				return err
			}
			if err := checkDevFlags(cmd, cfg); err != nil {
				return err
			}
			steps := newStepPrinter(cmd.ErrOrStderr())
			c, err := devcluster.Up(cmd.Context(), cfg, steps.print)
			steps.end()
			if err != nil {
				return err
			}
			if asJSON {
				st, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), st)
			}
			printUp(cmd.OutOrStdout(), c, cfg.Dir)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Dir, "dir", "", dirUsage)
	f.IntVar(&cfg.Servers, "servers", 0, "number of server nodes, each a Consul and a Nomad server (default 1)")
	f.IntVar(&cfg.Clients, "clients", 0, "number of client nodes, each a Consul and a Nomad client (default 1)")
	f.StringVar(&offset, "port-offset", "0", "number to add to every standard port, or `auto` for the first free ports")
	f.BoolVar(&cfg.ACL, "acl", false, "turn on ACLs (default deny) in Consul and Nomad, with workload identity")
	f.StringVar(&cfg.Docker, "docker", "auto", "use a Docker engine: `auto`, on or off")
	f.StringVar(&cfg.DriverPlugin, "driver-plugin", "auto", "put the lifecycle driver in the place of Nomad's drivers: `auto` (when it is beside this program), on or off")
	f.DurationVar(&cfg.SessionTTLMin, "session-ttl-min", time.Second, "Consul's lower bound of a session's TTL")
	f.BoolVar(&asJSON, "json", false, "print the status as JSON when the cluster is up")
	return cmd
}

func parseOffset(s string) (int, error) {
	if s == "auto" {
		return devcluster.AutoPorts, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, usageError{hint.Wrap(fmt.Errorf("--port-offset %q is neither a number nor auto", s), "for example --port-offset 100, or --port-offset auto")}
	}
	return n, nil
}

// checkDevFlags refuses what the command line says wrong; a 0 that a person
// typed is not the default.
func checkDevFlags(cmd *cobra.Command, cfg devcluster.Config) error {
	for flag, v := range map[string]int{"servers": cfg.Servers, "clients": cfg.Clients} {
		if cmd.Flags().Changed(flag) && v == 0 {
			return usageError{fmt.Errorf("--%s must be at least 1", flag)}
		}
	}
	if err := cfg.Validate(); err != nil {
		return usageError{hint.Wrap(err, "run `%s --help` for the flags and examples", cmd.CommandPath())}
	}
	return nil
}

func printUp(w io.Writer, c *devcluster.Cluster, dir string) {
	flag := ""
	if dir != "" {
		flag = " --dir " + shellQuote(dir)
	}
	fmt.Fprintf(w, `
Nomad   %s/ui/
Consul  %s/ui/
`, c.NomadAddr(), c.ConsulAddr())
	if c.Plan().ACL {
		fmt.Fprintf(w, "The tokens to log in with: retinue dev env%s\n", flag)
	}
	fmt.Fprintf(w, `
Next:
  eval "$(retinue dev env%[1]s)"
  nomad node status
  retinue dev status%[1]s
  retinue dev down%[1]s
`, flag)
}

func newDevDownCmd() *cobra.Command {
	dir := ""
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster and remove everything it made",
		Example: `  retinue dev down
  retinue dev down --dir /tmp/acl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			steps := newStepPrinter(cmd.ErrOrStderr())
			defer steps.end()
			return devcluster.Down(cmd.Context(), dir, steps.print)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	return cmd
}

func newDevStatusCmd() *cobra.Command {
	dir, asJSON := "", false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the agents, who leads, and the jobs",
		Long: `Shows the agents of the cluster, who leads, and its jobs. The exit code is 1
when the cluster is not ready.`,
		Example: `  retinue dev status
  retinue dev status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := devcluster.Open(dir)
			if err != nil {
				return err
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), st)
			} else {
				err = printStatus(cmd.OutOrStdout(), st)
			}
			if err == nil && !st.Ready {
				err = exitError(exitFailed)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(w io.Writer, st devcluster.Status) error {
	fmt.Fprintf(w, "%s\nNomad   %s\nConsul  %s\n\n", st.Summary(), st.NomadUI, st.ConsulUI)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "AGENT\tSTATUS\tPID\tADDRESS")
	for _, a := range st.Agents {
		pid := "-"
		if a.PID != 0 {
			pid = strconv.Itoa(a.PID)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", a.Name, a.Status, pid, a.HTTPAddr)
	}
	if len(st.Jobs) > 0 {
		fmt.Fprintln(t, "\t\t\t\nJOB\tSTATUS\tRUNNING\t")
	}
	for _, j := range st.Jobs {
		fmt.Fprintf(t, "%s\t%s\t%d\t\n", j.ID, j.Status, j.Running)
	}
	return t.Flush()
}

func newDevEnvCmd() *cobra.Command {
	dir, asJSON := "", false
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the environment that points nomad, consul and jobspecs at the cluster",
		Example: `  eval "$(retinue dev env)"
  retinue dev env --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := devcluster.Open(dir)
			if err != nil {
				return err
			}
			if asJSON {
				vars := map[string]string{}
				for _, v := range c.Env() {
					vars[v.Name] = v.Value
				}
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetEscapeHTML(false)
				enc.SetIndent("", "  ")
				return enc.Encode(vars)
			}
			for _, v := range c.Env() {
				// The semicolon keeps an unquoted eval $(...) working, which joins lines.
				fmt.Fprintf(cmd.OutOrStdout(), "export %s=%s;\n", v.Name, shellQuote(v.Value))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// shellQuote makes s one word for a POSIX shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=,@%+", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// stepPrinter shows steps as lines; a progress step is rewritten in place on a
// terminal and printed every ten seconds elsewhere.
type stepPrinter struct {
	w        io.Writer
	terminal bool
	open     bool // the cursor is behind a progress line
	last     time.Time
}

func newStepPrinter(w io.Writer) *stepPrinter {
	f, ok := w.(*os.File)
	return &stepPrinter{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

func (s *stepPrinter) print(step devcluster.Step) {
	text := fmt.Sprintf("[%5.1fs] %s", step.After.Seconds(), step.Text)
	if step.Warning {
		text = fmt.Sprintf("[%5.1fs] note: %s", step.After.Seconds(), step.Text)
	}
	switch {
	case step.Progress && s.terminal:
		fmt.Fprintf(s.w, "\r\x1b[K%s", text)
		s.open = true
		return
	case step.Progress && time.Since(s.last) < 10*time.Second:
		return
	case step.Progress:
		s.last = time.Now()
	}
	s.end()
	fmt.Fprintln(s.w, text)
}

func (s *stepPrinter) end() {
	if s.open {
		fmt.Fprintln(s.w)
		s.open = false
	}
}

func newDevLogsCmd() *cobra.Command {
	opts := logOptions{}
	dir := ""
	cmd := &cobra.Command{
		Use:   "logs [AGENT]",
		Short: "Show the log of an agent, or of all",
		Example: `  retinue dev logs
  retinue dev logs nomad-client-1 -f
  retinue dev logs consul-server-1 -n 200`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.lines < 0 {
				return usageError{fmt.Errorf("-n %d: the number of lines cannot be negative", opts.lines)}
			}
			c, err := devcluster.Open(dir)
			if err != nil {
				return err
			}
			agents := c.Agents()
			if len(args) == 1 {
				a, err := c.Agent(args[0])
				if err != nil {
					return usageError{err}
				}
				agents = []devcluster.Agent{a}
			}
			err = opts.show(cmd.Context(), cmd.OutOrStdout(), agents)
			if errors.Is(err, context.Canceled) {
				return exitError(exitInterrupted)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", dirUsage)
	f.BoolVarP(&opts.follow, "follow", "f", false, "go on with new lines until Ctrl-C")
	f.IntVarP(&opts.lines, "lines", "n", 50, "number of last lines of each log")
	return cmd
}

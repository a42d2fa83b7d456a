package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"retinue/internal/hint"
	"retinue/internal/lifecycle/manage"
)

func newTaskCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "task",
		Short: "See and steer the lifecycle of tasks, through Nomad and under its ACL",
		Long: `Asks the lifecycle driver of a task through ` + "`nomad alloc exec ALLOC @retinue`" + `, so
the token needs alloc-exec (raw_exec: alloc-node-exec too) and read-job in the task's namespace. A task is named ALLOC or
ALLOC/TASK; the first eight characters of an allocation are enough. NOMAD_ADDR,
NOMAD_TOKEN and NOMAD_NAMESPACE count, as for nomad itself.`,
		Example: `  retinue task ls                            all tasks with their phase
  retinue task show 4f2a91c0                 one task, its hooks and its saved state
  retinue task pause 4f2a91c0/db             freeze it; resume lets it go on
  retinue task profile 4f2a91c0 --kind cpu --seconds 10 --output cpu.pprof
  retinue task replicate 4f2a91c0 --add 1    one more instance of its group`,
	}
	cmd.AddCommand(newTaskListCmd(), newTaskShowCmd(), newTaskHealthCmd(), newTaskMetricsCmd(), newTaskProfileCmd(), newTaskConfigCmd(), newTaskLogsCmd(),
		newTaskVerbCmd("pause", "Run the pause hook, then freeze every process of the task"),
		newTaskVerbCmd("resume", "Let a paused task go on; also gives up a drain"),
		newTaskVerbCmd("drain", "Run pre_drain and drain, without a stop"),
		newTaskVerbCmd("save", "Run save_state now"),
		newTaskReplicateCmd())
	return cmd
}

func newTaskListCmd() *cobra.Command {
	var job string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List running tasks and the phase of their lifecycle",
		Example: `  retinue task ls
  retinue task ls --job orders --json | jq '.[] | select(.lifecycle.ready | not)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tasks, err := listTasks(cmd.Context(), job)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), tasks)
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "ALLOC\tTASK\tJOB\tDRIVER\tPHASE\tFOR\tREADY\tHOOKS\tSAYS")
			for _, t := range tasks {
				if !t.Managed {
					phase := "not managed"
					if t.Denied {
						phase = "needs alloc-exec"
					}
					fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t\t\t\t\n", shortID(t.Alloc), t.Task, t.Job, t.Driver, phase)
					continue
				}
				l := t.Lifecycle
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%t\t%d\t%s\n", shortID(t.Alloc), t.Task, t.Job, t.Driver, l.Phase, l.For.Round(time.Second), l.Ready, len(t.Hooks), l.AppStatus)
			}
			return table.Flush()
		},
	}
	cmd.Flags().StringVar(&job, "job", "", "only tasks of this job")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newTaskShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show ALLOC[/TASK]",
		Short:   "Show one task: phase, hooks, saved state",
		Example: "  retinue task show 4f2a91c0/db",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d manage.Description
			if err := askTask(cmd.Context(), args[0], "GET", "/v1/task", "", &d); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), d)
			}
			return printTask(cmd.OutOrStdout(), d)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printTask(w io.Writer, d manage.Description) error {
	l := d.Lifecycle
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "task\t%s of %s/%s\nallocation\t%s\ndriver\t%s\nphase\t%s for %s\nready\t%t\n", d.Task, d.Job, d.Group, d.Alloc, d.Driver, l.Phase, l.For.Round(time.Millisecond), l.Ready)
	if l.Operation != "" {
		fmt.Fprintf(table, "under way\t%s\n", strings.TrimSpace(fmt.Sprintf("%s %s %s", l.Operation, l.Hook, l.Progress)))
	}
	if l.AppStatus != "" {
		fmt.Fprintf(table, "says\t%s\n", l.AppStatus)
	}
	if l.Exit != nil {
		fmt.Fprintf(table, "ended\t%s\n", l.Exit)
	}
	if s := d.State; s != nil {
		fmt.Fprintf(table, "saved state\t%d bytes at %s\n", s.Size, strings.TrimSpace(s.SavedAt.Format(time.RFC3339)+" "+s.AppVersion))
	}
	if err := table.Flush(); err != nil || len(d.Hooks) == 0 {
		return err
	}
	fmt.Fprintln(w)
	table = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "HOOK\tKIND\tTIMEOUT\tON FAILURE\tLAST RUN")
	for _, h := range d.Hooks {
		last := "never"
		for name, report := range l.Hooks {
			if string(name) == h.Name {
				last = fmt.Sprintf("%s, %s", report.Result, report.Took.Round(time.Millisecond))
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", h.Name, h.Kind, time.Duration(h.TimeoutMS)*time.Millisecond, h.OnFailure, last)
	}
	return table.Flush()
}

func newTaskHealthCmd() *cobra.Command {
	var asJSON, ready bool
	cmd := &cobra.Command{
		Use:   "health ALLOC[/TASK]",
		Short: "Say whether a task lives, or takes requests",
		Long:  "Says whether a task lives, by its own word where it gives one. Exit code 1: it does not.",
		Example: `  retinue task health 4f2a91c0
  retinue task health 4f2a91c0 --ready && echo "takes requests"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/v1/health"
			if ready {
				path = "/v1/ready"
			}
			body, ok, err := taskAnswer(cmd.Context(), args[0], "GET", path, "")
			if err != nil {
				return err
			}
			var health manage.Health
			if err := json.Unmarshal(body, &health); err != nil || health.Phase == "" {
				return refusal(args[0], body)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), health)
			} else {
				word := map[bool]string{true: "yes", false: "no"}[health.OK]
				_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(fmt.Sprintf("%s, says the %s: %s %s", word, health.Source, health.Phase, health.Detail)))
			}
			if err == nil && !ok {
				return exitError(exitFailed)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it takes requests")
	return cmd
}

func newTaskMetricsCmd() *cobra.Command {
	var source string
	cmd := &cobra.Command{
		Use:   "metrics ALLOC[/TASK]",
		Short: "Print a task's metrics: its own, and the driver's of it",
		Example: `  retinue task metrics 4f2a91c0
  retinue task metrics 4f2a91c0 --source driver`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return streamTask(cmd.Context(), args[0], "/v1/metrics?"+url.Values{"source": {source}}.Encode(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&source, "source", "", "application or driver (default: both)")
	return cmd
}

func newTaskProfileCmd() *cobra.Command {
	var kind, output string
	var seconds int
	cmd := &cobra.Command{
		Use:   "profile ALLOC[/TASK]",
		Short: "Take a profile: threads and network of any program, pprof of one that has it",
		Long: `threads lists every thread with its state, where it waits and its kernel stack; of
a JVM it is the JVM's own thread dump. network gives the message statistics of
the task's network. cpu, heap, allocs, goroutine, threadcreate, mutex, block and
trace come from the application, when it serves /debug/pprof/ on $RETINUE_SOCK.`,
		Example: `  retinue task profile 4f2a91c0
  retinue task profile 4f2a91c0 --kind cpu --seconds 10 --output cpu.pprof && go tool pprof cpu.pprof`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"kind": {kind}, "seconds": {strconv.Itoa(seconds)}}
			if output == "" {
				q.Set("debug", "1")
				return streamTask(cmd.Context(), args[0], "/v1/profile?"+q.Encode(), cmd.OutOrStdout())
			}
			f, err := os.Create(output)
			if err != nil {
				return err
			}
			if err := streamTask(cmd.Context(), args[0], "/v1/profile?"+q.Encode(), f); err != nil {
				f.Close()
				os.Remove(output)
				return err
			}
			return f.Close()
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "threads", "threads, network, cpu, heap, allocs, goroutine, threadcreate, mutex, block or trace")
	cmd.Flags().IntVar(&seconds, "seconds", 5, "how long a cpu profile or a trace is taken")
	cmd.Flags().StringVar(&output, "output", "", "write to this file (default: standard output, as text where there is a text form)")
	return cmd
}

func newTaskConfigCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "config ALLOC[/TASK]",
		Short:   "Print a task's configuration as JSON, its own or else the job's, without secrets",
		Example: "  retinue task config 4f2a91c0 | jq .config.image",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return streamTask(cmd.Context(), args[0], "/v1/config", cmd.OutOrStdout())
		},
	}
}

func newTaskLogsCmd() *cobra.Command {
	var stderr, follow bool
	var tail int64
	cmd := &cobra.Command{
		Use:   "logs ALLOC[/TASK]",
		Short: "Print the end of a task's log",
		Example: `  retinue task logs 4f2a91c0 --tail 4096
  retinue task logs 4f2a91c0 --stderr --follow`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"stream": {"stdout"}, "tail": {strconv.FormatInt(tail, 10)}, "follow": {strconv.FormatBool(follow)}}
			if stderr {
				q.Set("stream", "stderr")
			}
			err := streamTask(cmd.Context(), args[0], "/v1/logs?"+q.Encode(), cmd.OutOrStdout())
			if follow && cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&stderr, "stderr", false, "its standard error instead of its standard output")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with what comes, until Ctrl-C")
	cmd.Flags().Int64Var(&tail, "tail", 64<<10, "how many bytes back")
	return cmd
}

func newTaskVerbCmd(verb, short string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     verb + " ALLOC[/TASK]",
		Short:   short,
		Example: "  retinue task " + verb + " 4f2a91c0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var done manage.Done
			if err := askTask(cmd.Context(), args[0], "POST", "/v1/"+verb, "", &done); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), done)
			}
			line := fmt.Sprintf("%s after %d ms", done.Phase, done.TookMS)
			if done.Detail != "" {
				line += ": " + done.Detail
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), line)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newTaskReplicateCmd() *cobra.Command {
	var asJSON bool
	var req manage.ReplicateRequest
	cmd := &cobra.Command{
		Use:   "replicate ALLOC[/TASK]",
		Short: "Scale the task's group up, as the task itself may",
		Long: `Asks the task's driver to scale its group, with the task's own workload identity
and within max_replicas of its lifecycle block.`,
		Example: `  retinue task replicate 4f2a91c0 --add 1
  retinue task replicate 4f2a91c0 --count 5`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (req.Count > 0) == (req.Add > 0) {
				return usageError{hint.Wrap(fmt.Errorf("neither or both of --count and --add"), "say either how many there should be, or how many more")}
			}
			body, err := json.Marshal(req)
			if err != nil {
				return err
			}
			var scaled manage.Scaled
			if err := askTask(cmd.Context(), args[0], "POST", "/v1/replicate", string(body), &scaled); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), scaled)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d instances, %d before, at most %d\n", scaled.After, scaled.Before, scaled.Limit)
			return err
		},
	}
	cmd.Flags().IntVar(&req.Count, "count", 0, "how many there should be")
	cmd.Flags().IntVar(&req.Add, "add", 0, "how many more there should be")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// askTask reads a JSON answer into v.
func askTask(ctx context.Context, target, method, path, body string, v any) error {
	answer, ok, err := taskAnswer(ctx, target, method, path, body)
	if err != nil {
		return err
	}
	if !ok {
		return refusal(target, answer)
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return unmanaged(target)
	}
	return nil
}

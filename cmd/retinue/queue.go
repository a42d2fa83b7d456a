package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/coordinator/worker"
	"retinue/internal/hint"
)

func newQueueCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Publish to a work queue, see its items, steer it",
		Long: `Speaks to a coordinator (--addr); it knows the items that it has in hand, and
through the commit point how any item of its queue has ended.`,
		Example: `  retinue queue put photo.jpg --wait 30s     one item, and its result
  retinue queue stats                        how the stage does
  retinue queue show ID                      one item, with its failed attempts
  retinue queue dead ls                      what could not be done, and why
  retinue queue dead retry --all             try it again`,
	}
	cmd.AddCommand(newQueuePutCmd(), newQueueLsCmd(), newQueueShowCmd(), newQueueWaitCmd(), newQueueCancelCmd(), newQueuePauseCmd(), newQueueResumeCmd(), newQueueDrainCmd(),
		newQueueStatsCmd(), newQueueScaleCmd(), newQueueDeadCmd(), newQueueScheduleCmd(), newQueueGroupCmd())
	return cmd
}

// queueTarget is the coordinator that a verb speaks to, and how it prints.
type queueTarget struct {
	addr string
	json bool
}

// add adds --addr and --json.
func (q *queueTarget) add(cmd *cobra.Command) {
	def := os.Getenv("RETINUE_COORDINATOR_ADDR")
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); def == "" && dir != "" {
		def = "unix://" + dir + "/tmp/coordinator.sock"
	}
	cmd.Flags().StringVar(&q.addr, "addr", def, "the coordinator's address; default $RETINUE_COORDINATOR_ADDR, or the socket in the alloc dir")
	cmd.Flags().BoolVar(&q.json, "json", false, "print JSON")
}

// resultText is a result as the worker wrote it: text as it is, anything else as JSON.
func resultText(v any) string {
	if text, ok := v.(string); ok {
		return text
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(data)
}

// dial returns a client and the name of the queue.
func (q *queueTarget) dial(ctx context.Context) (*coordinator.Client, string, error) {
	if q.addr == "" {
		return nil, "", usageError{hint.Wrap(errors.New("no coordinator named"), "give --addr unix:///path/coordinator.sock, or set RETINUE_COORDINATOR_ADDR")}
	}
	c, err := coordinator.NewClient(q.addr)
	if err != nil {
		return nil, "", usageError{err}
	}
	queue, err := c.Queue(ctx)
	return c, queue, err
}

func newQueueLsCmd() *cobra.Command {
	var q queueTarget
	var limit int
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the items that the coordinator has in hand",
		Example: "  retinue queue ls\n  retinue queue ls --json | jq '.[] | select(.state == \"running\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, queue, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			items, err := c.Items(cmd.Context(), queue, limit)
			if err != nil {
				return err
			}
			if q.json {
				return printJSON(cmd.OutOrStdout(), items)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "ITEM\tSTATE\tATTEMPT\tFOR\tKEY\tPROGRESS\tLAST FAILURE")
			for _, it := range items {
				state := string(it.State)
				if it.RetryMS > 0 {
					state += " (again in " + (time.Duration(it.RetryMS) * time.Millisecond).String() + ")"
				}
				fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", it.ID, state, it.Attempt, seconds(it.SinceS), dash(it.Key), dash(item.Printable(string(it.Progress), 60)), dash(lastFailure(it.Attempts)))
			}
			return tw.Flush()
		},
	}
	q.add(cmd)
	cmd.Flags().IntVar(&limit, "limit", 100, "items at most, up to 1000")
	return cmd
}

func newQueueShowCmd() *cobra.Command {
	var q queueTarget
	cmd := &cobra.Command{
		Use:     "show ITEM",
		Short:   "Show one item: state, result, failed attempts",
		Long:    "Shows one item. Exit code 1: the coordinator does not know it; then it waits in the queue, or another coordinator has it.",
		Example: "  retinue queue show order-77\n  retinue queue show order-77 --json | jq .result",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			it, err := c.Item(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			return printItem(cmd, q.json, it)
		},
	}
	q.add(cmd)
	return cmd
}

func newQueueWaitCmd() *cobra.Command {
	var q queueTarget
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "wait ITEM...",
		Short:   "Wait until items have ended, and print how",
		Long:    "Waits until items have ended. Exit code 1: one of them is dead, cancelled, or not done in time.",
		Example: "  retinue queue wait order-77 --timeout 5m",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			good := true
			for _, id := range args {
				it, err := waitItem(ctx, c, id)
				if err != nil {
					return err
				}
				good = good && (it.State == item.Done || it.State == item.Dropped)
				if err := printItem(cmd, q.json, it); err != nil {
					return err
				}
			}
			if !good {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	q.add(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait in all")
	return cmd
}

// waitItem waits until an item has ended or ctx has.
func waitItem(ctx context.Context, c *coordinator.Client, id string) (coordinator.Item, error) {
	for {
		it, err := c.Item(ctx, id, 30*time.Second)
		var status *coordinator.StatusError
		switch {
		case ctx.Err() != nil:
			return it, fmt.Errorf("item %s has not ended: %w", id, ctx.Err())
		case errors.As(err, &status) && status.Status == 404: // it waits in the queue
		case err != nil:
			return it, err
		case it.State.Ended():
			return it, nil
		}
	}
}

func newQueueCancelCmd() *cobra.Command {
	var q queueTarget
	cmd := &cobra.Command{
		Use:     "cancel ITEM...",
		Short:   "Cancel items: they are not executed any more, and can no longer commit",
		Long:    "Cancels items. Exit code 1: one of them had ended before in another way.",
		Example: "  retinue queue cancel order-77",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			good := true
			for _, id := range args {
				it, err := c.Cancel(cmd.Context(), id)
				if err != nil {
					return err
				}
				good = good && it.State == item.Cancelled
				if err := printItem(cmd, q.json, it); err != nil {
					return err
				}
			}
			if !good {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	q.add(cmd)
	return cmd
}

func newQueuePauseCmd() *cobra.Command {
	var q queueTarget
	var reason string
	cmd := &cobra.Command{
		Use:     "pause",
		Short:   "Take no more items here; what runs goes on",
		Example: "  retinue queue pause --reason \"database upgrade\"",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return q.steer(cmd, "pause", url.Values{"reason": {reason}})
		},
	}
	q.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "for others who look")
	return cmd
}

func newQueueResumeCmd() *cobra.Command {
	var q queueTarget
	var key string
	cmd := &cobra.Command{
		Use:     "resume",
		Short:   "Take items again after a pause or a drain, or open a parked key",
		Example: "  retinue queue resume\n  retinue queue resume --key customer-7",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{}
			if key != "" {
				query.Set("key", key)
			}
			return q.steer(cmd, "resume", query)
		},
	}
	q.add(cmd)
	cmd.Flags().StringVar(&key, "key", "", "only this key, which is parked behind a dead item")
	return cmd
}

func newQueueDrainCmd() *cobra.Command {
	var q queueTarget
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "drain",
		Short:   "Take no more items here, and wait until what runs has ended",
		Long:    "Drains the coordinator. Exit code 1: something still ran when the time was over; it goes on.",
		Example: "  retinue queue drain --timeout 2m",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, queue, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			st, err := c.Steer(cmd.Context(), queue, "drain", nil)
			bar := newProgress(cmd.ErrOrStderr(), "drained", int64(st.Running+st.Finishing), q.json)
			for end := time.Now().Add(timeout); err == nil && st.Status != "drained" && time.Now().Before(end); {
				bar.set(bar.total - int64(st.Running+st.Finishing))
				select {
				case <-time.After(200 * time.Millisecond):
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				}
				st, err = c.Stats(cmd.Context(), queue)
			}
			bar.end()
			if err != nil {
				return err
			}
			if err := printStats(cmd, q.json, st); err != nil {
				return err
			}
			if st.Status != "drained" {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	q.add(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	return cmd
}

func (q *queueTarget) steer(cmd *cobra.Command, verb string, query url.Values) error {
	c, queue, err := q.dial(cmd.Context())
	if err != nil {
		return err
	}
	st, err := c.Steer(cmd.Context(), queue, verb, query)
	if err != nil {
		return err
	}
	return printStats(cmd, q.json, st)
}

func newQueueStatsCmd() *cobra.Command {
	var q queueTarget
	cmd := &cobra.Command{
		Use:     "stats",
		Short:   "Show how the stage does: what waits, runs, has ended, has failed",
		Example: "  retinue queue stats\n  retinue queue stats --json | jq .depth.ready",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, queue, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			st, err := c.Stats(cmd.Context(), queue)
			if err != nil {
				return err
			}
			return printStats(cmd, q.json, st)
		},
	}
	q.add(cmd)
	return cmd
}

func printStats(cmd *cobra.Command, asJSON bool, st coordinator.Stats) error {
	w := cmd.OutOrStdout()
	if asJSON {
		return printJSON(w, st)
	}
	fmt.Fprintf(w, "%s  %s  %s", st.Queue, st.Coordinator, st.Status)
	if st.Reason != "" {
		fmt.Fprintf(w, " (%s)", st.Reason)
	}
	fmt.Fprintf(w, "\nin hand   %d waiting, %d running, %d finishing; %d of %d slots\n", st.Waiting, st.Running, st.Finishing, st.Limit, st.Slots)
	if st.RateShare > 0 {
		fmt.Fprintf(w, "rates     %.0f %% of them are this coordinator's\n", 100*st.RateShare)
	}
	if d := st.Depth; d != nil {
		fmt.Fprintf(w, "broker    %s ready, %s delayed, %s in flight, oldest %s\n", count(d.Ready), count(d.Delayed), count(d.InFlight), seconds(d.OldestS))
	}
	if st.Partitions != nil {
		printPartitions(w, *st.Partitions)
	}
	fmt.Fprintf(w, "ended     %s\nfailed    %s\n", counts(st.Totals.Ended), counts(st.Totals.Failed))
	fmt.Fprintf(w, "since its start: %d received, %d given back, %d diverted, %d leases lost, %d outputs too late\n", st.Totals.Received, st.Totals.Released, st.Totals.Diverted, st.Totals.Lost, st.Totals.Late)
	if len(st.Parked) > 0 {
		fmt.Fprintf(w, "parked    %s\n", strings.Join(st.Parked, " "))
	}
	return nil
}

func printItem(cmd *cobra.Command, asJSON bool, it coordinator.Item) error {
	w := cmd.OutOrStdout()
	if asJSON {
		return printJSON(w, it)
	}
	fmt.Fprintf(w, "%s  %s", it.ID, it.State)
	if it.Class != "" || it.Reason != "" {
		fmt.Fprintf(w, "  %s", strings.TrimSpace(string(it.Class)+" "+it.Reason))
	}
	if it.Ended != nil {
		fmt.Fprintf(w, "  %s, attempt %d on %s", it.Ended.Format(time.DateTime), it.Attempt, dash(it.Node))
	}
	fmt.Fprintln(w)
	printAttempts(w, it.Attempts)
	if it.Progress != nil {
		fmt.Fprintf(w, "  progress %s\n", item.Printable(string(it.Progress), worker.MaxProgress))
	}
	for _, f := range it.Files {
		fmt.Fprintf(w, "  %s/%s  %d bytes\n", it.Output, f.Name, f.Size)
	}
	switch {
	case it.Result != nil:
		fmt.Fprintf(w, "  result %s\n", resultText(it.Result))
	case it.Binary != nil:
		fmt.Fprintf(w, "  result of %d bytes, %s\n", len(it.Binary), dash(it.ResultType))
	}
	return nil
}

func printAttempts(w io.Writer, attempts []item.Attempt) {
	for _, a := range attempts {
		where := dash(a.Node)
		if a.Alloc != "" {
			where += " (allocation " + a.Alloc[:min(len(a.Alloc), 8)] + ")" // as Nomad's own verbs show it
		}
		fmt.Fprintf(w, "  attempt %d  %s after %s on %s: %s\n", a.N, a.Class, a.Ended.Sub(a.Started).Round(time.Millisecond), where, a.Reason)
		for line := range strings.Lines(strings.TrimSpace(a.Stderr)) {
			fmt.Fprintf(w, "    | %s\n", strings.TrimRight(line, "\n"))
		}
	}
}

func lastFailure(attempts []item.Attempt) string {
	if len(attempts) == 0 {
		return ""
	}
	a := attempts[len(attempts)-1]
	return string(a.Class) + ": " + a.Reason
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func count(n int64) string {
	if n < 0 {
		return "?"
	}
	return fmt.Sprint(n)
}

func seconds(s float64) string {
	if s < 0 {
		return "?"
	}
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond).String()
}

func counts[K ~string](m map[K]uint64) string {
	parts := make([]string, 0, len(m))
	for k, n := range m {
		parts = append(parts, fmt.Sprintf("%d %s", n, string(k)))
	}
	sort.Strings(parts)
	return dash(strings.Join(parts, ", "))
}

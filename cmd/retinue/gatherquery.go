package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"retinue/gather"
	"retinue/internal/hint"
)

// localGather adds --admin, the way the operator's verbs find a root.
func localGather(cmd *cobra.Command, addr *string) {
	def := os.Getenv("RETINUE_GATHER_ADMIN")
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); def == "" && dir != "" {
		def = "unix://" + dir + "/tmp/gather.sock"
	}
	cmd.Flags().StringVar(addr, "admin", def, "the root's admin API; default $RETINUE_GATHER_ADMIN, or the socket in the alloc dir")
}

func dialGather(addr string) (*gather.Client, error) {
	first, _, _ := strings.Cut(addr, ",")
	if first == "" {
		return nil, usageError{hint.Wrap(errors.New("no root named"), "give --admin unix:///path/gather.sock, or set RETINUE_GATHER_ADMIN")}
	}
	c, err := gather.NewClient(first)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

func newGatherQueryCmd() *cobra.Command {
	var admin, method, data, partial string
	var headers []string
	var deadline time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "query URL",
		Short: "Send a request through a root, and see its fan-out",
		Long: `Sends a request to a root's public address. The answer goes to standard output,
what it covers and how it came about to standard error: with --admin as a
timeline of every leaf call. Exit code 1: the root answered with an error.`,
		Example: `  retinue gather query http://127.0.0.1:8080/q?q=tail
  retinue gather query http://127.0.0.1:8080/q?q=tail --admin unix:///tmp/gather.sock --partial 0.95
  retinue gather query http://127.0.0.1:8080/add -X POST -d '{"n":1}' --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := url.Parse(args[0])
			if err != nil || u.Scheme == "" || u.Host == "" {
				return usageError{hint.Wrap(fmt.Errorf("%q is no URL", args[0]), "write http://HOST:PORT/path?query")}
			}
			if u.Scheme != "http" && u.Scheme != "https" {
				return usageError{hint.Wrap(fmt.Errorf("a root does not speak %s", u.Scheme), "write http://%s%s", u.Host, u.RequestURI())}
			}
			body := io.Reader(nil)
			if data != "" {
				body = strings.NewReader(data)
				if method == "" {
					method = http.MethodPost
				}
			}
			req, err := http.NewRequestWithContext(cmd.Context(), strings.ToUpper(method), u.String(), body)
			if err != nil {
				return usageError{err}
			}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok {
					return usageError{hint.Wrap(fmt.Errorf("header %q", h), "write 'Name: value'")}
				}
				req.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
			}
			req.Header.Set("Retinue-Explain", "1")
			if partial != "" {
				req.Header.Set("Prefer", "retinue-partial="+partial)
			}
			if deadline > 0 {
				req.Header.Set("Retinue-Deadline-Ms", gather.FormatDeadline(deadline))
			}
			return query(cmd, req, admin, asJSON)
		},
	}
	localGather(cmd, &admin)
	flags := cmd.Flags()
	flags.StringVarP(&method, "request", "X", "", "the method; default GET, with --data POST")
	flags.StringVarP(&data, "data", "d", "", "the body")
	flags.StringArrayVarP(&headers, "header", "H", nil, "a header, 'Name: value'; repeat")
	flags.DurationVar(&deadline, "deadline", 0, "the request's deadline; default the root's")
	flags.StringVar(&partial, "partial", "", "the least coverage to accept, or fail: it can only be stricter than the root's policy")
	flags.BoolVar(&asJSON, "json", false, "print the answer, its headers and the timeline as JSON")
	return cmd
}

// queryResult is what `retinue gather query --json` prints.
type queryResult struct {
	Status   int               `json:"status"`
	Headers  map[string]string `json:"headers"`
	Body     string            `json:"body"`
	TookMS   float64           `json:"took_ms"`
	Timeline *gather.Timeline  `json:"timeline,omitempty"`
}

func query(cmd *cobra.Command, req *http.Request, admin string, asJSON bool) error {
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return hint.Wrap(fmt.Errorf("ask the root: %w", err), "is `retinue gather` running there? its --listen is the public address")
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	result := queryResult{Status: resp.StatusCode, Headers: map[string]string{}, Body: string(body), TookMS: float64(time.Since(start).Microseconds()) / 1000}
	for _, h := range []http.Header{resp.Header, resp.Trailer} {
		for name := range h {
			result.Headers[name] = h.Get(name)
		}
	}
	if admin != "" {
		if result.Timeline, err = timelineOf(cmd.Context(), admin, result.Headers["Retinue-Request-Id"]); err != nil {
			return err
		}
	}
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), result)
	} else {
		cmd.OutOrStdout().Write(body)
		printQuery(cmd.ErrOrStderr(), result)
	}
	if err == nil && resp.StatusCode >= 400 {
		return exitError(exitFailed)
	}
	return err
}

func timelineOf(ctx context.Context, admin, id string) (*gather.Timeline, error) {
	c, err := dialGather(admin)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	t, err := c.Request(ctx, id)
	if err != nil {
		return nil, err
	}
	return &t, nil
}

func printQuery(w io.Writer, r queryResult) {
	h := r.Headers
	fmt.Fprintf(w, "\nstatus %d  coverage %s  %s\n", r.Status, h["Retinue-Coverage"], h["Retinue-Shards"])
	if h["Retinue-Degraded"] != "" {
		fmt.Fprintf(w, "DEGRADED: %s\n", h["Retinue-Degraded"])
	}
	fmt.Fprintf(w, "hedges %s (sent/won)  %s  %.1f ms at this end\n", h["Retinue-Hedges"], h["Server-Timing"], r.TookMS)
	if r.Timeline != nil {
		fmt.Fprintln(w)
		printTimeline(w, *r.Timeline)
	}
}

func newGatherExplainCmd() *cobra.Command {
	var admin string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain [REQUEST-ID]",
		Short: "Show why a request was slow or not whole, as a timeline of its leaf calls",
		Long: `Shows one request by its Retinue-Request-Id. Without one, lists those that the
root keeps: slow ones, those that were not whole or failed, and those sent with
Retinue-Explain: 1.`,
		Example: `  retinue gather explain --admin unix:///tmp/gather.sock
  retinue gather explain 9f3c51d2a0b7e846 --admin unix:///tmp/gather.sock`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listTimelines(cmd, admin, asJSON)
			}
			t, err := timelineOf(cmd.Context(), admin, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), t)
			}
			printTimeline(cmd.OutOrStdout(), *t)
			return nil
		},
	}
	localGather(cmd, &admin)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func listTimelines(cmd *cobra.Command, admin string, asJSON bool) error {
	c, err := dialGather(admin)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
	defer cancel()
	list, err := c.Requests(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), list)
	}
	tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "REQUEST\tTIME\tSTATUS\tTOTAL\tLEAVES\tMERGE\tCOVERAGE\tHEDGES\tPATH")
	for _, t := range list {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%.1f ms\t%.1f\t%.1f\t%s\t%d/%d\t%s %s\n", t.ID, t.Time.Local().Format("15:04:05.000"), t.Status, t.TotalMS, t.LeavesMS, t.MergeMS,
			gather.FormatFraction(t.Coverage), t.Hedges, t.HedgesWon, t.Method, t.Path)
	}
	return tw.Flush()
}

// barWidth is how many columns a timeline's bars have.
const barWidth = 40

// printTimeline draws every leaf call as a bar on the request's time.
func printTimeline(w io.Writer, t gather.Timeline) {
	paint := painter(w)
	fmt.Fprintf(w, "%s  %s %s  status %d", t.ID, t.Method, t.Path, t.Status)
	if t.Cause != "" {
		fmt.Fprintf(w, " (%s)", t.Cause)
	}
	fmt.Fprintf(w, "\n%.1f ms: leaves %.1f, merge %.1f; leaves had until %.0f of %.0f ms; policy %s, coverage %s\n", t.TotalMS, t.LeavesMS, t.MergeMS, t.GatherMS, t.DeadlineMS, t.Policy, gather.FormatFraction(t.Coverage))
	if t.HedgeMS > 0 {
		fmt.Fprintf(w, "hedged after %.1f ms: %d sent, %d won\n", t.HedgeMS, t.Hedges, t.HedgesWon)
	}
	scale := max(t.LeavesMS, 0.001)
	slowest := -1
	for i, c := range t.Calls {
		if c.Won && (slowest < 0 || c.EndMS > t.Calls[slowest].EndMS) {
			slowest = i
		}
	}
	names := 0
	for _, c := range t.Calls {
		names = max(names, len(c.Replica))
	}
	for i, c := range t.Calls {
		from := min(int(c.StartMS/scale*barWidth), barWidth-1)
		to := min(max(int(c.EndMS/scale*barWidth), from+1), barWidth)
		mark, colour := "=", "32"
		switch {
		case c.Won:
		case c.Outcome == "cancelled" || c.Outcome == "lost":
			mark, colour = "-", "2"
		default:
			mark, colour = "x", "31"
		}
		if c.Kind == "hedge" && c.Won {
			colour = "33"
		}
		bar := strings.Repeat(" ", from) + paint(colour, strings.Repeat(mark, to-from)) + strings.Repeat(" ", barWidth-to)
		note := c.Outcome
		if c.Kind != "primary" {
			note = c.Kind + " " + note
		}
		if c.Check != "" {
			note += ", last resort: " + c.Check
		}
		if i == slowest {
			note += "  <- slowest"
		}
		if c.Detail != "" {
			note += ": " + c.Detail
		}
		fmt.Fprintf(w, "%4d  %-*s |%s| %7.1f ms  %s\n", c.Shard, names, c.Replica, bar, c.EndMS-c.StartMS, note)
	}
	if t.Left > 0 {
		fmt.Fprintf(w, "      and %d faster calls\n", t.Left)
	}
	for _, p := range t.Problems {
		if p.State == gather.Missing {
			fmt.Fprintf(w, "%4d  %s\n", p.Shard, paint("31", p.Error))
		}
	}
}

// painter colours text on a terminal, unless NO_COLOR is set.
func painter(w io.Writer) func(code, s string) string {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || !term.IsTerminal(int(f.Fd())) {
		return func(_, s string) string { return s }
	}
	return func(code, s string) string { return "\x1b[" + code + "m" + s + "\x1b[0m" }
}

func newGatherTopCmd() *cobra.Command {
	var admin string
	var every time.Duration
	var once, asJSON bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch a root's leaves: load, latency, failures, who is left alone",
		Example: `  retinue gather top --admin unix:///tmp/gather.sock
  retinue gather top --once --json --admin unix:///tmp/gather.sock | jq '.leaves[].replicas[].state'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialGather(admin)
			if err != nil {
				return err
			}
			if every < 100*time.Millisecond {
				return usageError{hint.Wrap(fmt.Errorf("--every %s", every), "100ms at least")}
			}
			return top(cmd, c, every, once, asJSON)
		},
	}
	localGather(cmd, &admin)
	cmd.Flags().DurationVar(&every, "every", time.Second, "how often to look")
	cmd.Flags().BoolVar(&once, "once", false, "look once")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document for each look")
	return cmd
}

func top(cmd *cobra.Command, c *gather.Client, every time.Duration, once, asJSON bool) error {
	out := cmd.OutOrStdout()
	f, ok := out.(*os.File)
	live := !once && !asJSON && ok && term.IsTerminal(int(f.Fd()))
	var before *gather.StateView
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
		state, err := c.State(ctx)
		cancel()
		if err != nil {
			return err
		}
		if asJSON {
			if err := printJSON(out, state); err != nil {
				return err
			}
		} else {
			if live {
				fmt.Fprint(out, "\x1b[H\x1b[2J")
			}
			printState(out, state, before, every)
		}
		if once {
			return nil
		}
		before = &state
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			return exitError(exitInterrupted)
		}
	}
}

// printState lists the replicas, those that need a look first.
func printState(w io.Writer, s gather.StateView, before *gather.StateView, every time.Duration) {
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY: " + s.Why
	}
	fmt.Fprintf(w, "%s  %s  %d/%d shards served  policy %s  merge %s\n", s.Name, ready, s.Served, s.Shards, s.Policy, s.Merge)
	fmt.Fprintf(w, "%d in flight, p50 %.1f ms, p99 %.1f ms; hedges %d (%.0f tokens left), retries %d; %.1f of %.0f MiB held\n", s.InFlight, s.RequestP50, s.RequestP99,
		s.HedgeBudget.Spent, s.HedgeBudget.Tokens, s.RetryBudget.Spent, float64(s.MemoryBytes)/(1<<20), float64(s.MemoryLimit)/(1<<20))
	if s.Catalog != nil && s.Catalog.Error != "" {
		fmt.Fprintf(w, "the catalog does not answer, the last known leaves serve: %s\n", s.Catalog.Error)
	}
	calls := map[string]uint64{}
	if before != nil {
		for _, l := range before.Leaves {
			for _, r := range l.Replicas {
				calls[fmt.Sprint(l.Shard, r.URL)] = r.Calls
			}
		}
	}
	type row struct {
		shard int
		gather.ReplicaView
		rate string
	}
	var rows []row
	for _, l := range s.Leaves {
		if len(l.Replicas) == 0 {
			rows = append(rows, row{shard: l.Shard, ReplicaView: gather.ReplicaView{Name: "-", State: "MISSING"}, rate: "-"})
		}
		for _, r := range l.Replicas {
			one := row{shard: l.Shard, ReplicaView: r, rate: "-"}
			if r.Check != "" {
				one.State += ", " + r.Check
			}
			if n, ok := calls[fmt.Sprint(l.Shard, r.URL)]; ok && r.Calls >= n {
				one.rate = fmt.Sprintf("%.0f", float64(r.Calls-n)/every.Seconds())
			}
			rows = append(rows, one)
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		if bad := func(r row) bool { return r.State != "in" }; bad(a) != bad(b) {
			if bad(a) {
				return -1
			}
			return 1
		}
		return 0
	})
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nSHARD\tREPLICA\tNODE\tSTATE\tIN FLIGHT\tLATENCY\tCALLS/S\tCALLS\tERRORS\tTOO SLOW")
	for _, r := range rows {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%d\t%.1f ms\t%s\t%d\t%d\t%d\n", r.shard, r.Name, r.Node, r.State, r.InFlight, r.LatencyMS, r.rate, r.Calls, r.Errors, r.Lost)
	}
	tw.Flush()
}

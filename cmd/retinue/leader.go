package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"

	"retinue/elector"
	"retinue/internal/hint"
)

const reachConsul = "CONSUL_HTTP_ADDR must reach Consul and CONSUL_HTTP_TOKEN needs key:read below retinue/elections/; on the local cluster: eval \"$(retinue dev env)\""

// consulPatience is how long a command waits for Consul's answer to one question: it may be cut off, or hang.
const consulPatience = 15 * time.Second

func newLeaderCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leader",
		Short: "See and move leadership, from any machine that reaches Consul",
		Example: `  retinue leader list                            all elections of all applications
  retinue leader show orders/shard-0             one, with its candidates
  retinue leader watch orders                    a line for every change
  retinue leader history orders/shard-0          who led before, and why it ended
  retinue leader resign orders/shard-0           ask the leader to step down
  retinue leader transfer orders/shard-0 4f2a91c0   ... in favour of a candidate`,
	}
	cmd.AddCommand(newLeaderListCmd(), newLeaderShowCmd(), newLeaderWatchCmd(), newLeaderHistoryCmd(), newLeaderResignCmd(), newLeaderTransferCmd())
	return cmd
}

func newLeaderListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list [APP]",
		Short: "List the elections and their leaders",
		Example: `  retinue leader list
  retinue leader list orders --json | jq '.[] | select(.leader == null)'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			standings, err := readStandings(cmd.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), standings)
			}
			if len(standings) == 0 { // Consul does not tell one from the other
				fmt.Fprintln(cmd.ErrOrStderr(), "There is no election, or CONSUL_HTTP_TOKEN lacks key:read below retinue/elections/.")
			}
			return printStandings(cmd.OutOrStdout(), standings)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newLeaderShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show APP/ELECTION",
		Short:   "Show one election: leader, token, candidates",
		Long:    "Shows one election. Exit code 1: nobody leads it.",
		Example: "  retinue leader show orders/shard-0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			standing, err := oneStanding(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), standing)
			} else {
				err = printStanding(cmd.OutOrStdout(), standing)
			}
			if err == nil && standing.Leader == nil {
				return exitError(exitFailed)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newLeaderWatchCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "watch [APP]",
		Short: "Print a line for every change of a leader, until Ctrl-C",
		Example: `  retinue leader watch
  retinue leader watch orders --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := consulClient()
			if err != nil {
				return err
			}
			err = watchStandings(cmd.Context(), client, strings.Join(args, ""), func(s elector.Standing) error {
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %s/%s  %s\n", time.Now().Format(time.TimeOnly), s.App, s.Election, leaderLine(s))
				return err
			})
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	return cmd
}

func newLeaderHistoryCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history APP/ELECTION",
		Short: "List the last leaderships of an election and why they ended",
		Long: `Lists the leaderships that are over, the newest last, and the one that stands.
The record of an election keeps the last ten; that of an application with more
than 64 elections keeps none.`,
		Example: "  retinue leader history orders/shard-0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			standing, err := oneStanding(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), standing.History)
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "TERM\tLEADER\tTOKEN\tSINCE\tFOR\tENDED")
			for _, t := range standing.History {
				fmt.Fprintf(table, "%d\t%s\t%d\t%s\t%s\t%s\n", t.Term, shortID(t.Leader), t.Token, t.Since.Format(time.RFC3339), t.Until.Sub(t.Since).Round(time.Millisecond), t.Reason)
			}
			if l := standing.Leader; l != nil {
				fmt.Fprintf(table, "%d\t%s\t%d\t%s\t%s\t\n", l.Term, shortID(l.ID), l.Token, l.Since.Format(time.RFC3339), since(l.Since))
			}
			return table.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newLeaderResignCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "resign APP/ELECTION",
		Short: "Ask the leader to step down, and wait until another leads",
		Long: `Asks the leading application, through its elector, to step down. It has its
lease to do so; then its leadership ends. The Consul token needs key:write below
retinue/elections/APP/.requests/.`,
		Example: "  retinue leader resign orders/shard-0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return moveLeader(cmd, args[0], "", asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newLeaderTransferCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "transfer APP/ELECTION TO",
		Short: "Ask the leader to step down in favour of a candidate, with no vacancy",
		Long: `Like resign, but one transaction moves the lock to TO: an elector, an allocation
(its first eight characters are enough) or an address, as ` + "`retinue leader show`" + ` lists them.`,
		Example: "  retinue leader transfer orders/shard-0 4f2a91c0",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return moveLeader(cmd, args[0], args[1], asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// moveLeader asks for a step-down and reports what came of it.
func moveLeader(cmd *cobra.Command, name, to string, asJSON bool) error {
	app, election, err := splitElection(name)
	if err != nil {
		return err
	}
	client, err := consulClient()
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), 2*time.Minute, errors.New("no answer within two minutes"))
	defer cancel()
	before, after, err := elector.Ask(ctx, client, app, election, to, host)
	if err != nil {
		if hint.Of(err) == "" {
			err = hint.Wrap(err, reachConsul)
		}
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]elector.Standing{"before": before, "after": after})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s stepped down; %s\n", shortID(before.Leader.ID), leaderLine(after))
	return err
}

func splitElection(name string) (app, election string, err error) {
	app, election, ok := strings.Cut(name, "/")
	if !ok || app == "" || election == "" {
		return "", "", usageError{hint.Wrap(fmt.Errorf("election %q is not APP/ELECTION", name), "`retinue leader list` shows them all")}
	}
	return app, election, nil
}

func oneStanding(ctx context.Context, name string) (elector.Standing, error) {
	app, election, err := splitElection(name)
	if err != nil {
		return elector.Standing{}, err
	}
	standings, err := readStandings(ctx, app)
	if err != nil {
		return elector.Standing{}, err
	}
	for _, s := range standings {
		if s.Election == election {
			return s, nil
		}
	}
	return elector.Standing{}, hint.Wrap(fmt.Errorf("no election %s has ever had a leader", name), "`retinue leader list` shows those that had")
}

// watchStandings reports every election once, and again whenever its leader changes.
func watchStandings(ctx context.Context, client *consul.Client, app string, report func(elector.Standing) error) error {
	known := map[string]uint64{}
	var index uint64
	for {
		standings, next, err := elector.Standings(ctx, client, app, index)
		if err != nil {
			return hint.Wrap(err, reachConsul)
		}
		if next < index { // the servers were restored from a snapshot
			next = 0
		}
		index = max(next, 1)
		for _, s := range standings {
			var token uint64
			if s.Leader != nil {
				token = s.Leader.Token
			}
			name := s.App + "/" + s.Election
			if old, seen := known[name]; seen && old == token {
				continue
			}
			known[name] = token
			if err := report(s); err != nil {
				return err
			}
		}
	}
}

func consulClient() (*consul.Client, error) {
	client, err := consul.NewClient(consul.DefaultConfig())
	if err != nil {
		return nil, fmt.Errorf("configure the Consul client: %w", err)
	}
	return client, nil
}

func readStandings(ctx context.Context, app string) ([]elector.Standing, error) {
	client, err := consulClient()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, consulPatience, fmt.Errorf("no answer within %s", consulPatience))
	defer cancel()
	standings, _, err := elector.Standings(ctx, client, app, 0)
	return standings, hint.Wrap(err, reachConsul)
}

func printStandings(w io.Writer, standings []elector.Standing) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "APP\tELECTION\tLEADER\tADDRESS\tTOKEN\tTERM\tSINCE\tCANDIDATES")
	for _, s := range standings {
		if l := s.Leader; l != nil {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%d\n", s.App, s.Election, shortID(l.ID), l.Address, l.Token, l.Term, since(l.Since), len(s.Candidates))
			continue
		}
		fmt.Fprintf(table, "%s\t%s\tnobody\t\t\t\t\t%d\n", s.App, s.Election, len(s.Candidates))
	}
	return table.Flush()
}

func printStanding(w io.Writer, s elector.Standing) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "election\t%s/%s\n", s.App, s.Election)
	if l := s.Leader; l != nil {
		fmt.Fprintf(table, "leader\t%s\naddress\t%s\nallocation\t%s\ntoken\t%d\nterm\t%d\nsince\t%s (%s)\nlease\t%s\nsession\t%s\n",
			l.ID, l.Address, l.Alloc, l.Token, l.Term, l.Since.Format(time.RFC3339), since(l.Since), l.Lease, s.Session)
	} else {
		fmt.Fprintln(table, "leader\tnobody")
	}
	for _, c := range s.Candidates {
		fmt.Fprintf(table, "candidate\t%s at %s\n", c.ID, c.Elector)
	}
	return table.Flush()
}

func leaderLine(s elector.Standing) string {
	if s.Leader == nil {
		return "nobody leads"
	}
	at := ""
	if s.Leader.Address != "" {
		at = " at " + s.Leader.Address
	}
	return fmt.Sprintf("%s leads%s, token %d", shortID(s.Leader.ID), at, s.Leader.Token)
}

// shortID shortens an allocation ID the way Nomad prints it, and leaves other names alone.
func shortID(id string) string {
	if len(id) == 36 && strings.Count(id, "-") == 4 {
		return id[:8]
	}
	return id
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return time.Since(t).Round(time.Second).String()
}

package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func newQueueScheduleCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedule",
		Short: "What is published at which times",
		Long: `Schedules stand in the coordinator's configuration: schedule "NAME" { cron = "..." }.
The item of a tick is called NAME@TIME; all coordinators of a queue publish it once.`,
		Example: "  retinue queue schedule ls",
	}
	cmd.AddCommand(newQueueScheduleLsCmd())
	return cmd
}

func newQueueScheduleLsCmd() *cobra.Command {
	var q queueTarget
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the schedules, when they come next, and what became of the last time",
		Example: "  retinue queue schedule ls\n  retinue queue schedule ls --json | jq '.[].next'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, queue, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			schedules, err := c.Schedules(cmd.Context(), queue)
			if err != nil {
				return err
			}
			if q.json {
				return printJSON(cmd.OutOrStdout(), schedules)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "SCHEDULE\tCRON\tZONE\tNEXT\tLAST ITEM\tHOW")
			for _, s := range schedules {
				how := s.How
				if s.Error != "" {
					how += ": " + s.Error
				}
				fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Cron, s.Zone, s.Next.Format(time.DateTime), dash(s.LastID), dash(how))
			}
			return tw.Flush()
		},
	}
	q.add(cmd)
	return cmd
}

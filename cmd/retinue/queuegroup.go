package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"retinue/coordinator"
)

func newQueueGroupCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "group",
		Short: "Groups of items: one item follows when all parts are committed",
		Long: `A stage with gather = "QUEUE" sends one item there for each group of its items
(header Group-Id), when as many parts are committed as Group-Size says.`,
		Example: "  retinue queue group ls\n  retinue queue group close album-7 --size 12",
	}
	cmd.AddCommand(newQueueGroupLsCmd(), newQueueGroupCloseCmd())
	return cmd
}

func printGroups(cmd *cobra.Command, views ...coordinator.GroupView) error {
	tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "GROUP\tPARTS\tOF\tGATHERED")
	for _, v := range views {
		size := "?"
		if v.Size > 0 {
			size = fmt.Sprint(v.Size)
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", v.Group, v.Parts, size, dash(v.Sent))
	}
	return tw.Flush()
}

func newQueueGroupLsCmd() *cobra.Command {
	var q queueTarget
	var open bool
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List groups, and how many of their parts are committed",
		Example: "  retinue queue group ls --open     those that still wait for parts",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, queue, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			views, err := c.Groups(cmd.Context(), queue)
			if err != nil {
				return err
			}
			shown := []coordinator.GroupView{}
			for _, v := range views {
				if !open || v.Sent == "" {
					shown = append(shown, v)
				}
			}
			if q.json {
				return printJSON(cmd.OutOrStdout(), shown)
			}
			return printGroups(cmd, shown...)
		},
	}
	q.add(cmd)
	cmd.Flags().BoolVar(&open, "open", false, "only those that wait for parts")
	return cmd
}

func newQueueGroupCloseCmd() *cobra.Command {
	var q queueTarget
	var size int
	cmd := &cobra.Command{
		Use:   "close GROUP",
		Short: "Say how many parts a group has",
		Long: strings.TrimSpace(`
Says how many parts a group has: where no part says it, or where some will never
come, because they are dead or cancelled.`),
		Example: "  retinue queue group close album-7 --size 12",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, queue, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			v, err := c.CloseGroup(cmd.Context(), queue, coordinator.GroupClose{Group: args[0], Size: size})
			if err != nil {
				return err
			}
			if q.json {
				return printJSON(cmd.OutOrStdout(), v)
			}
			return printGroups(cmd, v)
		},
	}
	q.add(cmd)
	cmd.Flags().IntVar(&size, "size", 0, "parts, 1 to 1000")
	return cmd
}

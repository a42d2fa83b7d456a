package main

import (
	"cmp"
	"fmt"
	"regexp"

	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/elector"
	"retinue/gather"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// aclName is what Consul takes for the name of a role, and a dot for services. A space or a quotation mark would end up in a rule.
var aclName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

func newACLCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "acl",
		Short: "The narrow Consul rights that each pattern needs",
		Example: `  retinue acl print elector --job orders   the rules, for review
  retinue acl apply elector --job orders   create or update policy and role`,
	}
	var job string
	var services []string
	// rights are the role of a pattern's helper and its rules.
	rights := func(pattern string) (role, rules string) {
		if pattern == "gather" {
			job = cmp.Or(job, "scatter-gather")
			if len(services) == 0 {
				services = []string{job + "-leaf"}
			}
			return gather.RoleName(job), gather.ACL(services...)
		}
		if pattern == "coordinator" {
			job = cmp.Or(job, "work-queue")
			return coordinator.RoleName(job), coordinator.ACL(job)
		}
		job = cmp.Or(job, "leader-election")
		return elector.RoleName(job), elector.Policy(job)
	}
	// The names become part of rules: one with a quotation mark in it could give rights to more than it says.
	named := func() error {
		for _, name := range append([]string{job}, services...) {
			if name != "" && !aclName.MatchString(name) {
				return usageError{hint.Wrap(fmt.Errorf("name %q", name), "Consul takes letters, digits, - and _ in the name of a role, and . in that of a service")}
			}
		}
		return nil
	}
	patterns := []string{"elector", "gather", "coordinator"}
	print := &cobra.Command{
		Use:   "print PATTERN",
		Short: "Print the ACL rules of a pattern's helper",
		Example: `  retinue acl print elector --job orders | consul acl policy create -name retinue-elector-orders -rules -
  retinue acl print gather --job search --service search-leaf
  retinue acl print coordinator --job thumbs`,
		ValidArgs: patterns,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := named(); err != nil {
				return err
			}
			_, rules := rights(args[0])
			fmt.Fprint(cmd.OutOrStdout(), rules)
			return nil
		},
	}
	apply := &cobra.Command{
		Use:   "apply PATTERN",
		Short: "Create or update the policy and the role of a pattern's helper",
		Long: `Writes the policy and the role that Nomad's binding rule
"retinue-${value.nomad_task}-${value.nomad_job_id}" binds to the helper's task.
Reads CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the other variables of Consul's
own command line; the token needs acl = "write".`,
		Example: `  retinue acl apply elector --job orders
  retinue acl apply gather --job search`,
		ValidArgs: patterns,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := named(); err != nil {
				return err
			}
			client, err := consulClient()
			if err != nil {
				return err
			}
			role, rules := rights(args[0])
			if err := consulkit.Allow(client, role, "Retinue: what the "+args[0]+" of job "+job+" may do", rules); err != nil {
				return hint.Wrap(err, "CONSUL_HTTP_ADDR must reach Consul and CONSUL_HTTP_TOKEN needs acl = \"write\"; `retinue doctor` checks both")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "policy and role %s are in force\n", role)
			return nil
		},
	}
	for _, sub := range []*cobra.Command{print, apply} {
		sub.Flags().StringVar(&job, "job", "", "ID of the Nomad job that the helper runs in (default: that of the pattern's jobspec)")
		sub.Flags().StringSliceVar(&services, "service", nil, "Consul service that a root reads, repeat (default: JOB-leaf)")
		cmd.AddCommand(sub)
	}
	return cmd
}

package main

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/coordinator/scale"
	"retinue/elector"
	"retinue/gather"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// aclName is what Consul takes for the name of a role, and a dot for services. A space or a quotation mark would end up in a rule.
var aclName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// rights are what the helper of a job may do.
type rights struct {
	role, consul string // a Consul role, and the rules of its policy
	policy       string // the same name, at Nomad
	nomad        string // "": nothing
}

// aclFlags say whose rights are meant.
type aclFlags struct {
	job, namespace string
	group          string
	services       []string
	nomad          bool
}

// of returns the rights of a pattern's helper.
func (f *aclFlags) of(pattern string) rights {
	switch pattern {
	case "gather":
		f.job = cmp.Or(f.job, "scatter-gather")
		if len(f.services) == 0 {
			f.services = []string{f.job + "-leaf"}
		}
		return rights{role: gather.RoleName(f.job), consul: gather.ACL(f.services...)}
	case "coordinator":
		f.job = cmp.Or(f.job, "work-queue")
		return rights{role: coordinator.RoleName(f.job), consul: coordinator.ACL(f.job), policy: coordinator.RoleName(f.job), nomad: coordinator.NomadACL(f.namespace)}
	case "broker":
		f.job = cmp.Or(f.job, "work-queue")
		return rights{role: coordinator.BrokerRole(f.job), consul: coordinator.BrokerACL(f.job)}
	case "scaler":
		f.job = cmp.Or(f.job, "work-queue")
		return rights{role: scale.RoleName(f.job), consul: scale.ACL(f.job), policy: scale.RoleName(f.job), nomad: scale.NomadACL(f.namespace)}
	}
	f.job = cmp.Or(f.job, "leader-election")
	return rights{role: elector.RoleName(f.job), consul: elector.Policy(f.job)}
}

var aclPatterns = []string{"elector", "gather", "coordinator", "broker", "scaler"}

func newACLCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "acl",
		Short: "The narrow Consul and Nomad rights that each pattern needs",
		Example: `  retinue acl print elector --job orders   the rules, for review
  retinue acl apply elector --job orders   create or update policy and role`,
	}
	for _, sub := range []*cobra.Command{newACLPrintCmd(), newACLApplyCmd()} {
		cmd.AddCommand(sub)
	}
	return cmd
}

func (f *aclFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.job, "job", "", "ID of the Nomad job that the helper runs in (default: that of the pattern's jobspec)")
	cmd.Flags().StringSliceVar(&f.services, "service", nil, "Consul service that a root reads, repeat (default: JOB-leaf)")
	cmd.Flags().BoolVar(&f.nomad, "nomad", false, "the rights at Nomad, not those at Consul")
	cmd.Flags().StringVar(&f.group, "group", "", "group of the helper's task, which --nomad gives the rights to (default: that of the pattern's jobspec)")
	cmd.Flags().StringVar(&f.namespace, "namespace", "default", "Nomad namespace of the job")
}

// named refuses what would not be a name. The names become part of rules: one with a quotation mark in it could give rights to more than it says.
func (f *aclFlags) named() error {
	for _, name := range append([]string{f.job, f.namespace}, f.services...) {
		if name != "" && !aclName.MatchString(name) {
			return usageError{hint.Wrap(fmt.Errorf("name %q", name), "Consul takes letters, digits, - and _ in the name of a role, and . in that of a service")}
		}
	}
	return nil
}

// errNoNomad refuses --nomad for a helper that asks nothing of Nomad.
func errNoNomad(pattern string) error {
	return usageError{hint.Wrap(fmt.Errorf("the %s needs no rights at Nomad", pattern), "leave --nomad out for its rights at Consul")}
}

func newACLPrintCmd() *cobra.Command {
	var f aclFlags
	cmd := &cobra.Command{
		Use:   "print PATTERN",
		Short: "Print the ACL rules of a pattern's helper",
		Example: `  retinue acl print elector --job orders | consul acl policy create -name retinue-elector-orders -rules -
  retinue acl print gather --job search --service search-leaf
  retinue acl print coordinator --job thumbs
  retinue acl print scaler --job thumbs --nomad | nomad acl policy apply -job thumbs -group scaler -task scaler retinue-scaler-thumbs -`,
		ValidArgs: aclPatterns,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.named(); err != nil {
				return err
			}
			r := f.of(args[0])
			rules := r.consul
			if f.nomad {
				if rules = r.nomad; rules == "" {
					return errNoNomad(args[0])
				}
			}
			fmt.Fprint(cmd.OutOrStdout(), rules)
			return nil
		},
	}
	f.add(cmd)
	return cmd
}

func newACLApplyCmd() *cobra.Command {
	var f aclFlags
	cmd := &cobra.Command{
		Use:   "apply PATTERN",
		Short: "Create or update the policy and the role of a pattern's helper",
		Long: `Writes the policy and the role that Nomad's binding rule
"retinue-${value.nomad_task}-${value.nomad_job_id}" binds to the helper's task.
Reads CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the other variables of Consul's
own command line; the token needs acl = "write".

With --nomad: writes the Nomad policy of the task's workload identity. Reads
NOMAD_ADDR, NOMAD_TOKEN and the other variables of Nomad's command line; the
token must be a management token.`,
		Example: `  retinue acl apply elector --job orders
  retinue acl apply gather --job search
  retinue acl apply scaler --job thumbs && retinue acl apply scaler --job thumbs --nomad`,
		ValidArgs: aclPatterns,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.named(); err != nil {
				return err
			}
			r := f.of(args[0])
			about := "Retinue: what the " + args[0] + " of job " + f.job + " may do"
			if f.nomad {
				if r.nomad == "" {
					return errNoNomad(args[0])
				}
				if err := applyNomad(args[0], r, f, about); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Nomad policy %s is in force for task %s of job %s\n", r.policy, args[0], f.job)
				return nil
			}
			client, err := consulClient()
			if err != nil {
				return err
			}
			if err := consulkit.Allow(client, r.role, about, r.consul); err != nil {
				return hint.Wrap(err, "CONSUL_HTTP_ADDR must reach Consul and CONSUL_HTTP_TOKEN needs acl = \"write\"; `retinue doctor` checks both")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "policy and role %s are in force\n", r.role)
			return nil
		},
	}
	f.add(cmd)
	return cmd
}

// applyNomad gives the policy to one task of one job: the task has the helper's name, as the jobspecs have it.
func applyNomad(task string, r rights, f aclFlags, about string) error {
	client, err := nomad.NewClient(nomad.DefaultConfig())
	if err != nil {
		return fmt.Errorf("configure the Nomad client: %w", err)
	}
	group := map[string]string{"coordinator": "worker"}[task] // as the jobspecs have it; that of a scaler is named like its task
	policy := &nomad.ACLPolicy{Name: r.policy, Description: about, Rules: r.nomad, JobACL: &nomad.JobACL{Namespace: f.namespace, JobID: f.job, Group: cmp.Or(f.group, group, task), Task: task}}
	if _, err := client.ACLPolicies().Upsert(policy, nil); err != nil {
		if strings.Contains(err.Error(), "ACL support disabled") {
			return hint.Wrap(err, "this cluster has no ACLs: the task needs no policy")
		}
		return hint.Wrap(fmt.Errorf("write the Nomad policy %s: %w", r.policy, err), "NOMAD_ADDR must reach Nomad and NOMAD_TOKEN be a management token; `retinue doctor` checks both")
	}
	return nil
}

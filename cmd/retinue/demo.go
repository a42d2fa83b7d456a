package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"retinue/elector"
	"retinue/gather"
	"retinue/internal/demo"
	"retinue/internal/demo/leaderelection"
	"retinue/internal/demo/scattergather"
	"retinue/internal/devcluster"
	"retinue/internal/nomadkit"
)

func newDemoCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo PATTERN",
		Short: "Watch a pattern work and fail over on the local cluster",
		Long: `Brings the local cluster up where none runs, plays a pattern on it with
real input and real faults, and checks the promises of the pattern's README.
Exit code 1: a promise did not hold.`,
		Example: `  retinue demo leader-election          about a minute
  retinue demo leader-election --json   the same for programs
  retinue demo scatter-gather           a sharded search engine under faults
  retinue demo work-queue               files through a pipeline that is killed all the time
  retinue demo lifecycle                a server that moves with its state, under load`,
	}
	cmd.AddCommand(newDemoLeaderElectionCmd(), newDemoScatterGatherCmd(), newDemoWorkQueueCmd(), newDemoLifecycleCmd())
	return cmd
}

func newDemoLeaderElectionCmd() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "leader-election",
		Short: "Three replicas under load: hand-over, kill -9, SIGSTOP, loss of a node",
		Example: `  retinue demo leader-election
  retinue demo leader-election --json | jq .measured`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demonstrate(cmd, "leader-election", dir, asJSON, playLeaderElection)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON, and the timeline to standard error")
	return cmd
}

func newDemoScatterGatherCmd() *cobra.Command {
	var dir, corpus string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "scatter-gather",
		Short: "A search engine on 16 shards x 2 replicas under load: a frozen replica, loss of a node",
		Long: `Indexes a corpus of text on 16 shards with two replicas each, merges their
answers in Python, and compares every answer with that of one index over the
whole corpus, while a replica is frozen and a node is lost; with hedging and
without. It builds the leaf from gather/example, so it runs in a checkout.`,
		Example: `  retinue demo scatter-gather
  retinue demo scatter-gather --corpus ~/notes --json | jq .measured`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demonstrate(cmd, "scatter-gather", dir, asJSON, func(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline) error {
				return playScatterGather(ctx, cluster, timeline, corpus)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().StringVar(&corpus, "corpus", "", "folder of text files, .gz too (default: manual pages, else other documentation of this machine)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON, and the timeline to standard error")
	return cmd
}

// demonstrate brings the cluster up, plays a pattern on it and reports.
func demonstrate(cmd *cobra.Command, pattern, dir string, asJSON bool, play func(context.Context, *devcluster.Cluster, *demo.Timeline) error) error {
	var people io.Writer = cmd.OutOrStdout()
	if asJSON {
		people = cmd.ErrOrStderr()
	}
	steps := newStepPrinter(people)
	cfg := devcluster.Config{Dir: dir}
	if known, err := devcluster.Open(dir); err != nil || !known.Ready() {
		// A cluster of the demonstration's own can lose a node, and makes room for agents that run already.
		cfg.Clients, cfg.PortOffset = 3, devcluster.AutoPorts
	}
	cluster, err := devcluster.Up(cmd.Context(), cfg, steps.print)
	steps.end()
	if err != nil {
		return err
	}
	fmt.Fprintln(people)
	timeline := demo.NewTimeline(people, pattern)
	timeline.Cluster(cluster.Describe())
	timeline.Event("cluster ready: %s", cluster.Describe())
	if err := play(cmd.Context(), cluster, timeline); err != nil {
		return fmt.Errorf("the demonstration stopped: %w", err)
	}
	report := timeline.Finish()
	if asJSON {
		if err := printJSON(cmd.OutOrStdout(), report); err != nil {
			return err
		}
	}
	fmt.Fprintf(people, "\nThe job still runs, for a look around. `make clean-demo` or `retinue dev down` removes it all.\n")
	if !report.OK {
		return exitError(exitFailed)
	}
	return nil
}

func playLeaderElection(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline) error {
	nomadClient, err := cluster.Nomad()
	if err != nil {
		return err
	}
	consulClient, err := cluster.Consul()
	if err != nil {
		return err
	}
	if cluster.Plan().ACL {
		if err := elector.Allow(consulClient, "leader-election"); err != nil {
			return err
		}
	}
	vars := jobVars(cluster)
	lease, err := time.ParseDuration(cluster.JobVars()["lease"])
	if err != nil {
		return fmt.Errorf("lease of the cluster's jobs: %w", err)
	}
	d := leaderelection.Demo{
		Nomad:     nomadClient,
		Consul:    consulClient,
		Vars:      vars,
		StoreHost: cluster.TaskGateway(),
		ConsulUI:  cluster.ConsulAddr(),
		NomadUI:   cluster.NomadAddr(),
		Lease:     lease,
		Timeline:  timeline,
	}
	if clients(cluster) > 1 {
		d.LoseNode, d.ReturnNode = cluster.LoseNode, cluster.ReturnNode
	}
	return d.Run(ctx)
}

func playScatterGather(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline, corpus string) error {
	nomadClient, err := cluster.Nomad()
	if err != nil {
		return err
	}
	consulClient, err := cluster.Consul()
	if err != nil {
		return err
	}
	if cluster.Plan().ACL {
		for _, job := range []string{scattergather.Job, scattergather.UnhedgedJob} {
			if err := gather.Allow(consulClient, job, scattergather.Job+"-leaf"); err != nil {
				return err
			}
		}
	}
	vars := jobVars(cluster)
	delete(vars, "lease") // of leader election alone
	d := scattergather.Demo{
		Nomad:    nomadClient,
		Consul:   consulClient,
		Vars:     vars,
		Host:     cluster.TaskGateway(),
		Corpus:   corpus,
		ConsulUI: cluster.ConsulAddr(),
		NomadUI:  cluster.NomadAddr(),
		Timeline: timeline,
	}
	if clients(cluster) > 2 { // two hold the replicas and the roots when the third is lost
		d.LoseNode, d.ReturnNode = cluster.LoseNode, cluster.ReturnNode
	}
	return d.Run(ctx)
}

// jobVars are the jobspec variables that a cluster needs, as HCL expressions.
func jobVars(cluster *devcluster.Cluster) map[string]string {
	vars := map[string]string{}
	for name, value := range cluster.JobVars() {
		vars[name] = nomadkit.Literal(value)
	}
	return vars
}

func clients(cluster *devcluster.Cluster) int {
	agents := slices.DeleteFunc(cluster.Agents(), func(a devcluster.Agent) bool { return a.Kind != devcluster.NomadClient })
	return len(agents)
}

package main

import (
	"context"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"retinue/internal/demo"
	"retinue/internal/demo/lifecycle"
	"retinue/internal/devcluster"
	"retinue/internal/hint"
	"retinue/internal/nomadkit"
)

func newDemoLifecycleCmd() *cobra.Command {
	var dir, driver string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lifecycle",
		Short: "A counter in a server's memory, under load: pause, kill -9 of the agent, node drain, preemption",
		Long: `Users count in a server that keeps its counter in its memory alone, while it is
saved, paused, left by its Nomad agent (kill -9), drained from its node and
preempted by a more important job. Every time the lifecycle driver runs its hooks
and moves its state. Exit code 1: a request failed, an increment was lost, or a
hook did not run. It needs the driver: ` + "`make plugin`.",
		Example: `  retinue demo lifecycle
  retinue demo lifecycle --driver raw_exec
  retinue demo lifecycle --json | jq .measured`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demonstrate(cmd, "lifecycle", dir, asJSON, func(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline) error {
				return playLifecycle(ctx, cluster, timeline, driver)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().StringVar(&driver, "driver", "", "driver of the server: docker, exec or raw_exec (default: docker where there is an engine, else exec, and raw_exec without root)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON, and the timeline to standard error")
	return cmd
}

func playLifecycle(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline, driver string) error {
	if !cluster.Plan().DriverPlugin {
		return hint.Wrap(fmt.Errorf("the cluster runs without the lifecycle driver"), "`make plugin` builds it beside retinue; then `retinue dev down`, and try again")
	}
	if n := clients(cluster); n < 2 {
		return hint.Wrap(fmt.Errorf("the cluster has %d client node", n), "the server has to move: `retinue dev down`, and `retinue dev up --clients 3`")
	}
	nomadClient, err := cluster.Nomad()
	if err != nil {
		return err
	}
	consulClient, err := cluster.Consul()
	if err != nil {
		return err
	}
	if driver == "" {
		driver = cluster.Plan().Driver()
	}
	vars := map[string]string{
		"driver": nomadkit.Literal(driver), "retinue_command": nomadkit.Literal(cluster.TaskCommand(driver)), "retinue_image": jobVars(cluster)["retinue_image"],
		// An agent that is killed within a minute of a start in bridge mode has not written down what network it gave, and gives the allocation up.
		"network_mode": nomadkit.Literal(devcluster.NetworkHost),
	}
	agent := func(node string) (devcluster.Agent, error) { return cluster.Agent("nomad-" + node) }
	kill := func(_ context.Context, node string) error {
		a, err := agent(node)
		if err != nil {
			return err
		}
		return a.Kill(syscall.SIGKILL)
	}
	start := func(ctx context.Context, node string) error {
		a, err := agent(node)
		if err != nil {
			return err
		}
		return a.Restart(ctx)
	}
	return lifecycle.Demo{Nomad: nomadClient, Consul: consulClient, Vars: vars, NomadUI: cluster.NomadAddr(), KillAgent: kill, StartAgent: start, Timeline: timeline}.Run(ctx)
}

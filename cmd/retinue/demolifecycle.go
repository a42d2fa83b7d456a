package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"retinue/internal/demo"
	"retinue/internal/demo/lifecycle"
	"retinue/internal/devcluster"
	"retinue/internal/hint"
)

func newDemoLifecycleCmd() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lifecycle",
		Short: "A counter in a server's memory, under load: pause, node drain, preemption",
		Long: `Users count in a server that keeps its counter in its memory alone, while it is
saved, paused, drained from its node and preempted by a more important job. Every
time the lifecycle driver runs its hooks and moves its state. Exit code 1: a
request failed, or an increment was lost. It needs the driver: ` + "`make plugin`.",
		Example: `  retinue demo lifecycle
  retinue demo lifecycle --json | jq .measured`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demonstrate(cmd, "lifecycle", dir, asJSON, playLifecycle)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON, and the timeline to standard error")
	return cmd
}

func playLifecycle(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline) error {
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
	vars := map[string]string{}
	for name, value := range jobVars(cluster) {
		switch name {
		case "driver", "network_mode", "retinue_image", "retinue_command":
			vars[name] = value
		}
	}
	return lifecycle.Demo{Nomad: nomadClient, Consul: consulClient, Vars: vars, NomadUI: cluster.NomadAddr(), Timeline: timeline}.Run(ctx)
}

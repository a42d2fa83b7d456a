package main

import (
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"retinue"
	"retinue/internal/lifecycle/shim"
)

func newInitCmd() *cobra.Command {
	var killTimeout time.Duration
	cmd := &cobra.Command{
		Use:   "init [flags] -- COMMAND [ARG...]",
		Short: "Run a task's lifecycle from inside its container, as process 1",
		Long: `For clusters that forbid driver plugins. Starts the command, reaps orphans,
forwards signals, and runs the same hooks as the lifecycle driver, from the
task's meta (retinue_lifecycle_HOOK_ATTRIBUTE). Nomad's kill_timeout stays the
limit of a stop: the hooks share it with the application, and 2.5 seconds of it
are kept back. The exit code is the command's, or 128 and the signal that ended it.`,
		Example: `  retinue init -- /usr/local/bin/server --port 8080
  retinue init --kill-timeout 30s -- ./server      the same 30s as the task's kill_timeout`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			log := hclog.New(&hclog.LoggerOptions{Name: "retinue", Output: os.Stderr, JSONFormat: true})
			code, err := shim.Run(shim.Options{Command: args, Environ: os.Environ(), KillTimeout: killTimeout, Version: retinue.Version, Log: log})
			if err == nil && code != 0 {
				return exitError(code)
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&killTimeout, "kill-timeout", 5*time.Second, "the task's kill_timeout")
	return cmd
}

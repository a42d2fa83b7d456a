package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// newPauseCmd is the program of the pause image: it holds the network namespace
// of a bridge-mode allocation and does nothing, until it is told to end.
func newPauseCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "pause",
		Short:   "Wait for SIGTERM; the program of the pause image",
		Example: "  retinue pause",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done() // SIGINT or SIGTERM, see run
			return nil
		},
	}
}

// newRemoveContentCmd runs in a container of `retinue dev down`: an ordinary
// user cannot remove the folders that tasks made there as root.
func newRemoveContentCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "remove-content DIR",
		Short:   "Remove everything in a folder",
		Example: "  retinue remove-content /tmp/dev/c1",
		Hidden:  true,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			entries, err := os.ReadDir(args[0])
			if err != nil {
				return err
			}
			for _, e := range entries {
				if err := os.RemoveAll(filepath.Join(args[0], e.Name())); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

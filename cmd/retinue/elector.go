package main

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"retinue/elector/command"
)

// newElectorCmd is the elector's command line. What serves, and lives as long as its allocation, becomes the small program.
func newElectorCmd() *cobra.Command {
	cmd := command.New()
	for _, c := range append(cmd.Commands(), cmd) {
		if name := c.Name(); name == "elector" || name == "run" {
			c.PreRun = func(*cobra.Command, []string) { become("retinue-elector", os.Args) }
		}
	}
	return cmd
}

// become replaces this process by a program of the same folder, with the arguments behind the verb. It returns where there is no
// such program, or it cannot be run: then this one does the same, with more memory.
func become(program string, args []string) {
	self, err := os.Executable()
	if err != nil || len(args) < 2 {
		return
	}
	path := filepath.Join(filepath.Dir(self), program)
	_ = syscall.Exec(path, append([]string{program}, args[2:]...), os.Environ())
}

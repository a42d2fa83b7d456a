// Command retinue-elector is `retinue elector` and nothing else. It is a
// program of its own because one runs beside every replica of an application,
// and the pages of a program that has everything count there. `retinue elector`
// becomes this program where both are in one folder.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"retinue/elector/command"
	"retinue/internal/cli"
)

func main() { os.Exit(cli.Main(newCmd(os.Args), os.Args[1:], os.Stdout, os.Stderr)) }

func newCmd(args []string) *cobra.Command {
	cmd := command.New()
	cmd.Use = "retinue-elector"
	if args[0] == "retinue elector" { // who called it so reads of it so
		cmd.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: args[0]}
	}
	return cmd
}

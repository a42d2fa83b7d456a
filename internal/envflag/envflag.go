// Package envflag gives every flag of a command line an environment variable
// as its twin: `retinue elector --lease` is RETINUE_ELECTOR_LEASE. What stands
// on the command line counts more.
package envflag

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"retinue/internal/hint"
)

// Name is the environment twin of a flag.
func Name(cmd *cobra.Command, flag string) string {
	return strings.ToUpper(strings.NewReplacer(" ", "_", "-", "_").Replace(cmd.CommandPath() + "_" + flag))
}

// Apply sets every flag that the command line left alone from its environment twin. Its error is one of use.
func Apply(cmd *cobra.Command, lookup func(string) (string, bool)) error {
	var bad error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" || bad != nil {
			return
		}
		name := Name(cmd, f.Name)
		value, ok := lookup(name)
		if !ok || value == "" {
			return
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			bad = hint.Wrap(fmt.Errorf("environment variable %s=%q: %w", name, value, err), "unset it, or give it a value that --%s takes", f.Name)
		}
	})
	return bad
}

// Show adds the environment twin to the description of each flag.
func Show(cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			f.Usage += " [$" + Name(cmd, f.Name) + "]"
		}
	})
}

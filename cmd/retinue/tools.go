package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"retinue/internal/devcluster"
	"retinue/internal/toolchain"
)

func newToolsCmd() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "tools",
		Short: "Find nomad and consul, or build the pinned versions once",
		Long: `Says which nomad and consul the dev cluster runs: those on PATH when they are
new enough, otherwise pinned versions, which are built into the user's cache
folder when they are not there yet. The build takes minutes, once.`,
		Example: `  retinue tools
  retinue tools --json | jq -r '.[].path'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			steps := newStepPrinter(cmd.ErrOrStderr())
			defer steps.end()
			found := []toolJSON{}
			for _, t := range toolchain.Tools() {
				f, err := toolchain.Ensure(cmd.Context(), t, func(p toolchain.Progress) {
					steps.print(devcluster.Step{Text: p.String(), Progress: true, After: p.Elapsed})
				})
				if err != nil {
					return err
				}
				found = append(found, toolJSON{Name: t.String(), Version: f.Version, Path: f.Path, Built: f.Built, Note: f.Note})
			}
			steps.end()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), found)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, f := range found {
				from := "from PATH"
				if f.Built {
					from = "built from the pinned version"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Name, f.Version, f.Path, from)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, f := range found {
				if f.Note != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "note: %s\n", f.Note)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

type toolJSON struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Path    string `json:"path"`
	Built   bool   `json:"built"`
	Note    string `json:"note,omitempty"`
}

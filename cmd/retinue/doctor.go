package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"retinue/internal/devcluster"
	"retinue/internal/doctor"
)

func newDoctorCmd() *cobra.Command {
	dir, asJSON := "", false
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine and the Nomad and Consul it reaches",
		Long: `Checks what retinue needs, a line for each, with a hint where something is
missing. The agents it asks are those of NOMAD_ADDR and CONSUL_HTTP_ADDR, else
the dev cluster's, else those at the standard addresses.

Exit codes: 0 when nothing failed (there may be warnings), 1 when something did.`,
		Example: `  retinue doctor
  retinue doctor --json | jq '.results[] | select(.level != "ok")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				dir = devcluster.DefaultDir()
			}
			target := doctorTarget(dir)
			checks := append(doctor.Machine(dir), target.ConsulChecks()...)
			checks = append(checks, target.NomadChecks()...)
			var report doctor.Report
			if asJSON {
				report = doctor.Run(cmd.Context(), checks, nil)
				if err := printJSON(cmd.OutOrStdout(), report); err != nil {
					return err
				}
			} else {
				p := doctor.NewPrinter(cmd.OutOrStdout(), inColour(cmd.OutOrStdout()))
				report = doctor.Run(cmd.Context(), checks, p.Print)
				p.Sum()
			}
			if err := cmd.Context().Err(); err != nil {
				return exitError(exitInterrupted)
			}
			if !report.OK {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// doctorTarget chooses whom to ask: what the environment names, else the dev
// cluster, else the standard addresses.
func doctorTarget(dir string) doctor.Target {
	if t, ok := doctor.EnvTarget(); ok {
		return t
	}
	t := doctor.StandardTarget()
	c, err := devcluster.Open(dir)
	if err != nil {
		return t
	}
	t.Consul.Address, t.Nomad.Address = c.ConsulAddr(), c.NomadAddr()
	for _, v := range c.Env() {
		switch v.Name {
		case "CONSUL_HTTP_TOKEN":
			t.Consul.Token = v.Value
		case "NOMAD_TOKEN":
			t.Nomad.SecretID = v.Value
		}
	}
	t.Source, t.Chosen = "the dev cluster in "+c.Dir(), true
	return t
}

// inColour says whether to colour what is written to w.
func inColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"retinue/coordinator/scale"
	"retinue/internal/hint"
)

func newQueueScaleCmd() *cobra.Command {
	def := os.Getenv("RETINUE_SCALER_ADDR")
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); def == "" && dir != "" {
		def = "unix://" + dir + "/tmp/scaler.sock"
	}
	var addr string
	var why, asJSON bool
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "Show how many workers there are and should be; --why: what was seen, computed, limited and done",
		Long:  "Asks a scaler, of one queue or of several. One that does not lead shows what the leading one says. Exit code 1: nobody leads, or something keeps the scaler from working.",
		Example: `  retinue queue scale
  retinue queue scale --why
  retinue queue scale --json | jq '.[].decision.limits'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if addr == "" {
				return usageError{hint.Wrap(errors.New("no scaler named"), "give --addr unix:///path/scaler.sock, or set RETINUE_SCALER_ADDR; in the job it is the task scaler")}
			}
			all, err := scale.Ask(cmd.Context(), addr)
			if err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), all); err != nil {
					return err
				}
			}
			good := true
			for i, st := range all {
				good = good && st.Leader != "" && st.Trouble == ""
				if asJSON {
					continue
				}
				if i > 0 && why {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				printScale(cmd.OutOrStdout(), st, why)
			}
			if !good {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&addr, "addr", def, "the scaler's address; default $RETINUE_SCALER_ADDR, or the socket in the alloc dir")
	cmd.Flags().BoolVar(&why, "why", false, "explain it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printScale(w io.Writer, st scale.Status, why bool) {
	d := st.Decision
	switch {
	case d == nil:
		fmt.Fprintf(w, "%s  group %s: no decision yet\n", st.Queue, st.Group)
	case d.Change():
		fmt.Fprintf(w, "%s  group %s: %d, should be %d; %d run\n", st.Queue, st.Group, d.Seen.Count, d.Count, d.Seen.Running)
	default:
		fmt.Fprintf(w, "%s  group %s: %d; %d run\n", st.Queue, st.Group, d.Count, d.Seen.Running)
	}
	switch {
	case why:
		fmt.Fprint(w, st.Explain(time.Now()))
	case st.Trouble != "":
		fmt.Fprintf(w, "trouble: %s\n", st.Trouble)
	}
}

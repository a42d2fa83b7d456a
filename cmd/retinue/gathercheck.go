package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"retinue/gather"
	"retinue/internal/hint"
)

func newGatherCheckCmd() *cobra.Command {
	var leaf, merge, format, contentType string
	var samples []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Try whether your leaf and your merge keep the contract",
		Long: `Sends a leaf and a merge what a root would send them, the unpleasant cases too,
and says what they did. The merge gets the leaf's answer as its sample; without a
leaf those of --sample, or simple JSON objects. Exit code 1: the contract is broken.`,
		Example: `  retinue gather check --leaf 'http://127.0.0.1:9001/q?q=tail' --merge http://127.0.0.1:9000/
  retinue gather check --merge unix:///tmp/merge.sock --sample shard0.json --sample shard1.json --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if leaf == "" && merge == "" {
				return usageError{hint.Wrap(errors.New("nothing to check"), "give --leaf URL, --merge URL, or both")}
			}
			var bodies [][]byte
			for _, path := range samples {
				b, err := os.ReadFile(path)
				if err != nil {
					return usageError{hint.Wrap(fmt.Errorf("read the sample: %w", err), "--sample names a file with a leaf's answer")}
				}
				bodies = append(bodies, b)
			}
			var all []gather.Finding
			if leaf != "" {
				list, sample, kind := gather.CheckLeaf(cmd.Context(), leaf)
				all = append(all, list...)
				if len(bodies) == 0 && len(sample) > 0 {
					bodies, contentType = [][]byte{sample}, kind
				}
			}
			if merge != "" {
				list, err := gather.CheckMerge(cmd.Context(), merge, format, bodies, contentType)
				if err != nil {
					return usageError{err}
				}
				all = append(all, list...)
			}
			return reportFindings(cmd.OutOrStdout(), all, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&leaf, "leaf", "", "URL of a request that the leaf answers, with path and query")
	flags.StringVar(&merge, "merge", "", "the merge container: http://127.0.0.1:PORT/ or unix:///path")
	flags.StringVar(&format, "merge-format", string(gather.FormatNDJSON), "how it gets the answers: ndjson, multipart or batch")
	flags.StringArrayVar(&samples, "sample", nil, "a file with one leaf's answer, repeat")
	flags.StringVar(&contentType, "sample-type", "application/json", "the Content-Type of the samples")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func reportFindings(w io.Writer, all []gather.Finding, asJSON bool) error {
	failed := 0
	for _, f := range all {
		if f.Result == gather.CheckFail {
			failed++
		}
	}
	if asJSON {
		if err := printJSON(w, all); err != nil {
			return err
		}
	} else {
		paint := painter(w)
		colours := map[string]string{gather.CheckPass: "32", gather.CheckFail: "31", gather.CheckInfo: "33"}
		for _, f := range all {
			fmt.Fprintf(w, "%s  %-5s  %-20s %s\n", paint(colours[f.Result], f.Result), f.Subject, f.Check, f.Detail)
			if f.Advice != "" {
				fmt.Fprintf(w, "      %s\n", f.Advice)
			}
		}
		fmt.Fprintf(w, "%d checks, %d failed\n", len(all), failed)
	}
	if failed > 0 {
		return exitError(exitFailed)
	}
	return nil
}

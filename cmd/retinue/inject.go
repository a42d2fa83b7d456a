package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"retinue/compose"
	"retinue/internal/hint"
	"retinue/jobspecs"
)

// fragments are the patterns that go around a job, with the prefix of their variables.
var fragments = []struct{ pattern, prefix string }{
	{"leader-election", "retinue_elector"},
	{"scatter-gather", "retinue_gather"},
	{"work-queue", "retinue_queue"},
	{"lifecycle", "retinue_lifecycle"},
}

func newInjectCmd() *cobra.Command {
	var to compose.Target
	var write, asJSON bool
	cmd := &cobra.Command{
		Use:   "inject PATTERN [FILE]",
		Short: "Put a pattern around your own job specification",
		Long: `Reads a job specification in HCL, from FILE or from standard input, and writes it
with the pattern's tasks around the main task. What is added stands between two
comments; not a byte of your own text changes. Run it again after an update of
retinue: the old part is replaced. ` + "`retinue uninject`" + ` takes it away.

The main task finds its helper in its environment. Settings are variables whose
names begin with retinue_: give them with -var or -var-file to ` + "`nomad job run`" + `.

Patterns:
` + listFragments(),
		Example: `  retinue inject leader-election app.nomad.hcl > app.retinue.nomad.hcl
  nomad job run -var retinue_elector_lease=5s app.retinue.nomad.hcl
  retinue inject leader-election --write app.nomad.hcl       in the file itself
  retinue inject scatter-gather --group search --task merge - < search.nomad.hcl`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := fragment(args[0])
			if err != nil {
				return usageError{err}
			}
			src, name, err := readJob(cmd.InOrStdin(), args[1:], write)
			if err != nil {
				return err
			}
			out, report, err := compose.Inject(src, name, f, to)
			if err != nil {
				return usageError{err}
			}
			if err := writeJob(cmd.OutOrStdout(), name, out, write); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.ErrOrStderr(), report)
			}
			printReport(cmd.ErrOrStderr(), report)
			return nil
		},
	}
	cmd.Flags().StringVar(&to.Group, "group", "", "the group, if the job has several")
	cmd.Flags().StringVar(&to.Task, "task", "", "the main task, if it is neither the group's leader nor its only task")
	cmd.Flags().BoolVarP(&write, "write", "w", false, "write FILE itself instead of standard output")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report, which goes to standard error, as JSON")
	return cmd
}

func newUninjectCmd() *cobra.Command {
	var pattern string
	var write bool
	cmd := &cobra.Command{
		Use:   "uninject [FILE]",
		Short: "Take the patterns away that `retinue inject` put around a job",
		Example: `  retinue uninject app.retinue.nomad.hcl
  retinue uninject --pattern leader-election --write app.nomad.hcl`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, name, err := readJob(cmd.InOrStdin(), args, write)
			if err != nil {
				return err
			}
			there, err := compose.Patterns(src, name)
			if err != nil {
				return usageError{err}
			}
			if pattern != "" && !strings.Contains(" "+strings.Join(there, " ")+" ", " "+pattern+" ") {
				return usageError{hint.Wrap(fmt.Errorf("%s does not have the pattern %q", name, pattern), "it has: %s", strings.Join(append(there, "none other"), ", "))}
			}
			out, err := compose.Remove(src, name, pattern)
			if err != nil {
				return usageError{err}
			}
			return writeJob(cmd.OutOrStdout(), name, out, write)
		},
	}
	cmd.Flags().StringVar(&pattern, "pattern", "", "only this one")
	cmd.Flags().BoolVarP(&write, "write", "w", false, "write FILE itself instead of standard output")
	return cmd
}

func fragment(pattern string) (*compose.Fragment, error) {
	var known []string
	for _, f := range fragments {
		if f.pattern == pattern {
			source, _ := jobspecs.Fragment(pattern)
			return compose.ParseFragment(pattern, f.prefix, source)
		}
		known = append(known, f.pattern)
	}
	return nil, compose.Unknown(pattern, known)
}

func listFragments() string {
	var b strings.Builder
	for _, f := range fragments {
		if frag, err := fragment(f.pattern); err == nil {
			fmt.Fprintf(&b, "  %-16s %s\n", f.pattern, frag.Summary)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// stdinName stands for standard input in errors.
const stdinName = "standard input"

func readJob(stdin io.Reader, args []string, write bool) (src []byte, name string, err error) {
	if len(args) == 0 || args[0] == "-" {
		if write {
			return nil, "", usageError{hint.Wrap(errors.New("--write without a file"), "name the FILE to write")}
		}
		src, err = io.ReadAll(stdin)
		return src, stdinName, err
	}
	src, err = os.ReadFile(args[0])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", usageError{hint.Wrap(err, "name a job specification in HCL, or - for standard input")}
	}
	return src, args[0], err
}

// writeJob replaces a file whole, so that a full disk never leaves half of it.
func writeJob(stdout io.Writer, name string, src []byte, write bool) error {
	if !write {
		_, err := stdout.Write(src)
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	tmp := name + ".retinue"
	if err := os.WriteFile(tmp, src, info.Mode().Perm()); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(tmp, name)
}

func printReport(w io.Writer, r compose.Report) {
	verb := "put around"
	if r.Replaced {
		verb = "put anew around"
	}
	added := "task " + strings.Join(r.Tasks, ", ")
	if len(r.Tasks) == 0 {
		added = strings.Join(r.Settings, ", ") + " to its configuration"
	}
	fmt.Fprintf(w, "%s %s task %s of group %s: added %s", r.Pattern, verb, r.Task, r.Group, added)
	if len(r.Ports) > 0 {
		fmt.Fprintf(w, " and port %s", strings.Join(r.Ports, ", "))
	}
	fmt.Fprintf(w, "\nvariables: %s\n", strings.Join(r.Variables, " "))
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
}

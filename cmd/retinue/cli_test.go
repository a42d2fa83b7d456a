package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// call runs one command line in-process.
func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestWrongUse(t *testing.T) {
	for line, want := range map[string]string{
		"versio":                 "did you mean `retinue version`?",
		"nonsense":               "run `retinue --help`",
		"dev upp":                "did you mean `retinue dev up`?",
		"version extra":          "unknown command \"extra\"",
		"version --colour":       "unknown flag: --colour",
		"dev up --servers two":   "invalid argument \"two\"",
		"dev up --docker=always": "auto",
	} {
		code, stdout, stderr := call(strings.Fields(line)...)
		if code != exitUsage {
			t.Errorf("retinue %s: exit code %d, want %d", line, code, exitUsage)
		}
		if stdout != "" || !strings.HasPrefix(stderr, "Error: ") || !strings.Contains(stderr, "\nHint: ") || !strings.Contains(stderr, want) {
			t.Errorf("retinue %s: want Error and Hint with %q, got\n%s%s", line, want, stdout, stderr)
		}
	}
}

func TestHelpOpensWithExamples(t *testing.T) {
	for _, cmd := range visibleCommands() {
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
			continue
		}
		code, stdout, _ := call(append(strings.Fields(cmd.CommandPath())[1:], "--help")...)
		if code != exitOK || !strings.HasPrefix(stdout, "Examples:\n") {
			t.Errorf("%s --help: exit code %d, begins with %.40q", cmd.CommandPath(), code, stdout)
		}
	}
}

func TestFlagsHaveEnvironmentTwins(t *testing.T) {
	cmd := &cobra.Command{Use: "retinue"}
	sub := &cobra.Command{Use: "some-verb", RunE: func(*cobra.Command, []string) error { return nil }}
	count := sub.Flags().Int("max-count", 1, "how many")
	cmd.AddCommand(sub)

	env := map[string]string{"RETINUE_SOME_VERB_MAX_COUNT": "7"}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	if err := applyEnv(sub, lookup); err != nil || *count != 7 {
		t.Fatalf("count %d, error %v; want 7 from the environment", *count, err)
	}
	if err := sub.Flags().Set("max-count", "3"); err != nil {
		t.Fatal(err)
	}
	if err := applyEnv(sub, lookup); err != nil || *count != 3 {
		t.Fatalf("count %d, error %v; the command line wins", *count, err)
	}
	sub.Flags().Lookup("max-count").Changed = false
	env["RETINUE_SOME_VERB_MAX_COUNT"] = "many"
	var usage usageError
	if err := applyEnv(sub, lookup); !errors.As(err, &usage) || !strings.Contains(err.Error(), "RETINUE_SOME_VERB_MAX_COUNT") {
		t.Fatalf("a bad value must be a usage error that names the variable, got %v", err)
	}
}

// TestFlagsAreDocumented holds that every flag stands in a Markdown file of the repository.
func TestFlagsAreDocumented(t *testing.T) {
	var docs strings.Builder
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			text, readErr := os.ReadFile(path)
			docs.Write(text)
			err = readErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range visibleCommands() {
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(docs.String(), "--"+f.Name) {
				t.Errorf("`%s --%s` stands in no Markdown file", cmd.CommandPath(), f.Name)
			}
		})
	}
}

// visibleCommands are ours: not hidden, and not the generator of shell completions.
func visibleCommands() []*cobra.Command {
	var visible []*cobra.Command
	for _, cmd := range allCommands(newRootCmd()) {
		if !cmd.Hidden && !strings.HasPrefix(cmd.CommandPath(), "retinue completion") {
			visible = append(visible, cmd)
		}
	}
	return visible
}

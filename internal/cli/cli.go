// Package cli is what the command lines of all programs share: exit codes,
// errors of use, and the frame around a program that has one command.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"retinue"
	"retinue/internal/envflag"
	"retinue/internal/hint"
)

// Exit codes, the same for every program.
const (
	ExitFailed      = 1   // the verb ran and its answer is "no", or something failed
	ExitUsage       = 2   // the command line or a configuration is wrong
	ExitInterrupted = 130 // Ctrl-C or SIGTERM
)

type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// Usage marks an error of the command line itself.
func Usage(err error) error { return usageError{err} }

type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Exit ends the program with a code when everything has been said already.
func Exit(code int) error { return exitError(code) }

// Code is the exit code of a program whose command ended with err, and whether everything has been said already.
func Code(err error) (code int, said bool) {
	switch e := exitError(0); {
	case err == nil:
		return 0, true
	case errors.As(err, &e):
		return int(e), true
	case errors.As(err, new(usageError)):
		return ExitUsage, false
	}
	return ExitFailed, false
}

// Main runs a program of one command, and the commands below it, until SIGINT or SIGTERM. It returns the exit code.
func Main(cmd *cobra.Command, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	frame(cmd)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	code, said := Code(err)
	if said {
		return code
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(stderr, "Hint: %s\n", h)
	}
	return code
}

// PrintJSON writes v as indented JSON, the form of every --json.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// frame gives a command what all programs have: a version, help with examples first, the environment as the twin of its flags.
func frame(cmd *cobra.Command) {
	cmd.Version = retinue.Version
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Usage(hint.Wrap(err, "run `%s --help` for the flags and examples", cmd.CommandPath()))
	})
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := envflag.Apply(cmd, os.LookupEnv); err != nil {
			return Usage(err)
		}
		return nil
	}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { io.WriteString(cmd.OutOrStdout(), help(cmd)) })
	cmd.CompletionOptions.DisableDefaultCmd = true
	envflag.Show(cmd)
	for _, sub := range cmd.Commands() {
		if check := sub.Args; check != nil {
			sub.Args = func(cmd *cobra.Command, args []string) error {
				if err := check(cmd, args); err != nil {
					return Usage(hint.Wrap(err, "run `%s --help` for the flags and examples", cmd.CommandPath()))
				}
				return nil
			}
		}
		envflag.Show(sub)
	}
}

// help says what a command does, examples first. It is no template: whoever links those keeps all exported methods of everything, a
// third of the program.
func help(cmd *cobra.Command) string {
	var b strings.Builder
	if cmd.HasExample() {
		fmt.Fprintf(&b, "Examples:\n%s\n\n", cmd.Example)
	}
	long := cmd.Long
	if long == "" {
		long = cmd.Short
	}
	fmt.Fprintf(&b, "%s\n\nUsage:\n  %s\n", strings.TrimRightFunc(long, unicode.IsSpace), cmd.UseLine())
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\nCommands:")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, "\n  %-*s %s", sub.NamePadding(), sub.Name(), sub.Short)
			}
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "\nFlags:\n%s\n", strings.TrimRightFunc(cmd.LocalFlags().FlagUsages(), unicode.IsSpace))
	return b.String()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"retinue"
	"retinue/coordinator/command"
	"retinue/coordinator/source/dial"
	electorcommand "retinue/elector/command"
	"retinue/internal/cli"
	"retinue/internal/envflag"
	"retinue/internal/hint"
)

// Exit codes, the same for every verb.
const (
	exitOK          = 0
	exitFailed      = cli.ExitFailed
	exitUsage       = cli.ExitUsage
	exitInterrupted = cli.ExitInterrupted
)

// usageError marks an error of the command line itself.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// exitError ends the program with a code when everything has been said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run executes one command line and returns its exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCmd()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var code exitError
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	}
	theirs, said := cli.Code(err)
	if said {
		return theirs
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(stderr, "Hint: %s\n", h)
	}
	switch {
	case errors.As(err, &usage), theirs == exitUsage:
		return exitUsage
	case ctx.Err() != nil:
		return exitInterrupted
	}
	return exitFailed
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "retinue",
		Short: "Container design patterns on Nomad and Consul",
		Long: `Retinue gives Nomad and Consul the patterns of "Design patterns for
container-based distributed systems" (Burns, Oppenheimer 2016).

Every flag has an environment variable as its twin, named in its description.
Exit codes: 0 done, 1 failed or the answer is no, 2 wrong use, 130 interrupted.
NO_COLOR turns colours off.`,
		Example: `  retinue dev up                  a local Nomad and Consul, in the background
  retinue demo leader-election    see a pattern work and fail over, in a minute
  retinue doctor                  what is missing on this machine, and what to do`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{hint.Wrap(err, "run `%s --help` for the flags and examples", cmd.CommandPath())}
	})
	root.SetUsageTemplate(examplesFirst)
	root.SetHelpTemplate(helpTemplate)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return applyEnv(cmd, os.LookupEnv) }
	root.AddCommand(commands()...)
	root.InitDefaultCompletionCmd()
	for _, cmd := range allCommands(root) {
		cmd.SuggestionsMinimumDistance = 2
		envflag.Show(cmd)
		refuseStrangers(cmd)
		strictArgs(cmd)
	}
	return root
}

// commands is the table of verbs.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newDemoCmd(),
		newDevCmd(),
		newDoctorCmd(),
		newToolsCmd(),
		newPauseCmd(),
		newRemoveContentCmd(),
		electorcommand.New(),
		newLeaderCmd(),
		command.New(brokers()),
		command.NewWorker(),
		command.NewScaler(brokers()),
		newQueueCmd(),
		newGatherCmd(),
		newInjectCmd(),
		newUninjectCmd(),
		newTaskCmd(),
		newInitCmd(),
		newACLCmd(),
		newDemoAppCmd(),
		newVersionCmd(),
	}
}

// brokers are those that leave a helper small; `retinue-coordinator` has all.
func brokers() command.Brokers {
	return command.Brokers{Schemes: dial.Schemes, Open: dial.Open, Others: dial.Others, Elsewhere: dial.Elsewhere}
}

func newVersionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  retinue version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "retinue %s\n", retinue.Version)
			return nil
		},
	}
}

// applyEnv sets every flag that the command line left alone from its environment twin.
func applyEnv(cmd *cobra.Command, lookup func(string) (string, bool)) error {
	if err := envflag.Apply(cmd, lookup); err != nil {
		return usageError{err}
	}
	return nil
}

// strictArgs turns a wrong number of arguments into a usage error.
func strictArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil && !cmd.HasSubCommands() {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{hint.Wrap(err, "run `%s --help` for the flags and examples", cmd.CommandPath())}
			}
			return nil
		}
	}
}

// refuseStrangers makes a command that only groups others show its help, and
// refuse a sub-command that it does not have.
func refuseStrangers(cmd *cobra.Command) {
	if cmd.Runnable() || !cmd.HasSubCommands() {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		advice := fmt.Sprintf("run `%s --help` for the commands", cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			advice = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near[0])
		}
		return usageError{hint.Wrap(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), "%s", advice)}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

func allCommands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, sub := range cmd.Commands() {
		all = append(all, allCommands(sub)...)
	}
	return all
}

// printJSON is the form of every --json.
var printJSON = cli.PrintJSON

const examplesFirst = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}
{{if .HasAvailableSubCommands}}
Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{end}}{{if .HasAvailableLocalFlags}}
Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}{{if .HasAvailableSubCommands}}
Run "{{.CommandPath}} COMMAND --help" for more about a command.
{{end}}`

const helpTemplate = `{{if .HasExample}}Examples:
{{.Example}}

{{end}}{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{.UsageString}}`

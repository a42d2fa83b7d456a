// Command retinue-coordinator is `retinue coordinator` with every broker
// linked, Kafka and SQS included. It is a program of its own because their
// libraries would make each helper beside each container larger.
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
	"retinue/coordinator/source/dial/every"
	"retinue/internal/envflag"
	"retinue/internal/hint"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := newCmd()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	code, said := command.Code(err)
	if errors.As(err, new(usageError)) {
		code = 2
	}
	if said {
		return code
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(stderr, "Hint: %s\n", h)
	}
	return code
}

// usageError marks an error of the command line.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func newCmd() *cobra.Command {
	cmd := command.New(command.Brokers{Schemes: every.Schemes, Open: every.Open})
	cmd.Use = "retinue-coordinator [flags] [-- COMMAND [ARG...]]"
	cmd.Short = "retinue coordinator, with every broker: Kafka and SQS too"
	cmd.Example = `  retinue-coordinator --queue thumbs --broker kafka://127.0.0.1:9092 --done /shared/done --work /tmp/wq -- ./thumbnail
  retinue-coordinator --queue thumbs --broker sqs://us-east-1 --mode http --url http://127.0.0.1:9000/ --commit none
  retinue-coordinator --config queue.hcl`
	cmd.Long += "\n\nAll flags, and their environment twins, are those of `retinue coordinator`; this\nprogram is larger by the libraries of Kafka and SQS. `worker` is `retinue worker`,\nfor the copies that --install makes."
	cmd.Version = retinue.Version
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	worker := command.NewWorker()
	cmd.AddCommand(worker)
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{hint.Wrap(err, "run `%s --help` for the flags and examples", cmd.CommandPath())}
	})
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := envflag.Apply(cmd, os.LookupEnv); err != nil {
			return usageError{err}
		}
		return nil
	}
	cmd.SetHelpTemplate("{{if .HasExample}}Examples:\n{{.Example}}\n\n{{end}}{{(or .Long .Short) | trimTrailingWhitespaces}}\n\nUsage:\n  {{.UseLine}}\n\nFlags:\n{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}\n")
	cmd.CompletionOptions.DisableDefaultCmd = true
	envflag.Show(cmd)
	envflag.Show(worker)
	return cmd
}

// Command retinue-coordinator is `retinue coordinator` alone, with every broker
// linked, Kafka and SQS included: those would make all of retinue larger, and
// all of retinue this. Where both are in one folder, `retinue coordinator` and
// `retinue scaler` become this program.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"retinue/coordinator/command"
	"retinue/coordinator/source/dial/every"
	"retinue/internal/cli"
)

func main() { os.Exit(cli.Main(newCmd(os.Args), os.Args[1:], os.Stdout, os.Stderr)) }

func newCmd(args []string) *cobra.Command {
	brokers := command.Brokers{Schemes: every.Schemes, Open: every.Open}
	switch args[0] { // who called it so reads of it so, and has the environment of that
	case "retinue coordinator":
		return called(args[0], command.New(brokers))
	case "retinue scaler":
		return called(args[0], command.NewScaler(brokers))
	}
	cmd := command.New(brokers)
	cmd.Use = "retinue-coordinator [flags] [-- COMMAND [ARG...]]"
	cmd.Short = "retinue coordinator, with every broker: Kafka and SQS too"
	cmd.Example = `  retinue-coordinator --queue thumbs --broker kafka://127.0.0.1:9092 --done /shared/done --work /tmp/wq -- ./thumbnail
  retinue-coordinator --queue thumbs --broker sqs://us-east-1 --mode http --url http://127.0.0.1:9000/ --commit none
  retinue-coordinator --config queue.hcl
  retinue-coordinator scaler --queue thumbs --broker kafka://127.0.0.1:9092 --job thumbs --max 50`
	cmd.Long += "\n\nAll flags, and their environment twins, are those of `retinue coordinator`; this\nprogram is larger by the libraries of Kafka and SQS. `worker` is `retinue worker`,\nfor the copies that --install makes, and `scaler` is `retinue scaler`."
	cmd.AddCommand(command.NewWorker(), command.NewScaler(brokers))
	return cmd
}

func called(name string, cmd *cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: name}
	return cmd
}

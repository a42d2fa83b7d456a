package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"retinue/coordinator/worker"
	"retinue/internal/cli"
	"retinue/internal/hint"
)

// NewWorker is the verb `worker`.
func NewWorker() *cobra.Command {
	var work, dir string
	var slots int
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "worker [flags] -- COMMAND [ARG...]",
		Short: "Run a command for each item, in the worker's own container",
		Long: `Starts COMMAND for each item that the coordinator beside it offers, as
` + "`retinue coordinator` in mode exec does, but in the container where the command" + `
is: it shares a folder with the coordinator (in mode watch), and knows neither
the queue nor Consul. The item is on stdin and in $RETINUE_INPUT; what the
command writes to stdout and to files in $RETINUE_OUTPUT is the output.

On SIGTERM nothing new is started; what runs may end. A second SIGTERM ends it.`,
		Example: `  retinue worker -- gzip -dc
  retinue worker --slots 8 -- /usr/bin/thumbnail`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usage(hint.Wrap(errors.New("no command to run"), "give it after --, as in `worker -- gzip -dc`; --help shows all"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if work == "" && dir == "" {
				return cli.Usage(hint.Wrap(errors.New("no folder to work in"), "give --work FOLDER, the coordinator's; in a Nomad task it is $NOMAD_ALLOC_DIR/data/wq"))
			}
			if slots < 1 {
				return cli.Usage(fmt.Errorf("%d slots", slots))
			}
			if _, err := exec.LookPath(args[0]); err != nil { // better no worker than one that fails every item
				return cli.Usage(hint.Wrap(fmt.Errorf("the command: %w", err), "it is looked for in this container"))
			}
			c := worker.Claims{Work: work, Command: args, Grace: grace, Slots: slots, Codes: worker.DefaultExitCodes()}
			if dir != "" {
				return c.Once(cmd.Context(), dir)
			}
			return runClaims(cmd.Context(), &c)
		},
	}
	cmd.Flags().StringVar(&work, "work", allocFolder("data/wq"), "folder of the attempts, the coordinator's; default $NOMAD_ALLOC_DIR/data/wq")
	cmd.Flags().StringVar(&dir, "dir", "", "run the command for the attempt in this folder, and end: for a job that was made of one item (mode dispatch)")
	cmd.Flags().IntVar(&slots, "slots", 4, "commands at once")
	cmd.Flags().DurationVar(&grace, "grace", 5*time.Second, "between SIGTERM and SIGKILL, for an attempt that is taken back")
	return cmd
}

// allocFolder is a path in the folder that the tasks of a group share; "" outside of Nomad.
func allocFolder(path string) string {
	dir := os.Getenv("NOMAD_ALLOC_DIR")
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, path)
}

func runClaims(ctx context.Context, c *worker.Claims) error {
	hard, abandon := context.WithCancel(context.Background())
	defer abandon()
	go func() {
		<-ctx.Done()
		again := make(chan os.Signal, 1)
		signal.Notify(again, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(again)
		select {
		case <-again:
			abandon()
		case <-hard.Done():
		}
	}()
	if err := c.Run(ctx, hard); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// installSelf puts a copy of this program at path, in one step: several may do so at once in a folder that they share. Of the program
// with every broker, the one beside it that has every verb: a worker needs no broker, and the demonstration's is a verb of that.
func installSelf(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	from, err := os.Open(filepath.Join(filepath.Dir(self), "retinue"))
	if filepath.Base(self) != Program || err != nil {
		if err == nil {
			from.Close()
		}
		from, err = os.Open(self)
	}
	if err != nil {
		return err
	}
	defer from.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	to, err := os.CreateTemp(filepath.Dir(path), ".retinue-*")
	if err != nil {
		return err
	}
	defer os.Remove(to.Name()) // it is gone when all is well
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Chmod(0o755), to.Close()); err != nil {
		return err
	}
	return os.Rename(to.Name(), path)
}

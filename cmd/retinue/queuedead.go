package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/internal/hint"
)

func newQueueDeadCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "See dead letters, edit them, try them again, remove them",
		Example: `  retinue queue dead ls
  retinue queue dead show order-77
  retinue queue dead edit order-77            in $EDITOR, then it is tried again
  retinue queue dead retry --all --class crash
  retinue queue dead purge order-77`,
	}
	cmd.AddCommand(newDeadLsCmd(), newDeadShowCmd(), newDeadEditCmd(), newDeadRetryCmd(), newDeadPurgeCmd())
	return cmd
}

func newDeadLsCmd() *cobra.Command {
	var q queueTarget
	var limit int
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List dead letters with the reason of each",
		Example: "  retinue queue dead ls\n  retinue queue dead ls --json | jq -r '.[] | select(.class == \"quarantine\") | .id'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, queue, err := q.dial(cmd.Context())
			if err != nil {
				return err
			}
			letters, err := c.DeadLetters(cmd.Context(), queue, "", limit)
			if err != nil {
				return err
			}
			if q.json {
				return printJSON(cmd.OutOrStdout(), letters)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "ITEM\tDIED\tCLASS\tATTEMPTS\tREASON")
			for _, d := range letters {
				fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\n", d.ID, d.Died.Format(time.DateTime), d.Class, len(d.Attempts), d.Reason)
			}
			return tw.Flush()
		},
	}
	q.add(cmd)
	cmd.Flags().IntVar(&limit, "limit", 100, "letters at most, up to 10000")
	return cmd
}

// oneLetter finds a dead letter.
func oneLetter(cmd *cobra.Command, q *queueTarget, id string) (*coordinator.Client, string, coordinator.DeadLetter, error) {
	c, queue, err := q.dial(cmd.Context())
	if err != nil {
		return nil, "", coordinator.DeadLetter{}, err
	}
	letters, err := c.DeadLetters(cmd.Context(), queue, id, 1)
	if err == nil && len(letters) == 0 {
		err = hint.Wrap(fmt.Errorf("no dead letter has the id %s", id), "`retinue queue dead ls` lists them; `retinue queue show %s` tells how the item ended", id)
	}
	if err != nil {
		return nil, "", coordinator.DeadLetter{}, err
	}
	return c, queue, letters[0], nil
}

func newDeadShowCmd() *cobra.Command {
	var q queueTarget
	cmd := &cobra.Command{
		Use:     "show ITEM",
		Short:   "Show a dead letter: payload, headers, every attempt with the end of its stderr",
		Example: "  retinue queue dead show order-77",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _, d, err := oneLetter(cmd, &q, args[0])
			if err != nil {
				return err
			}
			if q.json {
				return printJSON(cmd.OutOrStdout(), d)
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "%s  %s: %s  %s\n", d.ID, d.Class, d.Reason, d.Died.Format(time.DateTime))
			printAttempts(w, d.Attempts)
			for name, value := range d.Headers {
				fmt.Fprintf(w, "  %s: %s\n", name, value)
			}
			if d.Base64 != nil {
				fmt.Fprintf(w, "  payload of %d bytes, %s\n", len(d.Base64), dash(d.ContentType))
			} else {
				fmt.Fprintf(w, "\n%s\n", d.Body)
			}
			return nil
		},
	}
	q.add(cmd)
	return cmd
}

func newDeadEditCmd() *cobra.Command {
	var q queueTarget
	var file, key, contentType string
	cmd := &cobra.Command{
		Use:   "edit ITEM",
		Short: "Change the payload of a dead letter, and try it again",
		Example: `  retinue queue dead edit order-77                     in $EDITOR
  retinue queue dead edit order-77 --file fixed.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, queue, d, err := oneLetter(cmd, &q, args[0])
			if err != nil {
				return err
			}
			edit := coordinator.Edit{}
			if cmd.Flags().Changed("key") {
				edit.Key = &key
			}
			if cmd.Flags().Changed("content-type") {
				edit.ContentType = &contentType
			}
			if edit.Base64, err = editedPayload(cmd, d, file); err != nil {
				return err
			}
			return q.change(cmd, c, queue, "retry", coordinator.Selection{IDs: args, Edit: &edit})
		},
	}
	q.add(cmd)
	cmd.Flags().StringVar(&file, "file", "", "take the payload from this file (- is stdin) instead of an editor")
	cmd.Flags().StringVar(&key, "key", "", "another key")
	cmd.Flags().StringVar(&contentType, "content-type", "", "another content type")
	return cmd
}

// editedPayload reads the new payload from a file, or lets somebody edit the old one.
func editedPayload(cmd *cobra.Command, d coordinator.DeadLetter, file string) ([]byte, error) {
	if file != "" {
		return readFile(cmd.InOrStdin(), file)
	}
	editor := os.Getenv("EDITOR")
	if editor == "" {
		return nil, usageError{hint.Wrap(errors.New("no editor"), "set EDITOR, or give --file")}
	}
	f, err := os.CreateTemp("", "retinue-dead-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	payload := []byte(d.Body)
	if d.Base64 != nil {
		payload = d.Base64
	}
	_, err = f.Write(payload)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	ed := exec.CommandContext(cmd.Context(), "sh", "-c", editor+` "$1"`, "sh", f.Name())
	ed.Stdin, ed.Stdout, ed.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := ed.Run(); err != nil {
		return nil, fmt.Errorf("run the editor %s: %w", editor, err)
	}
	return os.ReadFile(f.Name())
}

// deadSelection adds the flags that say which letters are meant.
type deadSelection struct {
	all        bool
	class, key string
}

func (s *deadSelection) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.all, "all", false, "all of them, instead of the items named")
	cmd.Flags().StringVar(&s.class, "class", "", "only of this class: error, timeout, crash, quarantine, refused, parked, invalid")
	cmd.Flags().StringVar(&s.key, "key", "", "only of this key")
}

func (s *deadSelection) read(args []string) (coordinator.Selection, error) {
	if s.all == (len(args) > 0) {
		return coordinator.Selection{}, usageError{hint.Wrap(errors.New("which dead letters?"), "name items, or give --all (with --class or --key to choose among them)")}
	}
	return coordinator.Selection{IDs: args, All: s.all, Class: item.Class(s.class), Key: s.key}, nil
}

func newDeadRetryCmd() *cobra.Command {
	var q queueTarget
	var s deadSelection
	cmd := &cobra.Command{
		Use:     "retry [ITEM...]",
		Short:   "Put dead letters back into the queue, with all of their attempts",
		Example: "  retinue queue dead retry order-77\n  retinue queue dead retry --all --class timeout",
		Args:    cobra.ArbitraryArgs,
		RunE:    func(cmd *cobra.Command, args []string) error { return q.selected(cmd, "retry", s, args) },
	}
	q.add(cmd)
	s.add(cmd)
	return cmd
}

func newDeadPurgeCmd() *cobra.Command {
	var q queueTarget
	var s deadSelection
	cmd := &cobra.Command{
		Use:     "purge [ITEM...]",
		Short:   "Remove dead letters for good",
		Example: "  retinue queue dead purge order-77\n  retinue queue dead purge --all --class refused",
		Args:    cobra.ArbitraryArgs,
		RunE:    func(cmd *cobra.Command, args []string) error { return q.selected(cmd, "purge", s, args) },
	}
	q.add(cmd)
	s.add(cmd)
	return cmd
}

func (q *queueTarget) selected(cmd *cobra.Command, verb string, s deadSelection, args []string) error {
	selection, err := s.read(args)
	if err != nil {
		return err
	}
	c, queue, err := q.dial(cmd.Context())
	if err != nil {
		return err
	}
	return q.change(cmd, c, queue, verb, selection)
}

// change sends retry or purge. Exit code 1: an item that was named is no dead letter.
func (q *queueTarget) change(cmd *cobra.Command, c *coordinator.Client, queue, verb string, s coordinator.Selection) error {
	changed, err := c.ChangeDead(cmd.Context(), queue, verb, s)
	if err != nil {
		return err
	}
	if q.json {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(changed)
	} else {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d dead letters\n", verb, changed.Changed)
	}
	if err == nil && changed.Changed < len(s.IDs) {
		return exitError(exitFailed)
	}
	return err
}

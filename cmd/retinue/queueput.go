package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// queuePut is `retinue queue put`.
type queuePut struct {
	queueTarget
	id, key, delay, contentType string
	input                       item.Reference
	priority                    int
	lines                       bool
	wait                        time.Duration
}

func newQueuePutCmd() *cobra.Command {
	var p queuePut
	cmd := &cobra.Command{
		Use:   "put [FILE...]",
		Short: "Publish items: a file each, stdin, or a line each",
		Long: `Publishes each FILE as one item, or stdin without one (- is stdin). With
--lines each line of the files is an item as JSON: {"id":"...","body":"..."},
with body_base64, key, priority, delay, headers and content_type as it likes.

With --input the payload is what lies at an address, which the coordinator must be
allowed to fetch from; nothing is read from stdin.

An id makes repeats harmless: an item with an id that has ended is not done again.`,
		Example: `  retinue queue put photo.jpg --id photo-77 --wait 30s
  echo hello | retinue queue put
  retinue queue put --input s3://pictures/in/77.jpg --sha256 $(sha256sum 77.jpg | cut -d' ' -f1)
  retinue queue put --lines items.ndjson        with a progress bar on a terminal`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(cmd, args) },
	}
	p.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&p.id, "id", "", "the item's id, its idempotency key; default a random one")
	flags.StringVar(&p.key, "key", "", "items of one key are done one after the other")
	flags.StringVar(&p.delay, "delay", "", "not before, like 10m")
	flags.StringVar(&p.contentType, "content-type", "", "of the payload")
	flags.IntVar(&p.priority, "priority", 0, "class of priority; the highest is the most urgent")
	flags.StringVar(&p.input.URL, "input", "", "the payload lies there: https://HOST/PATH, s3://BUCKET/KEY or file:///PATH")
	flags.StringVar(&p.input.SHA256, "sha256", "", "of --input, in hexadecimal digits: it is checked, and fetched once for all items that have it")
	flags.Int64Var(&p.input.Size, "size", 0, "of --input in bytes; file:/// needs it")
	flags.BoolVar(&p.lines, "lines", false, "each line is an item as JSON")
	flags.DurationVar(&p.wait, "wait", 0, "wait so long for the item's end, and print it")
	return cmd
}

func (p *queuePut) run(cmd *cobra.Command, args []string) error {
	switch {
	case p.input.URL != "" && (len(args) > 0 || p.lines):
		return usageError{hint.Wrap(errors.New("--input and a file"), "--input is the payload of one item; in --lines each line has its own \"input\"")}
	case p.input.URL == "" && (p.input.SHA256 != "" || p.input.Size != 0):
		return usageError{hint.Wrap(errors.New("--sha256 and --size without --input"), "they say what lies at the address of --input")}
	case len(args) == 0 && p.input.URL == "":
		args = []string{"-"}
	}
	if (p.wait > 0 || p.id != "") && (p.lines || len(args) > 1) {
		return usageError{hint.Wrap(errors.New("--id and --wait are for one item"), "in --lines each line has its own id; `retinue queue wait` waits for several")}
	}
	c, queue, err := p.dial(cmd.Context())
	if err != nil {
		return err
	}
	if p.lines {
		return p.bulk(cmd, c, queue, args)
	}
	var lines []coordinator.Line
	if p.input.URL != "" {
		l := p.line(nil)
		l.Body, l.Input = nil, &p.input
		lines = append(lines, l)
	}
	for _, name := range args {
		data, err := readFile(cmd.InOrStdin(), name)
		if err != nil {
			return err
		}
		lines = append(lines, p.line(data))
	}
	put, err := c.Put(cmd.Context(), queue, lines)
	if err != nil {
		return err
	}
	if p.wait > 0 {
		ctx, cancel := context.WithTimeout(cmd.Context(), p.wait)
		defer cancel()
		it, err := waitItem(ctx, c, put.IDs[0])
		if err != nil {
			return err
		}
		if err := printItem(cmd, p.json, it); err != nil {
			return err
		}
		if it.State != "done" {
			return exitError(exitFailed)
		}
		return nil
	}
	return p.print(cmd, put)
}

func (p *queuePut) print(cmd *cobra.Command, put coordinator.Put) error {
	if p.json {
		return printJSON(cmd.OutOrStdout(), put)
	}
	for _, id := range put.IDs {
		fmt.Fprintln(cmd.OutOrStdout(), id)
	}
	return nil
}

func (p *queuePut) line(data []byte) coordinator.Line {
	l := coordinator.Line{ID: p.id, Key: p.key, Priority: p.priority, Delay: p.delay, ContentType: p.contentType}
	if l.ID == "" {
		l.ID = source.NewID() // chosen here, so that a repeated request is the same item
	}
	if utf8.Valid(data) {
		body := string(data)
		l.Body = &body
	} else {
		l.Base64 = data
	}
	return l
}

func readFile(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// bulk publishes lines in portions. It prints how many, not their ids: there may be a million.
func (p *queuePut) bulk(cmd *cobra.Command, c *coordinator.Client, queue string, args []string) error {
	const portion, portionBytes = 500, 4 << 20
	bar := newProgress(cmd.ErrOrStderr(), "published", totalSize(args), p.json)
	defer bar.end()
	sum, read := 0, int64(0)
	var lines []coordinator.Line
	bytesIn := 0
	flush := func() error {
		if len(lines) == 0 {
			return nil
		}
		put, err := c.Put(cmd.Context(), queue, lines)
		if err != nil {
			return fmt.Errorf("after %d items: %w", sum, err)
		}
		sum += put.Accepted
		bar.set(read)
		bar.note(fmt.Sprintf("%d items", sum))
		lines, bytesIn = lines[:0], 0
		return nil
	}
	for _, name := range args {
		err := eachLine(cmd.InOrStdin(), name, func(n int, text []byte) error {
			read += int64(len(text)) + 1
			if len(bytes.TrimSpace(text)) == 0 {
				return nil
			}
			var l coordinator.Line
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&l); err != nil {
				return usageError{hint.Wrap(fmt.Errorf("%s:%d: %w", name, n, err), "each line is an object like {\"id\":\"7\",\"body\":\"text\"}; %d items were published before", sum)}
			}
			if l.ID == "" {
				l.ID = source.NewID()
			}
			lines = append(lines, l)
			bytesIn += len(text)
			if len(lines) == portion || bytesIn > portionBytes {
				return flush()
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := flush(); err != nil {
		return err
	}
	bar.end()
	if p.json {
		return printJSON(cmd.OutOrStdout(), map[string]int{"accepted": sum})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%d items published\n", sum)
	return nil
}

func eachLine(stdin io.Reader, name string, see func(n int, text []byte) error) error {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 0, 64<<10), 16<<20)
	for n := 1; scanner.Scan(); n++ {
		if err := see(n, scanner.Bytes()); err != nil {
			return err
		}
	}
	return scanner.Err()
}

func totalSize(names []string) (sum int64) {
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return 0 // stdin, or an error that reading will tell
		}
		sum += info.Size()
	}
	return sum
}

// progress shows on a terminal how far something is, once it takes longer than a second.
type progress struct {
	w       io.Writer
	what    string
	total   int64 // 0: unknown
	done    int64
	text    string
	started time.Time
	shown   time.Time
}

func newProgress(w io.Writer, what string, total int64, quiet bool) *progress {
	p := &progress{what: what, total: total, started: time.Now()}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && !quiet {
		p.w = w
	}
	return p
}

func (p *progress) note(text string) { p.text = text }

func (p *progress) set(done int64) {
	p.done = done
	if p.w == nil || time.Since(p.started) < time.Second || time.Since(p.shown) < 100*time.Millisecond {
		return
	}
	p.shown = time.Now()
	const width = 30
	bar := ""
	if p.total > 0 {
		full := int(min(width, width*p.done/p.total))
		bar = " [" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "] " + fmt.Sprintf("%3d %%", min(100, 100*p.done/p.total))
	}
	fmt.Fprintf(p.w, "\r%s%s  %s\x1b[K", p.what, bar, p.text)
}

func (p *progress) end() {
	if p.w != nil && !p.shown.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = time.Time{}
	}
}

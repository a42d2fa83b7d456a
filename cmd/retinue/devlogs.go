package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"retinue/internal/devcluster"
)

type logOptions struct {
	follow bool
	lines  int
}

// show prints the last lines of each agent's log, with the agent's name before
// each line when there are several, and then follows them.
func (o logOptions) show(ctx context.Context, w io.Writer, agents []devcluster.Agent) error {
	var logs []*logReader
	defer func() {
		for _, l := range logs {
			l.file.Close()
		}
	}()
	for _, a := range agents {
		f, err := os.Open(a.LogFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it never started
		}
		if err != nil {
			return err
		}
		l := &logReader{file: f}
		if len(agents) > 1 {
			l.prefix = a.Name + "  "
		}
		logs = append(logs, l)
		if err := l.printTail(w, o.lines); err != nil {
			return err
		}
	}
	for o.follow {
		for _, l := range logs {
			if err := l.printNew(w); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// logReader reads a growing file line by line.
type logReader struct {
	file   *os.File
	prefix string
	rest   []byte // the beginning of a line whose end is not written yet
}

// printTail prints the last lines; it reads the file backwards until it has
// seen enough of them.
func (l *logReader) printTail(w io.Writer, lines int) error {
	size, err := l.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const block = 64 << 10
	var tail []byte
	for at := size; at > 0 && bytes.Count(tail, []byte("\n")) <= lines; {
		n := min(at, block)
		at -= n
		buf := make([]byte, n)
		if _, err := l.file.ReadAt(buf, at); err != nil {
			return err
		}
		tail = append(buf, tail...)
	}
	all := bytes.SplitAfter(tail, []byte("\n"))
	l.rest = all[len(all)-1] // empty when the file ends with a newline
	all = all[:len(all)-1]
	for _, line := range all[max(0, len(all)-lines):] {
		if _, err := fmt.Fprintf(w, "%s%s", l.prefix, line); err != nil {
			return err
		}
	}
	return nil
}

func (l *logReader) printNew(w io.Writer) error {
	raw, err := io.ReadAll(l.file)
	if err != nil {
		return err
	}
	l.rest = append(l.rest, raw...)
	for {
		line, after, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return nil
		}
		if _, err := fmt.Fprintf(w, "%s%s\n", l.prefix, line); err != nil {
			return err
		}
		l.rest = after
	}
}

package lifecycle

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a lifecycle block.
type Problem struct {
	Path string // such as lifecycle.drain.timeout
	What string
	Hint string // what to do about it
}

// Problems is everything that is wrong with a lifecycle block. It is an error.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = fmt.Sprintf("%s: %s (%s)", one.Path, one.What, one.Hint)
	}
	return strings.Join(lines, "; ")
}

// problems collects what a decoder finds.
type problems struct{ all Problems }

func (p *problems) add(path, hint, format string, args ...any) {
	p.all = append(p.all, Problem{Path: path, What: fmt.Sprintf(format, args...), Hint: hint})
}

func (p *problems) err() error {
	if len(p.all) == 0 {
		return nil
	}
	return p.all
}

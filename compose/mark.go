package compose

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"retinue/internal/hint"
)

// common is the name in the marks around what several patterns share.
const common = "common"

// section is one marked part of a file.
type section struct {
	pattern    string
	line       int // of its first mark
	start, end int // bytes, whole lines, with the empty line above that came with it
}

// marked wraps text in the two comments that say whose it is.
func marked(pattern, text, prefix string) string {
	return "\n" + prefix + "# retinue:" + pattern + " begin\n" + text + prefix + "# retinue:" + pattern + " end\n"
}

// sections finds the marked parts. It reads comments as HCL does, so a mark inside a string or a heredoc is none.
func sections(src []byte, name string) ([]section, error) {
	tokens, diags := hclsyntax.LexConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diagError(diags)
	}
	var found []section
	var open *section
	for _, t := range tokens {
		if t.Type != hclsyntax.TokenComment {
			continue
		}
		mark, ok := strings.CutPrefix(strings.TrimSpace(string(t.Bytes)), "# retinue:")
		pattern, edge, _ := strings.Cut(mark, " ")
		if !ok || edge != "begin" && edge != "end" {
			continue
		}
		if (open != nil) != (edge == "end") || open != nil && open.pattern != pattern {
			return nil, unpaired(name, t.Range.Start.Line, pattern, edge)
		}
		if edge == "begin" {
			open = &section{pattern: pattern, line: t.Range.Start.Line, start: startOf(src, t.Range.Start.Byte)}
			continue
		}
		open.end = endOf(src, t.Range.Start.Byte)
		found, open = append(found, *open), nil
	}
	if open != nil {
		return nil, unpaired(name, open.line, open.pattern, "begin")
	}
	return found, nil
}

func unpaired(name string, line int, pattern, edge string) error {
	return hint.Wrap(fmt.Errorf("%s:%d: the mark `# retinue:%s %s` has no other half", name, line, pattern, edge),
		"put the missing `begin` or `end` back, or take the part away by hand")
}

// startOf is where the line of a mark begins, or the empty line above it.
func startOf(src []byte, at int) int {
	start := bytes.LastIndexByte(src[:at], '\n') + 1
	for _, empty := range []string{"\n\r\n", "\n\n"} {
		if bytes.HasSuffix(src[:start], []byte(empty)) {
			return start - len(empty) + 1
		}
	}
	return start
}

// endOf is where the line after at begins.
func endOf(src []byte, at int) int {
	if i := bytes.IndexByte(src[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(src)
}

// Patterns lists what has been put around a job, in the order of the file.
func Patterns(src []byte, name string) ([]string, error) {
	found, err := sections(src, name)
	if err != nil {
		return nil, err
	}
	var patterns []string
	for _, s := range found {
		if s.pattern != common && !slices.Contains(patterns, s.pattern) {
			patterns = append(patterns, s.pattern)
		}
	}
	return patterns, nil
}

// Remove takes a pattern away, or with "" all of them. name is the file's, for errors. A job that does not have it comes back as it was.
func Remove(src []byte, name, pattern string) ([]byte, error) {
	found, err := sections(src, name)
	if err != nil {
		return nil, err
	}
	goes := func(s section) bool { return pattern == "" || s.pattern == pattern }
	// What several patterns share stays as long as one of them does.
	last := !slices.ContainsFunc(found, func(s section) bool { return s.pattern != common && !goes(s) })
	var out []byte
	at := 0
	for _, s := range found {
		if goes(s) || s.pattern == common && last {
			out = append(out, src[at:s.start]...)
			at = s.end
		}
	}
	return append(out, src[at:]...), nil
}

package compose

import (
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// indent puts prefix before every line that has something, after taking away what all of them begin with.
func indent(text, prefix string) string {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	least := -1
	for _, l := range lines {
		if trimmed := strings.TrimLeft(l, " "); trimmed != "" && (least < 0 || len(l)-len(trimmed) < least) {
			least = len(l) - len(trimmed)
		}
	}
	for i, l := range lines {
		if strings.TrimSpace(l) == "" {
			lines[i] = ""
		} else {
			lines[i] = prefix + l[least:]
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// blockText is a block's source.
func blockText(source string, b *hclsyntax.Block) string {
	return lineOf(source, b.TypeRange.Start.Byte) + source[b.TypeRange.Start.Byte:b.CloseBraceRange.End.Byte] + "\n"
}

// innerText is what stands between a block's braces.
func innerText(source string, b *hclsyntax.Block) string {
	return source[b.OpenBraceRange.End.Byte:b.CloseBraceRange.Start.Byte]
}

// lineOf is the white space before at in its line.
func lineOf(source string, at int) string {
	start := strings.LastIndexByte(source[:at], '\n') + 1
	if strings.TrimSpace(source[start:at]) != "" {
		return ""
	}
	return source[start:at]
}

// entries are the attributes and blocks of a body in their order, each with the comments above it.
func entries(source string, body *hclsyntax.Body) []entry {
	type placed struct {
		name string
		end  int
	}
	var all []placed
	for _, a := range body.Attributes {
		all = append(all, placed{a.Name, a.SrcRange.End.Byte})
	}
	for _, b := range body.Blocks {
		all = append(all, placed{"", b.CloseBraceRange.End.Byte})
	}
	slices.SortFunc(all, func(a, b placed) int { return a.end - b.end })
	var list []entry
	at := body.SrcRange.Start.Byte + 1 // after the brace
	for _, p := range all {
		list = append(list, entry{p.name, source[at:p.end]})
		at = p.end
	}
	return list
}

// headComment is the first paragraph of the comment that a file begins with.
func headComment(source string) string {
	var words []string
	for line := range strings.Lines(source) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "#")
		if !ok || strings.TrimSpace(text) == "" {
			break
		}
		words = append(words, strings.TrimSpace(text))
	}
	return strings.Join(words, " ")
}

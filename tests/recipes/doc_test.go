// Package recipes_test runs what docs/recipes tells people to run: every file
// and every command, against the real elector, a real Consul and a real
// PostgreSQL; and the Go client for applications against the same electors.
package recipes_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// recipes is the folder of the pages.
func recipes(t harness.T) string {
	t.Helper()
	return filepath.Join(harness.RepoRoot(t), "docs", "recipes")
}

// block is a fenced block of a page.
type block struct {
	section string // the heading above it
	lang    string
	file    string // the file it shows, by the link in the line above; "" when it shows none
	text    string
	line    int
}

var fileLink = regexp.MustCompile(`^\[` + "`" + `?([^\]` + "`" + `]+)` + "`" + `?\]\(([^)]+)\):?$`)

func blocks(t *testing.T, page string) []block {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(recipes(t), page))
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	var open *block
	section, file := "", ""
	for i, line := range strings.Split(string(data), "\n") {
		switch {
		case open != nil && line == "```":
			all = append(all, *open)
			open, file = nil, ""
		case open != nil:
			open.text += line + "\n"
		case strings.HasPrefix(line, "```"):
			open = &block{section: section, lang: strings.TrimPrefix(line, "```"), file: file, line: i + 1}
		case strings.HasPrefix(line, "#"):
			section = strings.TrimLeft(line, "# ")
		case fileLink.MatchString(line):
			file = fileLink.FindStringSubmatch(line)[2]
		case line != "":
			file = ""
		}
	}
	if open != nil {
		t.Fatalf("%s: the block of line %d does not end", page, open.line)
	}
	return all
}

var pages = []string{"leader-election.md", "fencing.md"}

// TestPagesShowTheFiles holds the pages and the files equal, every file shown, and short.
func TestPagesShowTheFiles(t *testing.T) {
	shown := map[string]bool{}
	for _, page := range pages {
		for _, b := range blocks(t, page) {
			if b.file == "" {
				continue
			}
			data, err := os.ReadFile(filepath.Join(recipes(t), b.file))
			if err != nil {
				t.Errorf("%s:%d: %v", page, b.line, err)
				continue
			}
			shown[b.file] = true
			if string(data) != b.text {
				t.Errorf("%s:%d: the block is not %s", page, b.line, b.file)
			}
			if n := strings.Count(b.text, "\n"); n > 40 {
				t.Errorf("%s has %d lines; a recipe has at most 40", b.file, n)
			}
		}
	}
	for _, dir := range []string{"leader-election", "fencing"} {
		entries, err := os.ReadDir(filepath.Join(recipes(t), dir))
		if err != nil || len(entries) < 3 {
			t.Fatalf("%s: %d files, %v", dir, len(entries), err)
		}
		for _, e := range entries {
			if name := dir + "/" + e.Name(); !shown[name] {
				t.Errorf("no page shows %s", name)
			}
		}
	}
}

// commands are the shell commands of a page's section: the "sh" blocks that show no file.
func commands(t *testing.T, page, section string) string {
	t.Helper()
	var all string
	for _, b := range blocks(t, page) {
		if b.section == section && b.lang == "sh" && b.file == "" {
			all += b.text
		}
	}
	if all == "" {
		t.Fatalf("%s has no commands under %q", page, section)
	}
	return all
}

// TestEveryCommandIsRun fails when a page gets commands in a section that no test runs.
func TestEveryCommandIsRun(t *testing.T) {
	run := map[string]bool{}
	for _, s := range runSections {
		run[s] = true
	}
	for _, page := range pages {
		for _, b := range blocks(t, page) {
			key := fmt.Sprintf("%s#%s", page, b.section)
			if b.lang == "sh" && b.file == "" && !run[key] {
				t.Errorf("%s:%d: no test runs the commands under %q", page, b.line, b.section)
			}
		}
	}
}

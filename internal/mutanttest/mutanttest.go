// Package mutanttest shows that tests can fail: it puts mistakes into the code
// of a package on purpose, one at a time, and wants each of them to turn a test
// red.
//
// All mistakes are built into one test binary, each behind a switch: a function
// with a mistake in it begins with a copy of itself that has the mistake and is
// taken when the environment says so. One build instead of one for each mutant
// is most of the time saved. A mistake outside of functions, as in a constant,
// gets a binary of its own.
package mutanttest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Mutant is one mistake: the only Old in File becomes New.
type Mutant struct {
	Name     string
	File     string // relative to the folder of the test
	Old, New string
	Tests    string // that have to notice: a name, several with | between them, or a name and one of its subtests
	Package  string // the folder of these tests; "" for that of the caller
	Skip     string // why they cannot run here; "" if they can
}

// Run makes every mutant, and fails for each that its tests do not notice; the tests are run with args besides. A test that cannot run
// notices nothing. Mutants run beside each other, as many as -parallel says: most tests wait for something that never happens.
func Run(t *testing.T, mutants []Mutant, args ...string) {
	t.Helper()
	sources := map[string]string{}
	for _, m := range mutants {
		if sources[m.File] == "" {
			source, err := os.ReadFile(m.File)
			if err != nil {
				t.Fatal(err)
			}
			sources[m.File] = string(source)
		}
		if n := strings.Count(sources[m.File], m.Old); n != 1 {
			t.Fatalf("%s: %s has %d places to mutate, want 1: the mutant has to follow the code", m.Name, m.File, n)
		}
	}
	woven, err := weave(sources, mutants)
	if err != nil {
		t.Fatal(err)
	}
	binaries := map[string]string{}
	for i, m := range mutants {
		if woven.has[i] && binaries[m.Package] == "" {
			binaries[m.Package] = build(t, woven, m.Package)
		}
	}
	for i, m := range mutants {
		t.Run(m.Name, func(t *testing.T) {
			if m.Skip != "" {
				t.Skip("skip: " + m.Skip)
			}
			t.Parallel()
			binary := binaries[m.Package]
			if !woven.has[i] {
				binary = build(t, weaving{files: map[string]string{m.File: strings.Replace(sources[m.File], m.Old, m.New, 1)}}, m.Package)
			}
			cmd := exec.CommandContext(t.Context(), binary, append([]string{"-test.timeout=120s", "-test.run=" + pattern(m.Tests)}, args...)...)
			cmd.Dir = m.Package
			cmd.Env = append(os.Environ(), switchName+"="+strconv.Itoa(i))
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("%s stayed green:\n%s", m.Tests, out)
			} else if text := string(out); !strings.Contains(text, "--- FAIL: ") || strings.Contains(text, "panic: test timed out") {
				t.Errorf("%s did not fail, but could not run: %v\n%s", m.Tests, err, out)
			}
		})
	}
}

func pattern(tests string) string {
	if top, sub, ok := strings.Cut(tests, "/"); ok {
		return "^" + top + "$/^" + sub + "$"
	}
	return "^(" + tests + ")$"
}

// switchName is the variable of the environment that says which mutant is alive, and variable the package's that has it.
const switchName, variable = "RETINUE_MUTANT", "retinueMutant"

// weaving is code with mutants behind switches.
type weaving struct {
	files map[string]string
	has   map[int]bool
}

// weave puts the mutants into the sources.
func weave(sources map[string]string, mutants []Mutant) (weaving, error) {
	w := weaving{files: map[string]string{}, has: map[int]bool{}}
	for file, source := range sources {
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, file, source, parser.SkipObjectResolution)
		if err != nil {
			return w, err
		}
		type insertion struct {
			at   int
			text string
		}
		var copies []insertion
		for i, m := range mutants {
			if m.File != file {
				continue
			}
			at := strings.Index(source, m.Old)
			body := around(tree, set, at, at+len(m.Old))
			if body == nil {
				continue
			}
			begin, end := set.Position(body.Lbrace).Offset+1, set.Position(body.Rbrace).Offset
			mutated := source[begin:at] + m.New + source[at+len(m.Old):end]
			if !body.results {
				mutated += "\nreturn\n"
			}
			copies = append(copies, insertion{begin, fmt.Sprintf("\nif %s == %q {%s}\n", variable, strconv.Itoa(i), mutated)})
			w.has[i] = true
		}
		slices.SortStableFunc(copies, func(a, b insertion) int { return cmp.Compare(b.at, a.at) })
		text := source
		for _, c := range copies {
			text = text[:c.at] + c.text + text[c.at:]
		}
		w.files[file] = text
		w.files[filepath.Join(filepath.Dir(file), "retinue_mutant.go")] = fmt.Sprintf("package %s\n\nimport \"os\"\n\nvar %s = os.Getenv(%q)\n", tree.Name.Name, variable, switchName)
	}
	return w, nil
}

// body is that of a function.
type body struct {
	*ast.BlockStmt
	results bool // it ends with a return or the like
}

// around finds the function whose body has the bytes from begin to end.
func around(tree *ast.File, set *token.FileSet, begin, end int) *body {
	for _, d := range tree.Decls {
		f, ok := d.(*ast.FuncDecl)
		if ok && f.Body != nil && set.Position(f.Body.Lbrace).Offset < begin && end <= set.Position(f.Body.Rbrace).Offset {
			return &body{f.Body, f.Type.Results != nil}
		}
	}
	return nil
}

// build makes the test binary of the package in a folder, with some files replaced or added.
func build(t *testing.T, w weaving, folder string) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for file, text := range w.files {
		original, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		replace[original] = write(fmt.Sprintf("%d-%s", len(replace), filepath.Base(file)), text)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "mutants.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay="+write("overlay.json", string(overlay)), "-o="+binary, "./"+folder)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("a mutant does not compile: %v\n%s", err, out)
	}
	return binary
}

package mutanttest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const code = `package sums

const start = 0

func sum(a, b int) int {
	c := a + b
	return c
}

type counter struct{ n int }

func (c *counter) add(d int) {
	if d < 0 {
		return
	}
	c.n += d
}

func first() (n int) { return start + 1 }

func First() int { return first() }
`

const tests = `package sums

import (
	"os"
	"testing"
)

func TestSum(t *testing.T) {
	if sum(2, 3) != 5 {
		t.Error("sum")
	}
}

func TestAdd(t *testing.T) {
	var c counter
	c.add(-1)
	c.add(2)
	if c.n != 2 {
		t.Errorf("%d", c.n)
	}
}

func TestFirst(t *testing.T) {
	t.Run("one", func(t *testing.T) {
		if first() != 1 {
			t.Error("first")
		}
	})
}

func TestNothing(t *testing.T) {}

func TestExit(t *testing.T) {
	if sum(1, 1) != 2 {
		os.Exit(1) // not the failure of a test
	}
}
`

const subTests = `package sub

import (
	"flag"
	"os"
	"testing"

	"sums"
)

var strict = flag.Bool("strict", false, "")

func TestFirstOfAll(t *testing.T) {
	if _, err := os.Stat("sub_test.go"); err != nil {
		t.Skip(err)
	}
	if *strict && sums.First() != 1 {
		t.Error("first")
	}
}
`

// in makes a module with the code and its tests, and runs the test there.
func in(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module sums\n\ngo 1.26\n", "sums.go": code, "sums_test.go": tests, "sub/sub_test.go": subTests} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

// Each mistake is alive alone, whatever function it is in.
func TestCaught(t *testing.T) {
	in(t)
	Run(t, []Mutant{
		{Name: "a result", File: "sums.go", Old: "c := a + b", New: "c := a - b", Tests: "TestSum"},
		{Name: "another in the same function", File: "sums.go", Old: "return c\n", New: "return c + 1\n", Tests: "TestSum|TestNothing"},
		{Name: "no result", File: "sums.go", Old: "if d < 0 {", New: "if false {", Tests: "TestAdd"},
		{Name: "a constant", File: "sums.go", Old: "const start = 0", New: "const start = 1", Tests: "TestFirst/one"},
		{Name: "a named result, on one line", File: "sums.go", Old: "return start + 1", New: "return start + 2", Tests: "TestFirst"},
	})
	Run(t, []Mutant{{Name: "seen by another package's tests", File: "sums.go", Old: "return start + 1", New: "return start + 2", Tests: "TestFirstOfAll", Package: "sub"}}, "-strict")
}

// What is not noticed, does not compile, or is not there is a failure. It is a test of its own, run by this one, that fails so.
func TestNotCaught(t *testing.T) {
	for name, want := range map[string]string{"unnoticed": "TestNothing stayed green", "wrong": "does not compile", "gone": "has 0 places", "twice": "places to mutate, want 1", "exits": "could not run", "nobody": "stayed green"} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFails$")
			cmd.Env = append(os.Environ(), "RETINUE_MUTANTTEST="+name)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !strings.Contains(string(out), want) {
				t.Errorf("%v, want %q:\n%s", err, want, out)
			}
		})
	}
}

func TestFails(t *testing.T) {
	m, ok := map[string]Mutant{
		"unnoticed": {Old: "a + b", New: "a - b", Tests: "TestNothing"},
		"wrong":     {Old: "a + b", New: "a + d", Tests: "TestSum"},
		"gone":      {Old: "a * b", New: "a - b", Tests: "TestSum"},
		"twice":     {Old: "return", New: "", Tests: "TestSum"},
		"nobody":    {Old: "a + b", New: "a - b", Tests: "TestThatIsNotThere"},
		"exits":     {Old: "a + b", New: "a - b", Tests: "TestExit"},
	}[os.Getenv("RETINUE_MUTANTTEST")]
	if !ok {
		t.Skip("skip: run by TestNotCaught")
	}
	m.Name, m.File = "mutant", "sums.go"
	in(t)
	Run(t, []Mutant{m})
}

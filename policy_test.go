package retinue_test

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rooms are the patterns' packages: none may import another's.
var rooms = []string{"elector", "coordinator", "gather", "ambassador", "adapter", "sidecar", "compose"}

// sourceFiles lists the Go files of the root module.
func sourceFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" {
				return filepath.SkipDir
			}
		}
		if strings.HasSuffix(path, ".go") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found only %d Go files: the walk is broken", len(files))
	}
	return files
}

func room(path string) string {
	first, _, _ := strings.Cut(filepath.ToSlash(path), "/")
	if slices.Contains(rooms, first) {
		return first
	}
	return ""
}

func TestRoomsAreIndependent(t *testing.T) {
	for _, file := range sourceFiles(t) {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			path, ok := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), "retinue/")
			if !ok {
				continue
			}
			from, to := room(file), room(path)
			switch {
			case strings.HasPrefix(path, "cmd/"):
				t.Errorf("%s imports %s: nothing imports cmd/", file, path)
			case from != "" && to != "" && from != to:
				t.Errorf("%s imports %s: a room never imports another room", file, path)
			case strings.HasPrefix(file, "internal/") && to != "":
				t.Errorf("%s imports %s: internal/ serves the rooms, not the other way round", file, path)
			}
		}
	}
}

func TestBinaryLinksNothingHeavy(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 50 {
		t.Fatalf("go list printed only %d packages", len(deps))
	}
	for _, dep := range deps {
		switch {
		case dep == "github.com/hashicorp/nomad/api" || strings.HasPrefix(dep, "github.com/hashicorp/nomad/api/"):
		case strings.HasPrefix(dep, "github.com/hashicorp/nomad"), // BUSL: only the plugin's inner process may link it
			strings.HasPrefix(dep, "github.com/hashicorp/terraform"),
			strings.HasPrefix(dep, "google.golang.org/grpc"):
			t.Errorf("the root module links %s", dep)
		}
	}
}

// A helper runs beside every container: what would double its memory is a program of its own.
func TestHelpersStaySmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/retinue").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, "github.com/nats-io/nats-server") || strings.HasPrefix(dep, "github.com/aws/") || strings.HasPrefix(dep, "github.com/twmb/franz-go") {
			t.Errorf("cmd/retinue links %s", dep)
		}
	}
}

func TestModulesStandAlone(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mod, []byte("\nreplace ")) {
		t.Error("go.mod of the root module has a replace directive")
	}
	if _, err := os.Stat("go.work"); err == nil {
		t.Error("go.work is there: it would unify versions that must differ between the modules")
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	commented := map[string]bool{}
	for _, file := range sourceFiles(t) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(file)
		commented[dir] = commented[dir] || f.Doc != nil
	}
	for dir, ok := range commented {
		if !ok {
			t.Errorf("package %s has no comment that says what it is for and what it promises", dir)
		}
	}
}

func TestFilesHoldOneNoun(t *testing.T) {
	for _, file := range sourceFiles(t) {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if lines := bytes.Count(src, []byte("\n")); lines > 600 {
			t.Errorf("%s has %d lines: it probably holds two nouns", file, lines)
		}
	}
}

func TestEveryJobspecIsDocumented(t *testing.T) {
	specs, err := filepath.Glob("jobspecs/*/*.nomad.hcl")
	if err != nil || len(specs) == 0 {
		t.Fatalf("no job specifications found: %v", err)
	}
	for _, spec := range specs {
		dir, name := filepath.Dir(spec), filepath.Base(filepath.Dir(spec))
		if filepath.Base(spec) != name+".nomad.hcl" {
			t.Errorf("%s should be called %s.nomad.hcl", spec, name)
		}
		for _, companion := range []string{"README.md", name + ".vars.hcl"} {
			if _, err := os.Stat(filepath.Join(dir, companion)); err != nil {
				t.Errorf("%s lacks %s", dir, companion)
			}
		}
	}
}

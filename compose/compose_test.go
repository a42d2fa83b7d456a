package compose

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclwrite"

	"retinue/internal/hint"
	"retinue/jobspecs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// prefixes of the fragments that exist.
var prefixes = map[string]string{"leader-election": "retinue_elector", "scatter-gather": "retinue_gather", "work-queue": "retinue_queue", "lifecycle": "retinue_lifecycle"}

func fragment(t testing.TB, pattern string) *Fragment {
	t.Helper()
	source, ok := jobspecs.Fragment(pattern)
	if !ok {
		t.Fatalf("no fragment of %s", pattern)
	}
	f, err := ParseFragment(pattern, prefixes[pattern], source)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestGolden puts every pattern around every job of testdata and compares with the files beside it. What was formatted stays
// formatted, and taking the patterns away, in whatever order, gives the very bytes back.
func TestGolden(t *testing.T) {
	jobs, err := filepath.Glob("testdata/*.nomad.hcl")
	if err != nil || len(jobs) < 3 {
		t.Fatalf("%d jobs, %v", len(jobs), err)
	}
	for _, path := range jobs {
		for pattern := range prefixes {
			t.Run(strings.TrimSuffix(filepath.Base(path), ".nomad.hcl")+"/"+pattern, func(t *testing.T) {
				src, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				out, report, err := Inject(src, path, fragment(t, pattern), Target{})
				if err != nil {
					t.Fatal(err)
				}
				golden := strings.TrimSuffix(path, ".nomad.hcl") + "." + pattern + ".golden"
				if *update {
					if err := os.WriteFile(golden, out, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if want, err := os.ReadFile(golden); err != nil || !bytes.Equal(out, want) {
					t.Errorf("differs from %s (err %v); look at it with -update and git diff", golden, err)
				}
				if !bytes.Equal(hclwrite.Format(out), out) {
					t.Error("not formatted as `nomad fmt` does")
				}
				if len(report.Tasks)+len(report.Settings) != 1 || len(report.Variables) < 8 || report.Replaced {
					t.Errorf("report %+v", report)
				}
				back, err := Remove(out, path, pattern)
				if err != nil || !bytes.Equal(back, src) {
					t.Errorf("taken away, the job is not what it was: %v\n%s", err, back)
				}
			})
		}
	}
}

func inject(t *testing.T, src []byte, patterns ...string) []byte {
	t.Helper()
	for _, p := range patterns {
		var err error
		if src, _, err = Inject(src, "app.hcl", fragment(t, p), Target{}); err != nil {
			t.Fatal(err)
		}
	}
	return src
}

func TestTwoPatternsShareWhatTheyShare(t *testing.T) {
	src, err := os.ReadFile("testdata/shop.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	out := inject(t, src, "leader-election", "scatter-gather")
	if n := bytes.Count(out, []byte(`variable "retinue_image"`)); n != 1 {
		t.Errorf("the shared variable stands there %d times", n)
	}
	if got, err := Patterns(out, "app.hcl"); err != nil || !slices.Equal(got, []string{"leader-election", "scatter-gather"}) && !slices.Equal(got, []string{"scatter-gather", "leader-election"}) {
		t.Errorf("patterns %v, %v", got, err)
	}
	again := inject(t, out, "scatter-gather")
	if !bytes.Equal(again, out) {
		t.Error("a second time changes the job")
	}
	for _, order := range [][]string{{"leader-election", "scatter-gather"}, {"scatter-gather", "leader-election"}, {""}} {
		left := out
		for i, p := range order {
			if left, err = Remove(left, "app.hcl", p); err != nil {
				t.Fatal(err)
			}
			if i == 0 && p != "" && !bytes.Contains(left, []byte(`variable "retinue_image"`)) {
				t.Error("the shared variable went with the first pattern")
			}
		}
		if !bytes.Equal(left, src) {
			t.Errorf("without %v the job is not what it was:\n%s", order, left)
		}
	}
}

func TestWindowsLineEnds(t *testing.T) {
	src, err := os.ReadFile("testdata/shop.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	src = bytes.ReplaceAll(src, []byte("\n"), []byte("\r\n"))
	out := inject(t, src, "leader-election")
	if bytes.Count(out, []byte("\n")) != bytes.Count(out, []byte("\r\n")) {
		t.Error("line ends are mixed")
	}
	if back, err := Remove(out, "app.hcl", ""); err != nil || !bytes.Equal(back, src) {
		t.Errorf("not what it was: %v", err)
	}
}

// A mark in a string or a heredoc is the user's text.
func TestMarksInStringsAreText(t *testing.T) {
	src := []byte("job \"a\" {\n  group \"g\" {\n    task \"t\" {\n      driver = \"docker\"\n      template {\n        data = <<E\n# retinue:leader-election begin\nE\n      }\n    }\n  }\n}\n")
	out := inject(t, src, "leader-election")
	if back, err := Remove(out, "a.hcl", ""); err != nil || !bytes.Equal(back, src) {
		t.Errorf("not what it was: %v\n%s", err, back)
	}
}

func TestRefusals(t *testing.T) {
	job := func(group string) string { return "job \"j\" {\n" + group + "\n}\n" }
	group := func(name, body string) string { return "group \"" + name + "\" {\n" + body + "\n}" }
	task := func(name, body string) string {
		return "task \"" + name + "\" {\n driver = \"docker\"\n" + body + "\n}\n"
	}
	for name, c := range map[string]struct {
		src         string
		to          Target
		problem, do string
	}{
		"empty":              {" \n", Target{}, "is empty", "HCL"},
		"json":               {`{"Job": {}}`, Target{}, "is JSON", "HCL"},
		"broken":             {"job \"j\" {", Target{}, "app.hcl:1", "nomad job validate"},
		"no job":             {"variable \"x\" {}\n", Target{}, "0 job blocks", "one job block"},
		"no group":           {job(""), Target{}, "no group", "written out"},
		"dynamic groups":     {job("dynamic \"group\" {\n for_each = []\n}"), Target{}, "app.hcl:2: the groups are dynamic", "written out"},
		"several groups":     {job(group("a", task("t", "")) + "\n" + group("b", task("t", ""))), Target{}, "2 groups: a, b", "--group"},
		"wrong group":        {job(group("a", task("t", ""))), Target{Group: "x"}, `no group "x"`, "it has: a"},
		"several tasks":      {job(group("a", task("t", "")+task("u", ""))), Target{}, "2 tasks: t, u", "--task"},
		"wrong task":         {job(group("a", task("t", ""))), Target{Task: "x"}, `no task "x"`, "it has: t"},
		"no main task":       {job(group("a", task("t", "lifecycle {\n hook = \"prestart\"\n}"))), Target{}, "no task", "main task"},
		"one line":           {job(group("a", "task \"t\" { driver = \"docker\" }")), Target{}, "app.hcl:3: a task in a single line", "several lines"},
		"two networks":       {job(group("a", "network {\n}\nnetwork {\n}\n"+task("t", ""))), Target{}, "app.hcl:5: a second network", "one network"},
		"name taken":         {job(group("a", task("t", "")+task("elector", "lifecycle {\n}"))), Target{}, `task "elector" is there already`, "rename"},
		"variable taken":     {"variable \"retinue_elector_lease\" {}\n" + job(group("a", task("t", ""))), Target{}, `variable "retinue_elector_lease" is there`, "rename"},
		"no driver":          {job(group("a", "task \"t\" {\n}")), Target{}, "app.hcl:3: a task without a driver", "driver"},
		"driver from inside": {job(group("a", "task \"t\" {\n driver = each.value\n}")), Target{}, "app.hcl:4: driver depends on each", "var and local"},
		"mark without end":   {"# retinue:leader-election begin\n" + job(group("a", task("t", ""))), Target{}, "app.hcl:1: the mark", "by hand"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := Inject([]byte(c.src), "app.hcl", fragment(t, "leader-election"), c.to)
			if err == nil {
				t.Fatalf("taken:\n%s", out)
			}
			if !strings.Contains(err.Error(), c.problem) || !strings.Contains(hint.Of(err), c.do) {
				t.Errorf("error %q, hint %q", err, hint.Of(err))
			}
		})
	}
}

func TestMainTask(t *testing.T) {
	const src = "job \"j\" {\n  group \"g\" {\n    task \"a\" {\n      driver = \"java\"\n    }\n\n    task \"b\" {\n      driver = var.driver\n      leader = true\n    }\n  }\n}\n"
	out, report, err := Inject([]byte(src), "j.hcl", fragment(t, "leader-election"), Target{})
	if err != nil || report.Task != "b" {
		t.Fatalf("task %q, %v", report.Task, err)
	}
	if !bytes.Contains(out, []byte("retinue_elector_driver       = var.driver\n")) || !bytes.Contains(out, []byte(`retinue_elector_network_mode = "host"`)) {
		t.Errorf("the job's own driver and network are not the helper's:\n%s", out)
	}
	out, report, err = Inject([]byte(src), "j.hcl", fragment(t, "leader-election"), Target{Task: "a"})
	if err != nil || report.Task != "a" || len(report.Notes) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	for _, want := range []string{`retinue_elector_driver       = "docker"`, "retinue_elector_leader       = false"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %s:\n%s", want, out)
		}
	}
}

// FuzzInject: whatever the file, there is an error or a job that parses, is the same a second time, and whose uninjection gives
// the user's bytes back.
func FuzzInject(f *testing.F) {
	jobs, _ := filepath.Glob("testdata/*.nomad.hcl")
	for _, path := range jobs {
		src, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	elector, root := fragment(f, "leader-election"), fragment(f, "scatter-gather")
	f.Fuzz(func(t *testing.T, src []byte) {
		if there, err := Patterns(src, "f.hcl"); err != nil || len(there) > 0 || bytes.Contains(src, []byte("retinue:common")) {
			return
		}
		for _, fragment := range []*Fragment{elector, root} {
			out, _, err := Inject(src, "f.hcl", fragment, Target{})
			if err != nil {
				continue
			}
			again, _, err := Inject(out, "f.hcl", fragment, Target{})
			if err != nil || !bytes.Equal(again, out) {
				t.Fatalf("a second time: %v\n%q\n%q", err, out, again)
			}
			back, err := Remove(out, "f.hcl", fragment.Pattern)
			if want := src; err != nil || !bytes.Equal(back, want) && !bytes.Equal(back, append(slices.Clone(want), '\n')) && !bytes.Equal(back, append(slices.Clone(want), "\r\n"...)) {
				t.Fatalf("not what it was: %v\n%q\n%q", err, src, back)
			}
		}
	})
}

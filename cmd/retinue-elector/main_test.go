package main

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"retinue/elector/command"
	"retinue/internal/cli"
)

func call(args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = cli.Main(newCmd([]string{"retinue-elector"}), args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// What is wrong on the command line or in its environment ends with 2 and advice that names this program.
func TestUsage(t *testing.T) {
	for _, name := range []string{"NOMAD_JOB_NAME", "NOMAD_ALLOC_DIR", "NOMAD_SECRETS_DIR", "RETINUE_ELECTOR_ADDR"} {
		t.Setenv(name, "")
	}
	for line, want := range map[string]string{
		"":                         "give --app",
		"--app orders":             "give --listen",
		"--nonsense":               "`retinue-elector --help`",
		"frob":                     "`retinue-elector --help`",
		"run":                      "`retinue-elector run --help`",
		"status extra":             "`retinue-elector status --help`",
		"stepdown":                 "give --addr",
		"status --addr nowhere":    "unix://",
		"--app orders --listen x:": "unix://",
	} {
		if code, _, errs := call(strings.Fields(line)...); code != 2 || !strings.Contains(errs, want) {
			t.Errorf("%q: %d, not 2 and %q: %s", line, code, want, errs)
		}
	}
	t.Setenv("RETINUE_ELECTOR_LEASE", "soon")
	if code, _, errs := call("--app", "orders"); code != 2 || !strings.Contains(errs, "RETINUE_ELECTOR_LEASE") {
		t.Errorf("an environment twin that is wrong: %d %s", code, errs)
	}
}

// The environment that a jobspec sets for `retinue elector` is the same here, and so are the commands.
func TestSameCommandLine(t *testing.T) {
	root := &cobra.Command{Use: "retinue"}
	there := command.New()
	root.AddCommand(there)
	here := newCmd([]string{"retinue-elector"})
	if a, b := len(here.Commands()), len(there.Commands()); a != b || a < 3 {
		t.Errorf("%d commands, and retinue elector has %d", a, b)
	}
	if _, help, _ := call("--help"); !strings.Contains(help, "[$RETINUE_ELECTOR_LEASE]") || !strings.HasPrefix(help, "Examples:") || !strings.Contains(help, "stepdown") {
		t.Errorf("the help is:\n%s", help)
	}
}

// Where retinue has become it, its texts are those of the command line that people wrote.
func TestNamesWhatWasCalled(t *testing.T) {
	t.Setenv("NOMAD_ALLOC_DIR", "")
	t.Setenv("RETINUE_ELECTOR_APP", "orders")
	var stdout, stderr bytes.Buffer
	code := cli.Main(newCmd([]string{"retinue elector"}), []string{"--nonsense"}, &stdout, &stderr)
	if code != 2 || !strings.Contains(stderr.String(), "`retinue elector --help`") {
		t.Errorf("%d %s", code, &stderr)
	}
	stderr.Reset()
	code = cli.Main(newCmd([]string{"retinue elector"}), nil, &stdout, &stderr)
	if code != 2 || !strings.Contains(stderr.String(), "give --listen") { // the application it has from the environment
		t.Errorf("%d %s", code, &stderr)
	}
}

// It is small because of what it does not link.
func TestLinksNothingElse(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		for _, stranger := range []string{"retinue/coordinator", "retinue/gather", "retinue/internal/devcluster", "github.com/hashicorp/nomad", "github.com/hashicorp/hcl", "github.com/redis", "github.com/nats-io"} {
			if strings.HasPrefix(pkg, stranger) {
				t.Errorf("it links %s", pkg)
			}
		}
	}
}

// It is named where people look for it.
func TestIsDocumented(t *testing.T) {
	for _, file := range []string{"../../elector/README.md", "../../README.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(strings.FieldsFunc(string(text), func(r rune) bool { return r == '`' || r == '\n' }), "retinue-elector") {
			t.Errorf("%s does not name retinue-elector", file)
		}
	}
}

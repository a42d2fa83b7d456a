package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"retinue/coordinator/command"
	"retinue/internal/cli"
)

func call(args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = cli.Main(newCmd([]string{"retinue-coordinator"}), args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// All that `retinue coordinator` takes is taken here, from the same environment.
func TestSameFlags(t *testing.T) {
	names := func(cmd *cobra.Command) (out []string) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { out = append(out, f.Name) })
		return slices.DeleteFunc(out, func(name string) bool { return name == "help" })
	}
	if here, there := names(newCmd([]string{"retinue-coordinator"})), names(command.New(command.Brokers{})); !slices.Equal(here, there) || len(here) < 20 {
		t.Errorf("%v, and retinue coordinator has %v", here, there)
	}
	if _, help, _ := call("--help"); !strings.Contains(help, "[$RETINUE_COORDINATOR_QUEUE]") || !strings.HasPrefix(help, "Examples:") {
		t.Errorf("the help is:\n%s", help)
	}
}

// What is wrong on the command line ends with 2 and advice; Kafka and SQS are known.
func TestUsage(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	for line, want := range map[string]string{
		"--queue q --mode http --url http://x/ --commit none":                  "give --broker",
		"--queue q --mode http --url http://x/ --commit none --broker ftp://x": "kafka, kafkas, sqs",
		"--nonsense":         "--help",
		"worker":             "--help",
		"worker --slots 0 x": "work in",
	} {
		if code, _, errs := call(strings.Fields(line)...); code != 2 || !strings.Contains(errs, want) {
			t.Errorf("%s: %d %s", line, code, errs)
		}
	}
	for address, want := range map[string]string{"kafka://127.0.0.1:1?acks=1": "no parameter acks", "sqs://us-east-1/q": "sqs://REGION"} {
		if code, _, errs := call("--queue", "q", "--mode", "http", "--url", "http://x/", "--commit", "none", "--broker", address); code != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s: %d %s", address, code, errs)
		}
	}
}

// Where retinue has become it, its texts and its environment are those of the command line that people wrote.
func TestNamesWhatWasCalled(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("NOMAD_ALLOC_DIR", "")
	t.Setenv("RETINUE_SCALER_MIN", "5")
	t.Setenv("RETINUE_COORDINATOR_SLOTS", "0")
	for _, c := range []struct{ name, line, want string }{
		{"retinue coordinator", "--nonsense", "`retinue coordinator --help`"},
		{"retinue coordinator", "--queue q --broker kafka://h:1 --mode http --url http://x/ --commit none", "0 slots"},
		{"retinue scaler", "--nonsense", "`retinue scaler --help`"},
		{"retinue scaler", "--queue q --broker kafka://h:1 --job q --max 2", "between 5 and 2 workers"},
	} {
		var stdout, stderr bytes.Buffer
		if code := cli.Main(newCmd([]string{c.name}), strings.Fields(c.line), &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s %s: %d, not 2 and %q: %s", c.name, c.line, code, c.want, &stderr)
		}
	}
}

// A worker's container gets the program with every verb, where there is one: the demonstration's worker is a verb of that. And this one
// where there is none.
func TestInstalls(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	self := filepath.Join(dir, "retinue-coordinator")
	if err := os.WriteFile(self, program, 0o755); err != nil {
		t.Fatal(err)
	}
	installed := func() []byte {
		cmd := exec.Command(self, "--queue", "q", "--mode", "http", "--url", "http://x/", "--commit", "none", "--broker", "ftp://x", "--install", filepath.Join(dir, "bin", "retinue"))
		cmd.Env = append(os.Environ(), "RETINUE_TEST_MAIN=1", "NOMAD_ALLOC_DIR=")
		out, _ := cmd.CombinedOutput()
		data, err := os.ReadFile(filepath.Join(dir, "bin", "retinue"))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return data
	}
	if !bytes.Equal(installed(), program) {
		t.Error("without retinue beside it: another program")
	}
	if err := os.WriteFile(filepath.Join(dir, "retinue"), []byte("every verb"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := installed(); string(got) != "every verb" {
		t.Errorf("beside retinue: %d bytes", len(got))
	}
}

// The program is a broker's worth larger; the documents say so, and here is what they mean.
func TestLinksEveryBroker(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range []string{"activemq", "kafka", "nats", "rabbitmq", "redis", "sqs"} {
		if !slices.Contains(strings.Fields(string(out)), "retinue/coordinator/source/"+pkg) {
			t.Errorf("it does not link %s", pkg)
		}
	}
}

// It is named where the brokers are.
func TestIsDocumented(t *testing.T) {
	for _, file := range []string{"../../coordinator/README.md", "../../coordinator/source/README.md", "../../README.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "retinue-coordinator") {
			t.Errorf("%s does not name retinue-coordinator", file)
		}
	}
}

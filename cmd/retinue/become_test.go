package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// beside returns the path of a retinue in a folder of its own.
func beside(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	retinue := filepath.Join(t.TempDir(), "retinue")
	if err := os.Link(exe, retinue); err != nil {
		data, err := os.ReadFile(exe)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(retinue, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return retinue
}

// What serves becomes the small program beside it, with the same arguments and environment; what asks, or is wrong, does not.
// Where there is none, or it cannot be run, retinue is the elector itself.
func TestElectorBecomesTheSmallProgram(t *testing.T) {
	retinue := beside(t)
	call := func(line string) string {
		cmd := exec.Command(retinue, strings.Fields(line)...)
		cmd.Env = append(os.Environ(), "RETINUE_TEST_MAIN=1", "NOMAD_JOB_NAME=", "NOMAD_ALLOC_DIR=", "RETINUE_ELECTOR_HOST=here")
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	const small = "#!/bin/sh\necho small $RETINUE_ELECTOR_HOST: \"$@\"\n"
	for _, c := range []struct {
		mode os.FileMode
		line string
		want string
	}{
		{0, "elector --election a", "no application named"},
		{0o644, "elector --election a", "no application named"},
		{0o755, "elector --election a", "small here: --election a\n"},
		{0o755, "elector run --app x -- true --flag", "small here: run --app x -- true --flag\n"},
		{0o755, "elector frob", "unknown command"},
		{0o755, "elector --help", "Examples:"},
		{0o755, "elector status", "no elector named"},
		{0o755, "version", "retinue "},
	} {
		path := retinue + "-elector"
		os.Remove(path)
		if c.mode != 0 {
			if err := os.WriteFile(path, []byte(small), c.mode); err != nil {
				t.Fatal(err)
			}
		}
		if out := call(c.line); !strings.Contains(out, c.want) || strings.HasPrefix(c.want, "small") != strings.HasPrefix(out, "small") {
			t.Errorf("%s beside a program of mode %v: not %q:\n%s", c.line, c.mode, c.want, out)
		}
	}
}

// A queue on Kafka or SQS makes the helpers of a work queue the program that has these brokers, wherever the address is said. What asks,
// is wrong or has another broker does not; without that program it is told what to do.
func TestCoordinatorBecomesTheOneWithEveryBroker(t *testing.T) {
	retinue := beside(t)
	config := filepath.Join(filepath.Dir(retinue), "q.hcl")
	if err := os.WriteFile(config, []byte("work_queue \"q\" {\n  source {\n    broker = \"sqs://us-east-1\"\n  }\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(line string) string {
		var env []string
		for env = append(os.Environ(), "RETINUE_TEST_MAIN=1", "NOMAD_ALLOC_DIR="); strings.Contains(strings.SplitN(line, " ", 2)[0], "="); {
			name, rest, _ := strings.Cut(line, " ")
			env, line = append(env, name), rest
		}
		cmd := exec.Command(retinue, strings.Fields(line)...)
		cmd.Env = env
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	const elsewhere, became = "put the program retinue-coordinator beside this one", "it has every broker:"
	http := " --mode http --url http://x/ --commit none"
	if out := call("coordinator --queue q --broker kafka://h:1" + http); !strings.Contains(out, elsewhere) {
		t.Errorf("without the program:\n%s", out)
	}
	if err := os.WriteFile(retinue+"-coordinator", []byte("#!/bin/sh\necho "+became+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"coordinator --broker kafka://h:1 --queue q -- work --broker=x":                     became + " --broker kafka://h:1 --queue q -- work --broker=x\n",
		"coordinator --broker=kafkas://h:1":                                                 became,
		"RETINUE_COORDINATOR_BROKER=sqs:// coordinator --queue q":                           became + " --queue q\n",
		"RETINUE_COORDINATOR_BROKER=sqs:// coordinator --broker ftp://h" + http:             "queue name \"\"",
		"coordinator --config " + config:                                                    became,
		"RETINUE_COORDINATOR_CONFIG=" + config + " coordinator":                             became,
		"coordinator --config " + config + " --broker ftp://h" + http:                       "\"ftp\" is unknown",
		"coordinator --config /no/such/file --broker sqs://":                                "/no/such/file",
		"RETINUE_SCALER_BROKER=kafka://h:1 scaler":                                          became,
		"scaler --broker sqs://us-east-1 --queue q":                                         became,
		"RETINUE_COORDINATOR_BROKER=kafka://h:1 scaler":                                     "no queue named",
		"RETINUE_COORDINATOR_BROKER=kafka://h:1 coordinator --help":                         "Examples:",
		"RETINUE_COORDINATOR_BROKER=kafka://h:1 coordinator --nonsense":                     "`retinue coordinator --help`",
		"RETINUE_COORDINATOR_BROKER=kafka://h:1 RETINUE_COORDINATOR_SLOTS=many coordinator": "RETINUE_COORDINATOR_SLOTS",
		"RETINUE_COORDINATOR_BROKER=kafka://h:1 queue stats":                                "no coordinator named",
		"RETINUE_COORDINATOR_BROKER=kafka://h:1 worker":                                     "no command to run",
		"coordinator --queue q --broker nothing://h" + http:                                 "(and with retinue-coordinator beside this program kafka, kafkas, sqs)",
	} {
		if out := call(line); !strings.Contains(out, want) || strings.HasPrefix(want, became) != strings.HasPrefix(out, became) {
			t.Errorf("%s: not %q:\n%s", line, want, out)
		}
	}
}

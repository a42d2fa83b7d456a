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

// The helpers of a work queue become the program that has every broker, with the same arguments and environment; what asks does not.
// Without that program retinue does what it can, and tells what to do where it has not got the broker.
func TestCoordinatorBecomesTheOneWithEveryBroker(t *testing.T) {
	retinue := beside(t)
	call := func(line string) string {
		cmd := exec.Command(retinue, strings.Fields(line)...)
		cmd.Env = append(os.Environ(), "RETINUE_TEST_MAIN=1", "NOMAD_ALLOC_DIR=", "RETINUE_COORDINATOR_QUEUE=here")
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	const http = " --mode http --url http://x/ --commit none"
	for line, want := range map[string]string{
		"coordinator --broker kafka://h:1" + http:   "put the program retinue-coordinator beside this one",
		"coordinator --broker nothing://h:1" + http: "(and with retinue-coordinator beside this program kafka, kafkas, sqs)",
		"scaler": "no queue named",
	} {
		if out := call(line); !strings.Contains(out, want) {
			t.Errorf("%s without the program: not %q:\n%s", line, want, out)
		}
	}
	if err := os.WriteFile(retinue+"-coordinator", []byte("#!/bin/sh\necho alone $RETINUE_COORDINATOR_QUEUE: \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"coordinator --broker kafka://h:1 -- work --broker=x": "alone here: --broker kafka://h:1 -- work --broker=x\n",
		"coordinator":        "alone here:\n",
		"scaler --group a":   "alone here: --group a\n",
		"coordinator --help": "Examples:",
		"scaler -h":          "Examples:",
		"queue stats":        "no coordinator named",
		"worker":             "no command to run",
	} {
		if out := call(line); !strings.Contains(out, want) || strings.HasPrefix(want, "alone") != strings.HasPrefix(out, "alone") {
			t.Errorf("%s: not %q:\n%s", line, want, out)
		}
	}
}

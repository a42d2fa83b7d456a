package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue/compose"
)

const injectable = "job \"j\" {\n  group \"g\" {\n    task \"t\" {\n      driver = \"exec\"\n    }\n  }\n}\n"

func TestInjectInPlaceAndBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.nomad.hcl")
	if err := os.WriteFile(path, []byte(injectable), 0o640); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := call("inject", "leader-election", "--write", "--json", path)
	var report compose.Report
	if err := json.Unmarshal([]byte(stderr), &report); code != exitOK || stdout != "" || err != nil || report.Task != "t" {
		t.Fatalf("exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the file's mode became %v, %v", info.Mode(), err)
	}
	if code, _, stderr := call("uninject", "--pattern", "scatter-gather", path); code != exitUsage || !strings.Contains(stderr, "it has: leader-election") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if code, _, stderr := call("uninject", "-w", path); code != exitOK {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if back, err := os.ReadFile(path); err != nil || string(back) != injectable {
		t.Errorf("not what it was: %v\n%s", err, back)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInjectPipe(t *testing.T) {
	var text bytes.Buffer
	var report bytes.Buffer
	if code := run([]string{"inject", "scatter-gather"}, strings.NewReader(injectable), &text, &report); code != exitOK {
		t.Fatalf("exit code %d: %s", code, report.String())
	}
	if !strings.Contains(text.String(), `task "gather"`) || !strings.Contains(report.String(), "put around task t of group g: added task gather and port retinue_gather") {
		t.Errorf("%s\n%s", report.String(), text.String())
	}
	again := text.String()
	text.Reset()
	report.Reset()
	if code := run([]string{"inject", "scatter-gather", "-"}, strings.NewReader(again), &text, &report); code != exitOK || text.String() != again || !strings.Contains(report.String(), "put anew around") {
		t.Errorf("exit code %d: %s", code, report.String())
	}
}

func TestInjectWrongUse(t *testing.T) {
	for line, want := range map[string]string{
		"inject":                           "between 1 and 2",
		"inject sidecar /dev/null":         "there are: leader-election, scatter-gather, work-queue, lifecycle",
		"inject leader-election /none":     "no such file",
		"inject leader-election -w":        "without a file",
		"inject leader-election /dev/null": "is empty",
		"uninject -w":                      "without a file",
		"uninject --pattern x /dev/null":   "does not have",
	} {
		if code, _, stderr := call(strings.Fields(line)...); code != exitUsage || !strings.Contains(stderr, want) || !strings.Contains(stderr, "Hint: ") {
			t.Errorf("%s: exit code %d, want %q and a hint:\n%s", line, code, want, stderr)
		}
	}
}

package recipes_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"retinue/tests/harness"
)

// runSections are the sections whose commands a test runs.
var runSections = []string{
	"leader-election.md#By hand", "leader-election.md#Shell", "leader-election.md#Python", "leader-election.md#Node",
	"fencing.md#PostgreSQL", "fencing.md#Object storage", "fencing.md#Consul KV",
}

// script runs a shell script in the folder of the pages, and returns its output and exit status.
func script(t *testing.T, text string, env ...string) (output string, status int) {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", text)
	cmd.Dir = recipes(t)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

// mustScript is script for what has to succeed.
func mustScript(t *testing.T, text string, env ...string) string {
	t.Helper()
	out, status := script(t, text, env...)
	if status != 0 {
		t.Fatalf("exit status %d:\n%s", status, out)
	}
	return out
}

func TestByHand(t *testing.T) {
	need(t, "bash", "curl", "jq")
	e := theElectors.Get(t)[0]
	out := mustScript(t, commands(t, "leader-election.md", "By hand"), "SOCKET="+strings.TrimPrefix(e.unix, "unix://"))
	for _, want := range []string{`"role": "leader"`, `"id": "by-hand"`, `"address": "` + e.address + `"`, `"released":true`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in:\n%s", want, out)
		}
	}
}

// TestPageShowsTheGoExample: the Go block is part of an example that compiles.
func TestPageShowsTheGoExample(t *testing.T) {
	example, err := os.ReadFile(filepath.Join(harness.RepoRoot(t), "elector", "electorclient", "example_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, b := range blocks(t, "leader-election.md") {
		if b.lang == "go" {
			shown++
			if !strings.Contains(string(example), b.text) {
				t.Errorf("leader-election.md:%d is not in the example", b.line)
			}
		}
	}
	if shown == 0 {
		t.Error("no Go block")
	}
}

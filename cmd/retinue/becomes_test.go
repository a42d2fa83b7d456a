package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What serves becomes the small program beside it, with the same arguments and environment; what asks, or is wrong, does not.
// Where there is none, or it cannot be run, retinue is the elector itself.
func TestElectorBecomesTheSmallProgram(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	retinue := filepath.Join(dir, "retinue")
	if err := os.Link(exe, retinue); err != nil {
		data, err := os.ReadFile(exe)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(retinue, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
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
		path := filepath.Join(dir, "retinue-elector")
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

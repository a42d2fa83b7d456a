package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"retinue/gather"
)

func TestGatherFlagsWinOverTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.hcl")
	file := `scatter "search" {
  listen = ":1"
  leaf { static = ["0=http://127.0.0.1:1", "1=http://127.0.0.1:2"] }
  partial { policy = "best" }
}`
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	f, cmd := gatherFlags{settings: gather.DefaultSettings()}, &cobra.Command{}
	f.add(cmd)
	if err := cmd.ParseFlags([]string{"--config", path, "--listen", ":2", "--leaf", "0=http://127.0.0.1:9"}); err != nil {
		t.Fatal(err)
	}
	cfg, err := f.config(cmd.Flags(), func(name string) string {
		if name == "NOMAD_ALLOC_DIR" {
			return "/alloc"
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name != "search" || cfg.Listen != ":2" || len(cfg.Static) != 1 || cfg.Static[0][0] != "http://127.0.0.1:9" || cfg.Policy.String() != "best" || cfg.Admin[0] != "unix:///alloc/tmp/gather.sock" {
		t.Errorf("%+v", cfg)
	}
}

func TestGatherWrongUse(t *testing.T) {
	for line, want := range map[string]string{
		"gather":                                   "no leaves",
		"gather somewhere":                         "unknown command",
		"gather --leaf x":                          "SHARD=VALUE",
		"gather --config /none.hcl":                "no such file",
		"gather --service x":                       "0 shards",
		"gather check":                             "nothing to check",
		"gather check --merge sum":                 "built in",
		"gather query nowhere":                     "is no URL",
		"gather query ftp://x/y?q=1":               "Hint: write http://x/y?q=1",
		"gather top --admin nowhere":               "has no scheme",
		"gather explain x":                         "no root named",
		"gather --leaf 0=http://a:1 --deadline 3s": "deadline",
	} {
		t.Setenv("NOMAD_ALLOC_DIR", "")
		t.Setenv("RETINUE_GATHER_ADMIN", "")
		code, _, stderr := call(strings.Fields(line)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("retinue %s: exit code %d, %s", line, code, stderr)
		}
	}
}

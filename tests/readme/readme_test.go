// Package readme_test does what the READMEs tell a newcomer to do, with the
// commands as they stand there.
package readme_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/internal/demo"
	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestDemoAndOwnJob plays the demonstration on a cluster that it brings up
// itself, then runs the job specification as the README says, and looks at it.
func TestDemoAndOwnJob(t *testing.T) {
	root, binary := harness.RepoRoot(t), harness.RetinueBinary(t)
	dir := filepath.Join(harness.Dir(t, "readme"), "c")
	t.Cleanup(func() {
		if err := devcluster.Down(context.Background(), dir, nil); err != nil {
			t.Errorf("retinue dev down: %v", err)
		}
	})
	tools := filepath.Dir(harness.NomadBinary(t)) + ":" + filepath.Dir(harness.ConsulBinary(t))
	sh := func(script string) string {
		t.Helper()
		// The README says bin/retinue and the default folder.
		script = strings.NewReplacer("bin/retinue dev env", binary+" dev env --dir "+dir, "bin/retinue demo", binary+" demo", "retinue leader", binary+" leader").Replace(script)
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary)+":"+tools+":"+os.Getenv("PATH"))
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", script, err, out, stderr.String())
		}
		return string(out)
	}

	var report demo.Report
	if err := json.Unmarshal([]byte(sh("bin/retinue demo leader-election --json --dir "+dir)), &report); err != nil {
		t.Fatal(err)
	}
	if !report.OK || len(report.Checks) < 8 || report.Measured["writes_acknowledged"] < 100 || report.Measured["writes_lost"] != 0 || report.Measured["stale_writes_accepted"] != 0 {
		t.Errorf("the demonstration: %+v", report)
	}

	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	env, run := `eval "$(bin/retinue dev env)"`, "nomad job run jobspecs/leader-election/leader-election.nomad.hcl"
	for _, command := range []string{"make demo", "make test", "make clean-demo", env, run} {
		if !strings.Contains(string(readme), "\n"+command+"\n") && !strings.Contains(string(readme), "`"+command+"`") {
			t.Errorf("the README does not say %q any more", command)
		}
	}
	sh(env + "\n" + run)
	harness.Eventually(t, time.Minute, "a leader", func(context.Context) error {
		if out := sh(env + "\nretinue leader list leader-election --json"); !strings.Contains(out, `"token"`) {
			return os.ErrNotExist
		}
		return nil
	})
}

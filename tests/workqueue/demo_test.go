package workqueue_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"retinue/internal/demo"
	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

// The demonstration as the README says it, with fewer files, on a cluster that it brings up itself.
func TestDemonstration(t *testing.T) {
	harness.Need(t, harness.Program("gzip", true), harness.Program("sha256sum", true))
	binary := harness.RetinueBinary(t)
	dir := filepath.Join(harness.Dir(t, "demo"), "c")
	t.Cleanup(func() {
		if err := devcluster.Down(context.Background(), dir, nil); err != nil {
			t.Errorf("retinue dev down: %v", err)
		}
	})
	cmd := exec.CommandContext(t.Context(), binary, "demo", "work-queue", "--files", "400", "--json", "--dir", dir)
	tools := filepath.Dir(harness.NomadBinary(t)) + ":" + filepath.Dir(harness.ConsulBinary(t))
	cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
	var people strings.Builder
	cmd.Stderr = &people
	out, err := cmd.Output()
	var report demo.Report
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		t.Fatalf("%v, %v\n%s", err, jsonErr, people.String())
	}
	if err != nil || !report.OK {
		t.Errorf("the demonstration: %v\n%s", err, people.String())
	}
	if report.Measured["lost"] != 0 || report.Measured["duplicate_effects"] != 0 || report.Measured["files_per_second"] <= 0 || len(report.Checks) < 6 {
		t.Errorf("%v, %d promises", report.Measured, len(report.Checks))
	}
}

package driver_test

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

// The demonstration as the README says it, on a cluster that it brings up itself; then what an operator does with the server that it leaves.
func TestDemonstration(t *testing.T) {
	harness.Need(t, harness.Root, plugin(t))
	t.Parallel()
	binary := harness.RetinueBinary(t)
	dir := filepath.Join(harness.Dir(t, "demo"), "c")
	t.Cleanup(func() {
		if err := devcluster.Down(context.Background(), dir, nil); err != nil {
			t.Errorf("retinue dev down: %v", err)
		}
	})
	cmd := exec.CommandContext(t.Context(), binary, "demo", "lifecycle", "--json", "--dir", dir)
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
	if report.Measured["increments"] < 10 || len(report.Checks) != 10 {
		t.Errorf("%v increments, %d promises", report.Measured["increments"], len(report.Checks))
	}
	operate(t, dir)
}

// operate goes through the verbs of `retinue task`.
func operate(t *testing.T, dir string) {
	cluster, err := devcluster.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	env := os.Environ()
	for _, v := range cluster.Env() {
		env = append(env, v.Name+"="+v.Value)
	}
	task := func(args ...string) (code int, stdout, stderr string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), harness.RetinueBinary(t), append([]string{"task"}, args...)...)
		cmd.Env = env
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // the code tells
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}
	code, out, errs := task("ls", "--json", "--job", "lifecycle")
	var rows []struct {
		Managed   bool
		Alloc     string
		Lifecycle struct{ Phase string }
	}
	if err := json.Unmarshal([]byte(out), &rows); code != 0 || err != nil || len(rows) != 1 || !rows[0].Managed || rows[0].Lifecycle.Phase != "running" {
		t.Fatalf("task ls: %d, %v\n%s%s", code, err, out, errs)
	}
	alloc := rows[0].Alloc[:8]
	for _, c := range []struct {
		args string
		code int
		says string // in the output, or for a code that is not 0 in the error
	}{
		{"ls", 0, "running"},
		{"show ALLOC", 0, "restore_state"},
		{"show ALLOC/server --json", 0, `"phase": "running"`},
		{"show ALLOC/nope", 1, "it has: server"},
		{"health ALLOC", 0, "yes, says the application"},
		{"health ALLOC --ready", 0, "yes, says the application"},
		{"metrics ALLOC", 0, "demo_increments_total"},
		{"metrics ALLOC --source driver", 0, "retinue_task_memory_bytes"},
		{"profile ALLOC", 0, "demo-app lifecycle"},
		{"profile ALLOC --kind network", 0, "Tcp:"},
		{"profile ALLOC --kind goroutine", 0, "goroutine profile:"},
		{"profile ALLOC --kind nonsense", 1, "Hint: kind is one of"},
		{"config ALLOC", 0, "listen"},
		{"logs ALLOC --tail 1000", 0, "serving on"},
		{"save ALLOC", 0, "bytes"},
		{"pause ALLOC", 0, "paused"},
		{"health ALLOC --ready", 1, ""},
		{"drain ALLOC", 1, "cannot drain"},
		{"resume ALLOC", 0, "running"},
		{"drain ALLOC", 0, "in flight 0"},
		{"resume ALLOC", 0, "running"},
		{"replicate ALLOC --add 1", 1, "max_replicas"},
	} {
		code, out, errs := task(strings.Fields(strings.ReplaceAll(c.args, "ALLOC", alloc))...)
		said := out
		if c.code != 0 {
			said = errs
		}
		if code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("retinue task %s: exit code %d\n%s%s", c.args, code, out, errs)
		}
	}
}

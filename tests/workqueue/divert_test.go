package workqueue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/tests/harness"
)

// What is too large for the workers, takes too long or kills them has a Nomad job of its own, and is the same item there: one end, one output,
// its attempts counted on. Both coordinators are killed in between.
func TestDivert(t *testing.T) {
	c := cluster.Get(t)
	const parent, name = "divert-one", "divert-raw-exec"
	shared := t.TempDir()
	gate := filepath.Join(shared, "gate")
	d := &dispatching{t: t, c: c, parent: parent}
	// The same worker for both. The pool's has less time, and less luck.
	script := fmt.Sprintf(`IN=$(head -c 100); case "$IN" in
  slow*) until test -e %s; do sleep 0.1; done ;;
  frail*) test -z "$POOL" || kill -9 $$ ;;
  poison*) kill -9 $$ ;;
esac
cat >/dev/null; test -n "$POOL" || POOL=job; printf '%%s by %%s' "$IN" "$POOL" | tail -c 30`, gate)
	d.run(shared, script)
	allow(t, c, "coordinator", name)
	c.Command(t, harness.RetinueBinary(t), "acl", "apply", "coordinator", "--job", name, "--nomad", "--group", "apart")
	args, err := json.Marshal([]string{"-c", script})
	if err != nil {
		t.Fatal(err)
	}
	vars := drivers["raw_exec"].vars(c)
	vars["worker_command"], vars["worker_args"], vars["worker_env"] = "/bin/sh", string(args), `{ POOL = "pool" }`
	vars["work"], vars["done"], vars["max_runtime"] = filepath.Join(shared, "work"), filepath.Join(shared, "done"), "2s"
	vars["dispatch_job"], vars["divert_slots"], vars["divert_over"], vars["divert_max_runtime"] = parent, "4", "2KiB", "5m"
	vars["count"], vars["slots"], vars["coordinator_env"] = "2", "2", `{ RETINUE_COORDINATOR_LEASE = "3s" }`
	q := run(t, "work-queue", name, 4, vars)

	want := map[string]struct {
		by       string
		attempts int
	}{"small": {"pool", 1}, "large": {"job", 1}, "slow-1": {"job", 2}, "slow-2": {"job", 2}, "frail": {"job", 3}, "poison": {"", 3}}
	for id := range want {
		body := id
		if id == "large" {
			body += strings.Repeat(" ", 3000)
		}
		q.retinue("worker", body, "queue", "put", "--id", id, "-")
	}
	t.Log("kill -9 of the coordinators of the workers while they divert")
	for _, a := range q.in("worker") {
		q.Kill(a, "coordinator")
	}
	d.until(5, "each item that cannot be done by the workers has a job")
	t.Log("kill -9 of the coordinator that dispatches, while the slow ones run")
	q.Kill(q.in("apart")[0], "coordinator")
	if err := os.WriteFile(gate, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for id, want := range want {
		var it coordinator.Item
		harness.Eventually(t, 2*time.Minute, id+" has ended", func(context.Context) error {
			if err := json.Unmarshal([]byte(q.retinue("worker", "", "queue", "show", id, "--json")), &it); err != nil || !it.State.Ended() {
				return errors.Join(err, fmt.Errorf("it is %s", it.State))
			}
			return nil
		})
		if want.by == "" {
			if it.State != item.Dead || it.Class != item.Quarantine || it.Attempt < want.attempts {
				t.Errorf("%s is %+v", id, it)
			}
			continue
		}
		// An attempt that ends together with its coordinator is not counted: fewer are no error.
		if it.State != item.Done || it.Attempt > want.attempts {
			t.Errorf("%s is %s after %d attempts: %+v", id, it.State, it.Attempt, it.Attempts)
		}
		out, err := os.ReadFile(filepath.Join(shared, "done", name, id, "stdout"))
		if err != nil || !strings.HasSuffix(string(out), " by "+want.by) {
			t.Errorf("%s: %q, %v; want it by the %s", id, out, err, want.by)
		}
	}
	d.once()
	dead := q.retinue("worker", "", "queue", "dead", "ls", "--json")
	if !strings.Contains(dead, `"poison"`) || strings.Contains(dead, "slow") {
		t.Errorf("dead letters: %s", dead)
	}
}

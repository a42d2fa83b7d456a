package workqueue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/tests/harness"
)

// One Nomad job for each item, while the coordinator is killed with children under way, and a child is killed: each item is done once, and none
// was dispatched twice for the same attempt.
func TestDispatch(t *testing.T) {
	c := cluster.Get(t)
	const count, job = 6, "dispatch-raw-exec"
	dir := t.TempDir()
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue-dispatch", "work-queue-dispatch.nomad.hcl")
	c.Command(t, harness.NomadBinary(t), "job", "run", "-detach", "-var", "job_name="+job, "-var", "driver=raw_exec", "-var", "network_mode=host", "-var", "retinue_command="+c.Dir()+"/bin/retinue",
		"-var", "worker_command=/bin/sh", "-var", `worker_args=["-c", "sleep 4; cat"]`, "-var", "worker_resources={ cpu = 50, memory = 64 }", spec)
	t.Cleanup(func() {
		for _, child := range children(t, c, job) {
			if _, _, err := c.Nomad.Jobs().Deregister(child.ID, true, nil); err != nil {
				t.Errorf("purge %s: %v", child.ID, err)
			}
		}
		if _, _, err := c.Nomad.Jobs().Deregister(job, true, nil); err != nil {
			t.Errorf("purge %s: %v", job, err)
		}
	})
	if _, err := c.Nomad.ACLPolicies().Upsert(&nomadapi.ACLPolicy{Name: "dispatcher", Rules: coordinator.NomadACL("default")}, nil); err != nil {
		t.Fatal(err)
	}
	token, _, err := c.Nomad.ACLTokens().Create(&nomadapi.ACLToken{Name: "dispatcher", Type: "client", Policies: []string{"dispatcher"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + freePort(t)
	harness.Start(t, harness.Spec{Name: "broker", Path: c.Dir() + "/bin/retinue-broker", Args: []string{"--data", filepath.Join(dir, "queue"), "--listen", addr}})
	socket := "unix://" + filepath.Join(dir, "c.sock")
	start := func() *harness.Process {
		return harness.Start(t, harness.Spec{Name: "coordinator", Path: harness.RetinueBinary(t), Env: []string{"NOMAD_TOKEN=" + token.SecretID}, Args: []string{"coordinator", "--mode", "dispatch", "--job", job,
			"--nomad", c.Nomad.Address(), "--work", filepath.Join(dir, "wq"), "--done", filepath.Join(dir, "done"), "--queue", "archives", "--broker", "nats://" + addr, "--lease", "3s", "--slots", "20",
			"--drain-timeout", "1s", "--listen", socket}})
	}
	first := start()
	retinue := func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), harness.RetinueBinary(t), append(args, "--addr", socket)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		return string(out), err
	}
	for i := range count {
		harness.Eventually(t, time.Minute, "an item is put", func(context.Context) error {
			_, err := retinue(text(i), "queue", "put", "--id", id(i))
			return err
		})
	}
	harness.Eventually(t, time.Minute, "all have a child", func(context.Context) error {
		if n := len(children(t, c, job)); n != count {
			return fmt.Errorf("%d have", n)
		}
		return nil
	})
	t.Log("kill -9 of the coordinator, then of a child")
	first.Signal(syscall.SIGKILL)
	var killed string
	harness.Eventually(t, time.Minute, "a child runs and is killed", func(context.Context) error {
		for _, child := range children(t, c, job) {
			allocs, _, err := c.Nomad.Jobs().Allocations(child.ID, false, nil)
			if err != nil || len(allocs) == 0 || allocs[0].ClientStatus != "running" {
				continue
			}
			if err := c.Nomad.Allocations().Signal(&nomadapi.Allocation{ID: allocs[0].ID}, nil, "worker", "SIGKILL"); err == nil {
				killed = child.ID
				return nil
			}
		}
		return errors.New("none runs")
	})
	start()
	attempts := 0
	for i := range count {
		harness.Eventually(t, 2*time.Minute, id(i)+" is done", func(context.Context) error {
			out, err := retinue("", "queue", "show", id(i), "--json")
			var it coordinator.Item
			if jsonErr := json.Unmarshal([]byte(out), &it); jsonErr != nil || !it.State.Ended() {
				return errors.Join(err, jsonErr, errors.New("not yet: "+out))
			}
			if it.State != item.Done || it.Result != text(i) {
				t.Errorf("%s is %s: %.100v", it.ID, it.State, it.Result)
			}
			attempts += it.Attempt
			return nil
		})
	}
	// A child that was killed is an attempt, and has a successor; nothing else was dispatched again.
	if n := len(children(t, c, job)); n != count+1 || attempts != count+1 {
		t.Errorf("%d children and %d attempts for %d items and a killed child (%s)", n, attempts, count, killed)
	}
}

func children(t *testing.T, c *harness.Cluster, job string) []*nomadapi.JobListStub {
	t.Helper()
	stubs, _, err := c.Nomad.Jobs().PrefixList(job + "/dispatch-")
	if err != nil {
		t.Fatal(err)
	}
	return stubs
}

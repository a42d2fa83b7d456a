package workqueue_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/coordinator/item"
	"retinue/tests/harness"
)

// A worker that Nomad preempts for a job of higher priority ends what it can within its drain, and hands the rest back: nothing is counted,
// and another worker goes on.
func TestPreemption(t *testing.T) {
	c := cluster.Get(t)
	letPreempt(t, c)
	begun := filepath.Join(t.TempDir(), "begun")
	vars := mergeVars(drivers["raw_exec"].vars(c), map[string]string{"count": "1", "slots": "2", "drain_seconds": "8", "worker_resources": `{ cpu = 50, memory = 4000 }`, "worker_command": "/bin/sh",
		"worker_args": `["-c", "read x; if [ $x = short ]; then sleep 3; elif mkdir ` + begun + `; then sleep 60; fi; echo $x"]`})
	q := run(t, "work-queue", "preempted-raw-exec", 2, vars)
	for _, id := range []string{"short", "long"} {
		q.retinue("worker", id+"\n", "queue", "put", "--id", id, "-")
	}
	harness.Eventually(t, 30*time.Second, "both items run", func(context.Context) error {
		out := q.retinue("worker", "", "queue", "ls")
		if _, err := os.Stat(begun); err != nil || strings.Count(out, "running") != 2 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	old := q.in("worker")[0]
	urgent(t, q, old.NodeID)

	records := q.until(q.ID, 2)
	for _, id := range []string{"short", "long"} {
		rec := records[id]
		if there := rec.Node == old.NodeName; rec.State != item.Done || rec.N != 1 || len(rec.Attempts) != 0 || strings.TrimSpace(string(rec.Result)) != id || there != (id == "short") {
			t.Errorf("%s, on %s before: %+v", id, old.NodeName, rec)
		}
	}
	a, _, err := c.Nomad.Allocations().Info(old.ID, nil)
	if err != nil || a.DesiredStatus != "evict" || a.PreemptedByAllocation == "" {
		t.Errorf("the worker was not preempted: %v, %+v", err, a)
	}
}

// letPreempt lets jobs of type service push others aside, which Nomad does not unless it is told to.
func letPreempt(t *testing.T, c *harness.Cluster) {
	t.Helper()
	operator := c.Nomad.Operator()
	now, _, err := operator.SchedulerGetConfiguration(nil)
	if err != nil {
		t.Fatal(err)
	}
	before := *now.SchedulerConfig
	t.Cleanup(func() {
		if _, _, err := operator.SchedulerSetConfiguration(&before, nil); err != nil {
			t.Error(err)
		}
	})
	now.SchedulerConfig.PreemptionConfig.ServiceSchedulerEnabled = true
	if _, _, err := operator.SchedulerSetConfiguration(now.SchedulerConfig, nil); err != nil {
		t.Fatal(err)
	}
}

// urgent runs a job on a node that wants half of what q's worker there has, besides all that is free.
func urgent(t *testing.T, q *queue, nodeID string) {
	t.Helper()
	nodes := q.c.Nomad.Nodes()
	node, _, err := nodes.Info(nodeID, nil)
	if err != nil {
		t.Fatal(err)
	}
	free := node.NodeResources.Memory.MemoryMB
	if node.ReservedResources != nil {
		free -= int64(node.ReservedResources.Memory.MemoryMB)
	}
	allocs, _, err := nodes.Allocations(nodeID, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range allocs {
		if a.ClientTerminalStatus() {
			continue
		}
		for _, task := range a.AllocatedResources.Tasks {
			free -= task.Memory.MemoryMB
		}
	}
	task := nomadapi.NewTask("urgent", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"600"})
	cpu, memory := 20, int(free)+2000
	task.Resources = &nomadapi.Resources{CPU: &cpu, MemoryMB: &memory}
	group := nomadapi.NewTaskGroup("urgent", 1).AddTask(task)
	job := nomadapi.NewServiceJob("urgent", "urgent", "global", 90).AddDatacenter("dc1").AddTaskGroup(group)
	job.Constraints = []*nomadapi.Constraint{nomadapi.NewConstraint("${node.unique.id}", "=", nodeID)}
	t.Cleanup(func() {
		if _, _, err := q.c.Nomad.Jobs().Deregister("urgent", true, nil); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := q.c.Nomad.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
}

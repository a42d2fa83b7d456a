// Package nomadkit runs the embedded job specifications on a Nomad cluster the
// way `nomad job run` does: parsed by the cluster, registered, awaited.
package nomadkit

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/hint"
)

// Parse turns an HCL job specification into a job. The values of vars are HCL
// expressions; see Literal.
func Parse(ctx context.Context, client *nomad.Client, source string, vars map[string]string) (*nomad.Job, error) {
	var job nomad.Job
	req := &nomad.JobsParseRequest{JobHCL: source, Variables: varFile(vars)}
	if _, err := client.Raw().Write("/v1/jobs/parse", req, &job, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return nil, fmt.Errorf("parse the job specification: %w", err)
	}
	return &job, nil
}

// Literal quotes a string as an HCL expression that yields exactly this
// string, so that ${...} in it is left for Nomad to interpolate at run time.
func Literal(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "${", "$${", "%{", "%%{").Replace(s)
	return `"` + s + `"`
}

func varFile(vars map[string]string) string {
	lines := make([]string, 0, len(vars))
	for name, value := range vars {
		lines = append(lines, name+" = "+value+"\n")
	}
	sort.Strings(lines)
	return strings.Join(lines, "")
}

// Register submits the job and returns the ID of its evaluation.
func Register(ctx context.Context, client *nomad.Client, job *nomad.Job) error {
	if _, _, err := client.Jobs().Register(job, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("register job %s: %w", *job.ID, err)
	}
	return nil
}

// Purge stops a job, waits until its allocations have ended and forgets it. A job that is not there is no error.
func Purge(ctx context.Context, client *nomad.Client, id string) error {
	if _, _, err := client.Jobs().Info(id, (&nomad.QueryOptions{}).WithContext(ctx)); err != nil {
		if strings.Contains(err.Error(), "404") {
			return nil
		}
		return fmt.Errorf("look up job %s: %w", id, err)
	}
	if _, _, err := client.Jobs().Deregister(id, false, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("stop job %s: %w", id, err)
	}
	err := poll(ctx, client, id, func(allocs []*nomad.AllocationListStub) (bool, error) {
		for _, a := range allocs {
			if a.ClientStatus == nomad.AllocClientStatusRunning || a.ClientStatus == nomad.AllocClientStatusPending {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("wait for job %s to end: %w", id, err)
	}
	if _, _, err := client.Jobs().Deregister(id, true, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("purge job %s: %w", id, err)
	}
	return nil
}

// WaitRunning returns the allocations of a job when count of them run with every task up.
func WaitRunning(ctx context.Context, client *nomad.Client, id string, count int) ([]*nomad.AllocationListStub, error) {
	var up []*nomad.AllocationListStub
	var last string
	err := poll(ctx, client, id, func(allocs []*nomad.AllocationListStub) (bool, error) {
		up = up[:0]
		for _, a := range allocs {
			if a.DesiredStatus != nomad.AllocDesiredStatusRun {
				continue
			}
			if allTasksRun(a) {
				up = append(up, a)
			} else if event := lastFailure(a); event != "" {
				last = event
			}
		}
		return len(up) >= count, nil
	})
	if err != nil {
		err = fmt.Errorf("wait for %d running allocations of job %s, %d run: %w", count, id, len(up), err)
		if last == "" {
			last = blocked(client, id)
		}
		return nil, hint.Wrap(err, "%s; `nomad job status %s` tells more", last, id)
	}
	return up, nil
}

// poll calls done with the job's allocations after every change until it says true.
func poll(ctx context.Context, client *nomad.Client, id string, done func([]*nomad.AllocationListStub) (bool, error)) error {
	var index uint64
	for {
		q := (&nomad.QueryOptions{WaitIndex: index, WaitTime: 2 * time.Second}).WithContext(ctx)
		allocs, meta, err := client.Jobs().Allocations(id, false, q)
		if err != nil {
			return err
		}
		if ok, err := done(allocs); ok || err != nil {
			return err
		}
		index = meta.LastIndex
	}
}

func allTasksRun(a *nomad.AllocationListStub) bool {
	if a.ClientStatus != nomad.AllocClientStatusRunning {
		return false
	}
	for _, task := range a.TaskStates {
		if task.State != "running" {
			return false
		}
	}
	return len(a.TaskStates) > 0
}

// lastFailure says why an allocation does not run, in Nomad's words.
func lastFailure(a *nomad.AllocationListStub) string {
	for name, task := range a.TaskStates {
		for i := len(task.Events) - 1; i >= 0; i-- {
			if e := task.Events[i]; e.FailsTask || e.Type == nomad.TaskDriverFailure || e.Type == nomad.TaskSetupFailure {
				return fmt.Sprintf("task %s: %s", name, e.DisplayMessage)
			}
		}
	}
	return ""
}

// blocked says which constraint keeps the job from being placed.
func blocked(client *nomad.Client, id string) string {
	evals, _, err := client.Jobs().Evaluations(id, nil)
	if err != nil {
		return "its evaluations cannot be read"
	}
	for _, e := range evals {
		for group, m := range e.FailedTGAllocs {
			var reasons []string
			for reason := range m.ConstraintFiltered {
				reasons = append(reasons, reason)
			}
			for reason := range m.DimensionExhausted {
				reasons = append(reasons, reason+" exhausted")
			}
			return fmt.Sprintf("group %s cannot be placed on %d nodes: %s", group, m.NodesEvaluated, strings.Join(reasons, ", "))
		}
	}
	return "no allocation has failed yet"
}

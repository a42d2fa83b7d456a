package scale

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"retinue/internal/hint"
	"retinue/internal/taskapi"
)

// Group is a task group as Nomad has it.
type Group struct {
	Count   int
	Placed  int // allocations that run or are being started
	Running int
	Index   uint64 // of the job; a change names it
	Stopped bool   // the job is stopped
}

// Cluster is what a scaler needs of Nomad.
type Cluster interface {
	Group(ctx context.Context, job, group string) (Group, error)
	// Scale sets the count, if the job has not changed since index. errChanged: it has. errBlocked: a deployment is under way.
	Scale(ctx context.Context, job, group string, count int, index uint64, message string) error
}

var (
	errChanged = errors.New("the job has changed meanwhile")
	errBlocked = errors.New("a deployment of the job is under way, and Nomad scales no job meanwhile")
)

// Nomad is the Cluster behind the task API.
type Nomad struct{ API *taskapi.Client }

// Group implements Cluster. The index comes first, so that a change between the two looks is noticed; it comes from the list of jobs, because
// what the scale status calls JobModifyIndex is the job's ModifyIndex, which Nomad does not compare (1.11.3).
func (n Nomad) Group(ctx context.Context, job, group string) (Group, error) {
	var stubs []struct {
		ID             string
		JobModifyIndex uint64
	}
	if _, err := n.API.Do(ctx, http.MethodGet, "/v1/jobs", url.Values{"prefix": {job}}, nil, &stubs); err != nil {
		return Group{}, fmt.Errorf("look for job %s: %w", job, err)
	}
	index := uint64(0)
	for _, stub := range stubs {
		if stub.ID == job {
			index = stub.JobModifyIndex
		}
	}
	if index == 0 {
		return Group{}, hint.Wrap(fmt.Errorf("there is no job %q", job), "--job names the job of the workers, in this task's namespace")
	}
	var out struct {
		JobStopped bool
		TaskGroups map[string]struct{ Desired, Placed, Running int }
	}
	if _, err := n.API.Do(ctx, http.MethodGet, "/v1/job/"+url.PathEscape(job)+"/scale", nil, nil, &out); err != nil {
		return Group{}, fmt.Errorf("look at job %s: %w", job, err)
	}
	g, ok := out.TaskGroups[group]
	if !ok {
		return Group{}, hint.Wrap(fmt.Errorf("job %s has no group %q", job, group), "--group names the group of the workers")
	}
	return Group{Count: g.Desired, Placed: g.Placed, Running: g.Running, Index: index, Stopped: out.JobStopped}, nil
}

// Scale implements Cluster.
func (n Nomad) Scale(ctx context.Context, job, group string, count int, index uint64, message string) error {
	in := map[string]any{"Count": count, "Target": map[string]string{"Job": job, "Group": group}, "Message": message, "JobModifyIndex": index}
	_, err := n.API.Do(ctx, http.MethodPut, "/v1/job/"+url.PathEscape(job)+"/scale", nil, in, nil)
	_, said := taskapi.Status(err)
	switch {
	case err == nil:
		return nil
	case strings.Contains(said, "blocked due to active deployment"):
		return hint.Wrap(errBlocked, "it ends by itself; workers whose group has update { max_parallel = 0 } make none when they are scaled")
	case strings.Contains(said, "conflicting job modify index"), strings.Contains(said, "Enforcing job modify index"):
		return errChanged
	}
	return fmt.Errorf("scale group %s of job %s: %w", group, job, err)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
)

// taskRun is one life of a task.
type taskRun struct {
	start, stop time.Duration
	hooks       []time.Duration // of the stop, as the driver's events say
}

const benchTask = "app"

// taskJob is a job of one task that runs the demonstration's server.
func (l *lifecycleRig) taskJob(id, driver, client string, count int, lifecycle map[string]any) *nomad.Job {
	task := nomad.NewTask(benchTask, driver).SetConfig("command", "/usr/local/bin/retinue").SetConfig("args", []string{"demo-app", "lifecycle"})
	switch driver {
	case devcluster.DriverRawExec:
		task.SetConfig("command", l.retinue)
	case devcluster.DriverDocker:
		task.SetConfig("image", l.cluster.JobVars()["retinue_image"]).SetConfig("network_mode", "host")
	}
	if lifecycle != nil {
		task.SetConfig("lifecycle", []map[string]any{lifecycle})
	}
	task.Require(&nomad.Resources{CPU: new(20), MemoryMB: new(64)})
	task.KillTimeout, task.KillSignal = new(10*time.Second), "SIGTERM"
	group := nomad.NewTaskGroup("g", count)
	group.Networks = []*nomad.NetworkResource{{Mode: "host", DynamicPorts: []nomad.Port{{Label: "http"}}}}
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: new(0), Mode: new("fail")}
	group.ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: new(110)}
	group.AddTask(task)
	job := nomad.NewServiceJob(id, id, "global", 50)
	job.Datacenters = []string{"*"}
	return job.AddTaskGroup(group).Constrain(nomad.NewConstraint("${node.unique.name}", "=", client))
}

// httpHooks are the two hooks of a stop that are measured.
func httpHooks() map[string]any {
	return map[string]any{
		"pre_drain": map[string]any{"http": "POST /retinue/v1/pre-drain"},
		"pre_stop":  map[string]any{"http": "GET /retinue/v1/inflight"},
	}
}

// life runs a contender's task once, from its start to its end.
func (l *lifecycleRig) life(ctx context.Context, c *taskContender) (taskRun, error) {
	client, hooks := l.builtIn, map[string]any(nil)
	if c.plugin {
		client = l.plugin
	}
	if c.hooks {
		hooks = httpHooks()
	}
	l.serial++
	id := fmt.Sprintf("life-%d", l.serial)
	if _, _, err := l.cluster.Nomad.Jobs().Register(l.taskJob(id, c.driver, client, 1, hooks), nil); err != nil {
		return taskRun{}, err
	}
	defer l.cluster.Nomad.Jobs().Deregister(id, true, nil)
	up, err := l.serving(ctx, id, 1)
	if err != nil {
		return taskRun{}, err
	}
	if _, _, err := l.cluster.Nomad.Jobs().Deregister(id, false, nil); err != nil {
		return taskRun{}, err
	}
	var ended *nomad.Allocation
	if err := eventually(ctx, time.Minute, id+" ends", func(context.Context) error {
		if ended, _, err = l.cluster.Nomad.Allocations().Info(up[0].ID, nil); err == nil && ended.ClientStatus != nomad.AllocClientStatusComplete {
			err = fmt.Errorf("it is %s", ended.ClientStatus)
		}
		return err
	}); err != nil {
		return taskRun{}, err
	}
	run, err := lifeOf(ended.TaskStates[benchTask].Events)
	if err != nil {
		return run, err
	}
	want := 0
	if c.hooks {
		want = len(hooks)
	}
	if len(run.hooks) != want {
		return run, fmt.Errorf("the events tell of %d hooks, want %d", len(run.hooks), want)
	}
	return run, nil
}

// serving waits until the tasks of a job answer their users.
func (l *lifecycleRig) serving(ctx context.Context, id string, count int) (out []*nomad.Allocation, err error) {
	err = eventually(ctx, time.Minute, id+" serves", func(ctx context.Context) error {
		stubs, _, err := l.cluster.Nomad.Jobs().Allocations(id, true, nil)
		if err != nil {
			return err
		}
		out = nil
		for _, stub := range stubs {
			if stub.ClientStatus == nomad.AllocClientStatusFailed {
				var told []string
				for _, e := range stub.TaskStates[benchTask].Events {
					told = append(told, e.DisplayMessage)
				}
				return fmt.Errorf("it has failed: %s", strings.Join(told, "; "))
			}
			if s := stub.TaskStates[benchTask]; s == nil || s.State != "running" {
				return errors.New("it does not run")
			}
			alloc, _, err := l.cluster.Nomad.Allocations().Info(stub.ID, nil)
			if err != nil {
				return err
			}
			for _, port := range alloc.AllocatedResources.Shared.Ports {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/ready", port.HostIP, port.Value), nil)
				if err != nil {
					return err
				}
				req.Close = true // a connection that is kept would be one to wait for in the stop
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					return err
				}
				resp.Body.Close()
			}
			out = append(out, alloc)
		}
		if len(out) != count {
			return fmt.Errorf("%d of %d run", len(out), count)
		}
		return nil
	})
	return out, err
}

// lifeOf reads a life from the events of its task.
func lifeOf(events []*nomad.TaskEvent) (run taskRun, err error) {
	at := map[string]time.Time{}
	for _, e := range events {
		if _, twice := at[e.Type]; !twice {
			at[e.Type] = time.Unix(0, e.Time)
		}
		for _, hook := range []string{"pre_drain", "pre_stop"} {
			said, ok := e.Details[hook]
			if !ok {
				continue
			}
			fields := strings.Fields(said) // a hook that failed says more than how long it took
			took, err := time.ParseDuration(fields[len(fields)-1])
			if err != nil || strings.HasPrefix(said, "failed") {
				return run, fmt.Errorf("%s %s", hook, said)
			}
			run.hooks = append(run.hooks, took)
		}
	}
	for _, name := range []string{nomad.TaskSetup, nomad.TaskStarted, nomad.TaskKilling, nomad.TaskKilled} {
		if at[name].IsZero() {
			return run, fmt.Errorf("no event %q", name)
		}
	}
	run.start, run.stop = at[nomad.TaskStarted].Sub(at[nomad.TaskSetup]), at[nomad.TaskKilled].Sub(at[nomad.TaskKilling])
	return run, nil
}

// hooked is what the hooks of the stop took in all.
func (r taskRun) hooked() (sum time.Duration) {
	for _, d := range r.hooks {
		sum += d
	}
	return sum
}

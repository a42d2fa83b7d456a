package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/internal/toolchain"
)

const configDispatch = `worker {
    mode  = "dispatch"
    job   = "QUEUE"
    nomad = "NOMAD"
    slots = SLOTS
  }
  output { commit = "none" }`

// dispatch compares mode dispatch with a loop that does what people write: dispatch, wait for the allocation, acknowledge. Both make children of
// jobs that are the same, and have as many under way at once.
func (q *queueRig) dispatch(ctx context.Context, report *Report) (err error) {
	if q.brokers["redis"] == nil {
		return nil
	}
	nomadBin, err := q.tool(ctx, toolchain.Nomad, "RETINUE_TEST_NOMAD")
	if err != nil {
		return err
	}
	consulBin, err := q.tool(ctx, toolchain.Consul, "RETINUE_TEST_CONSUL")
	if err != nil {
		return err
	}
	q.say("starting a cluster of one node")
	cluster, err := devcluster.Up(ctx, devcluster.Config{Dir: filepath.Join(q.dir, "c"), PortOffset: devcluster.AutoPorts, Docker: "off", DriverPlugin: "off",
		NomadBin: nomadBin, ConsulBin: consulBin, RetinueBin: q.retinue}, func(devcluster.Step) {})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Down(context.WithoutCancel(ctx), nil)) }()
	api, err := cluster.Nomad()
	if err != nil {
		return err
	}
	loop := q.loop("redis", "dispatch")
	loop.config, loop.helper = "a Nomad job for each", nil
	loop.start = func() (*process, error) {
		return q.rig.spawn.start(loop.queue, nil, q.hand, "loop", "-broker", q.brokers["redis"].URL, "-queue", loop.queue, "-slots", strconv.Itoa(queueSlots), "-call", "dispatch",
			"-nomad", cluster.NomadAddr(), "-count", loop.counter)
	}
	ours := q.coordinator("redis", queueName, "dispatch", configDispatch)
	ours.nomad = cluster.NomadAddr()
	for _, c := range []*queuer{loop, ours} {
		publish := c.publish
		c.publish = func(ctx context.Context, n, size int) error {
			if _, _, err := api.Jobs().Register(parentJob(c.queue), nil); err != nil {
				return fmt.Errorf("register the parameterized job: %w", err)
			}
			return publish(ctx, n, size)
		}
		c.count = func(context.Context) (int, error) {
			summary, _, err := api.Jobs().Summary(c.queue, nil)
			if err != nil || summary.Children == nil {
				return 0, err
			}
			return int(summary.Children.Dead), nil
		}
	}
	return q.rounds(ctx, "A Nomad job for each item: redis", "Items of 1 KiB as the payload of a child of a parameterized job, raw_exec of `/bin/true` without logs, on a cluster of one node with Raft on disk. Counted are children that have ended.",
		"redis, dispatch", []*queuer{loop, ours}, q.amounts.dispatch, kibi, report)
}

// parentJob is what both make children of.
func parentJob(id string) *nomad.Job {
	zero, one, fail, off := 0, 1, "fail", false
	group := nomad.NewTaskGroup("item", one)
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: &zero, Mode: &fail}
	group.ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: &zero, Unlimited: &off}
	disabled, cpu, memory := true, 20, 16
	group.AddTask(&nomad.Task{Name: "worker", Driver: "raw_exec", Config: map[string]any{"command": "/bin/true"}, LogConfig: &nomad.LogConfig{Disabled: &disabled},
		Resources: &nomad.Resources{CPU: &cpu, MemoryMB: &memory}})
	job := nomad.NewBatchJob(id, id, "global", 50).AddTaskGroup(group)
	job.Datacenters = []string{"*"}
	job.ParameterizedJob = &nomad.ParameterizedJobConfig{Payload: "optional", MetaOptional: []string{"retinue_item", "retinue_stage", "retinue_attempt"}}
	return job
}

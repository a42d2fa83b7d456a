package driver

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
)

// Nomad's docker driver takes the end of its connection to the engine for the end of the container. When an engine is restarted,
// containers may go on (live-restore), and would run a second time; and what they ended with is not known. So an end without an
// exit code is not believed before the engine has said it.

// engineAsk is the time between two questions to an engine that is away.
const engineAsk = 250 * time.Millisecond

func (d *Driver) waitTask(ctx context.Context, req *proto.WaitTaskRequest) (*proto.WaitTaskResponse, error) {
	resp, err := d.tasks.WaitTask(ctx, req)
	t := d.task(req.TaskId)
	if err != nil || t == nil {
		return resp, err
	}
	return t.trueEnd(ctx, resp)
}

// trueEnd is the end of the task as the engine has it, where the inner driver has only lost sight of its container. If it still
// runs, this process ends, and with it the inner driver's: the next one finds the container again.
func (t *task) trueEnd(ctx context.Context, resp *proto.WaitTaskResponse) (*proto.WaitTaskResponse, error) {
	r := resp.GetResult()
	if t.container == "" || t.d.name != "docker" || resp.GetErr() == "" || r.GetExitCode() != 0 || r.GetSignal() != 0 || r.GetOomKilled() {
		return resp, nil
	}
	engine := t.d.current().engine
	for told := false; ; {
		c, err := engine.inspect(ctx, t.container)
		switch {
		case errors.Is(err, errAway):
			if !told {
				told = true
				t.log.Warn("the Docker engine is away; waiting for it, to see whether the container has gone on", "error", err)
			}
			select {
			case <-time.After(engineAsk):
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		case err != nil:
			t.log.Warn("cannot ask the engine for the end of the container", "error", err)
			return resp, nil
		case c == nil:
			return resp, nil
		case c.Running:
			t.log.Warn("the Docker engine was restarted and the container has gone on: the driver is started anew, to find it again")
			t.d.endForRecovery()
			return nil, errEnds
		}
		return &proto.WaitTaskResponse{Result: &proto.ExitResult{ExitCode: int32(c.ExitCode), OomKilled: c.OOMKilled}}, nil
	}
}

// endForRecovery ends the process: the agent starts it again, and has all tasks recovered.
func (d *Driver) endForRecovery() { d.endOnce.Do(func() { close(d.end) }) }

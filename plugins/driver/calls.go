package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	structsproto "github.com/hashicorp/nomad/plugins/shared/structs/proto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue/internal/lifecycle"
)

// kept is what outlives the agent in the state of the inner driver: the agent itself
// forgets a task's configuration when it ends.
type kept struct {
	Format int    `json:"format"`
	Block  []byte `json:"block,omitempty"` // msgpack of the lifecycle block
	ID     string `json:"id"`              // of this run of the task
}

const keptFormat = 1

func (d *Driver) startTask(ctx context.Context, req *proto.StartTaskRequest) (*proto.StartTaskResponse, error) {
	config := req.GetTask()
	if config == nil {
		return d.tasks.StartTask(ctx, req)
	}
	// One that the agent has asked for before, and lost the answer of when it was killed: it starts the task again, by another ID.
	for _, old := range d.others(config) {
		d.log.Warn("ending a task that the agent has forgotten while it was started", "task", old.id)
		d.abandon(ctx, old)
	}
	cfg, err := taskLifecycle(config.MsgpackDriverConfig, config.Env)
	if err != nil {
		return nil, startError(err, false)
	}
	rest, block, err := cutKey(config.MsgpackDriverConfig, lifecycleKey)
	if err != nil {
		return nil, startError(fmt.Errorf("configuration of the task: %w", err), false)
	}
	config.MsgpackDriverConfig = rest
	t := d.newTask(config, cfg)
	t.start = req
	t.addEnv(config)
	if t.interrupted() {
		t.clear(ctx)
	}
	id := uuid.NewString()
	open := func(o lifecycle.Options) (*lifecycle.Engine, error) { return lifecycle.New(o), nil }
	if err := t.begin(open, id, d.current()); err != nil {
		return nil, startError(err, true)
	}
	d.add(t)
	d.remember(config)
	if err := t.engine.Start(context.WithoutCancel(ctx)); err != nil {
		if d.ends() {
			return nil, errEnds // the process may run: whoever comes next finds what is written down, and ends it
		}
		d.abandon(context.WithoutCancel(ctx), t) // Nomad sees a start that failed and destroys nothing
		var inner innerError
		if errors.As(err, &inner) {
			if d.name == "docker" && d.current().engine.away(ctx) {
				return nil, startError(inner.error, true) // it comes back: the restart policy decides, which else has no say
			}
			return nil, inner.error // as the inner driver said it
		}
		return nil, startError(err, true)
	}
	resp := t.started
	if h := resp.GetHandle(); h != nil {
		value, err := json.Marshal(kept{keptFormat, block, id})
		if err != nil {
			return nil, startError(fmt.Errorf("keep the lifecycle: %w", err), false)
		}
		spliced, err := splice(h.DriverState, value)
		if err != nil {
			d.log.Warn("the hooks of this task will be lost when the agent restarts", "task", t.id, "error", err)
			return resp, nil
		}
		h.DriverState = spliced
	}
	return resp, nil
}

// others lists the tasks of which another run is to start.
func (d *Driver) others(config *proto.TaskConfig) (out []*task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.running {
		if t.alloc == config.AllocId && t.name == config.Name {
			out = append(out, t)
		}
	}
	return out
}

// abandon ends a task whose start came to nothing, with all that it has.
func (d *Driver) abandon(ctx context.Context, t *task) {
	t.abandoned.Do(func() {
		d.remove(t)
		t.close()
		if t.giveUp() {
			if _, err := d.tasks.DestroyTask(ctx, &proto.DestroyTaskRequest{TaskId: t.id, Force: true}); err != nil {
				d.log.Error("cannot destroy a task whose start failed", "task", t.id, "error", err)
			}
		}
		t.clearGroup(ctx)
		t.forget()
	})
}

// errEnds is what the agent gets of every call that the end of this process cuts off. It takes it for a crash of the plugin, and asks again.
var errEnds = status.Error(codes.Unavailable, "the driver ends")

// startError is what Nomad understands of a failed start: whether its restart policy applies.
func startError(err error, again bool) error {
	st, detailed := status.New(codes.FailedPrecondition, err.Error()).WithDetails(&structsproto.RecoverableError{Recoverable: again})
	if detailed != nil {
		return err
	}
	return st.Err()
}

// taskLifecycle is the lifecycle of a task: from its block, else from its meta.
func taskLifecycle(config []byte, env map[string]string) (*lifecycle.Config, error) {
	block, err := lifecycle.DecodeTaskConfig(config)
	if err != nil || block != nil {
		return block, err
	}
	return lifecycle.FromMeta(env)
}

func (d *Driver) recoverTask(ctx context.Context, req *proto.RecoverTaskRequest) (*proto.RecoverTaskResponse, error) {
	handle := req.GetHandle()
	if handle == nil || handle.Config == nil {
		return d.tasks.RecoverTask(ctx, req)
	}
	inner, value, err := unsplice(handle.DriverState)
	if err != nil {
		// Not spliced by this driver: an inner driver whose state is no map.
		inner, value = handle.DriverState, nil
	}
	k, cfg, err := recoverLifecycle(value, handle.Config.Env)
	if err != nil {
		// To fail here would end the task. It goes on without its hooks.
		d.log.Error("the hooks of a task are lost", "task", handle.Config.Id, "error", err)
	}
	handle.DriverState = inner
	if handle.Config.MsgpackDriverConfig, _, err = cutKey(handle.Config.MsgpackDriverConfig, lifecycleKey); err != nil {
		return nil, fmt.Errorf("configuration of the task: %w", err)
	}
	resp, err := d.tasks.RecoverTask(ctx, req)
	if err != nil {
		return nil, err
	}
	t := d.newTask(handle.Config, cfg)
	t.container, t.known = containerID(inner), true
	open := func(o lifecycle.Options) (*lifecycle.Engine, error) {
		e, err := lifecycle.Recover(o, t.load())
		if err != nil {
			t.log.Error("the state of the lifecycle is lost; the task counts as running", "error", err)
			e, err = lifecycle.Recover(o, nil)
		}
		return e, err
	}
	// One that this process has already, because the agent recovers it again, holds the sockets.
	if old := d.task(t.id); old != nil {
		d.remove(old)
		old.close()
	}
	if err := t.begin(open, k.ID, d.current()); err != nil {
		return nil, fmt.Errorf("recover the lifecycle: %w", err)
	}
	d.add(t)
	d.remember(handle.Config)
	t.watch()
	return resp, nil
}

// recoverLifecycle reads what startTask kept. A task without was started by the
// driver that is built into the agent.
func recoverLifecycle(value []byte, env map[string]string) (kept, *lifecycle.Config, error) {
	k := kept{ID: uuid.NewString()}
	if value != nil {
		if err := json.Unmarshal(value, &k); err != nil {
			return k, nil, fmt.Errorf("read the kept lifecycle: %w", err)
		}
		if k.Format != keptFormat {
			return k, nil, fmt.Errorf("the kept lifecycle has format %d, this driver reads %d", k.Format, keptFormat)
		}
	}
	var config []byte
	if k.Block != nil {
		config = append(appendString(appendMapHeader(nil, 1), []byte(lifecycleKey)), k.Block...)
	}
	cfg, err := taskLifecycle(config, env)
	return k, cfg, err
}

func (d *Driver) stopTask(ctx context.Context, req *proto.StopTaskRequest) (*proto.StopTaskResponse, error) {
	t := d.task(req.TaskId)
	if t == nil {
		return d.tasks.StopTask(ctx, req)
	}
	t.thawForeign(ctx)
	err := t.engine.Stop(ctx, lifecycle.StopRequest{Signal: req.Signal, Timeout: req.Timeout.AsDuration()})
	var inner innerError
	switch {
	case err != nil && d.ends():
		return nil, errEnds
	case errors.As(err, &inner):
		return nil, inner.error
	case err != nil:
		return nil, err
	}
	return &proto.StopTaskResponse{}, nil
}

func (d *Driver) signalTask(ctx context.Context, req *proto.SignalTaskRequest) (*proto.SignalTaskResponse, error) {
	t := d.task(req.TaskId)
	if t == nil {
		return d.tasks.SignalTask(ctx, req)
	}
	handled, err := t.engine.Signal(ctx, req.Signal)
	if err != nil {
		return nil, err
	}
	if handled {
		return &proto.SignalTaskResponse{}, nil
	}
	return d.tasks.SignalTask(ctx, req)
}

// waitForExit bounds the wait for the news of an end that the agent has already.
const waitForExit = 5 * time.Second

func (d *Driver) destroyTask(ctx context.Context, req *proto.DestroyTaskRequest) (*proto.DestroyTaskResponse, error) {
	t := d.task(req.TaskId)
	if t == nil {
		return d.tasks.DestroyTask(ctx, req)
	}
	if !req.Force {
		select {
		case <-t.exited:
		case <-time.After(waitForExit):
		case <-ctx.Done():
		}
	}
	resp, err := d.tasks.DestroyTask(ctx, req)
	if err != nil {
		return nil, err
	}
	t.clearGroup(ctx)                                       // nothing, but where the executor was killed
	t.engine.Exited(lifecycle.ExitStatus{Err: "destroyed"}) // counts only where no end is known
	if err := t.engine.Destroy(ctx); err != nil {
		d.log.Warn("the lifecycle of a destroyed task does not end", "task", t.id, "error", err)
		t.engine.Close()
	}
	d.remove(t)
	t.forget()
	d.rememberGroup(t)
	return resp, nil
}

func (d *Driver) task(id string) *task {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running[id]
}

func (d *Driver) current() settings {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings
}

func (d *Driver) add(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running[t.id] = t
}

func (d *Driver) remove(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running[t.id] == t {
		delete(d.running, t.id)
	}
}

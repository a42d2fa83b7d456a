package driver

import (
	"errors"
	"io"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"google.golang.org/grpc"
)

// emit hands an event to whoever listens. It does not block: when nobody listens for
// long, the newest are lost, not the tasks held up.
func (d *Driver) emit(ev *proto.DriverTaskEvent) {
	select {
	case d.events <- ev:
	default:
		d.log.Warn("nobody listens for task events", "task", ev.TaskId, "lost", ev.Message)
	}
}

// taskEvents mixes the inner driver's events with those of the hooks.
func (d *Driver) taskEvents(_ any, agent grpc.ServerStream) error {
	req := new(proto.TaskEventsRequest)
	if err := agent.RecvMsg(req); err != nil {
		return err
	}
	ctx := agent.Context()
	stream, err := d.tasks.TaskEvents(ctx, req)
	if err != nil {
		return err
	}
	inner, ended := make(chan *proto.DriverTaskEvent), make(chan error, 1)
	go func() {
		for {
			ev, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case inner <- ev:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var ev *proto.DriverTaskEvent
		select {
		case ev = <-inner:
		case ev = <-d.events:
		case err := <-ended:
			return endOfStream(err)
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := agent.SendMsg(ev); err != nil {
			return err
		}
	}
}

// endOfStream is nil for the end that a stream comes to by itself.
func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

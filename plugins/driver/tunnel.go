package driver

import (
	"errors"
	"fmt"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"retinue/internal/lifecycle/manage"
)

// execTaskStreaming answers `nomad alloc exec ALLOC @retinue GET /v1/...` by itself:
// those who may run commands in the task may also ask its driver. Any other command is
// the inner driver's.
func (d *Driver) execTaskStreaming(_ any, agent grpc.ServerStream) error {
	first := new(frame)
	if err := agent.RecvMsg(first); err != nil {
		return endOfStream(err)
	}
	req := new(proto.ExecTaskStreamingRequest)
	if err := d.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(first.body)}, req); err != nil {
		return fmt.Errorf("first message of exec: %w", err)
	}
	command := req.GetSetup().GetCommand()
	if len(command) == 0 || command[0] != manage.Prefix {
		return d.relay(agent, "/hashicorp.nomad.plugins.drivers.proto.Driver/ExecTaskStreaming", first)
	}
	t := d.task(req.Setup.TaskId)
	if t == nil {
		return errors.New("no such task")
	}
	code, _ := manage.ServeExec(agent.Context(), t.api, command,
		streamWriter(func(op *proto.ExecTaskStreamingIOOperation) error {
			return agent.SendMsg(&proto.ExecTaskStreamingResponse{Stdout: op})
		}),
		streamWriter(func(op *proto.ExecTaskStreamingIOOperation) error {
			return agent.SendMsg(&proto.ExecTaskStreamingResponse{Stderr: op})
		}))
	return agent.SendMsg(&proto.ExecTaskStreamingResponse{Exited: true, Result: &proto.ExitResult{ExitCode: int32(code)}})
}

// streamWriter sends what is written as output of the exec.
type streamWriter func(*proto.ExecTaskStreamingIOOperation) error

func (send streamWriter) Write(p []byte) (int, error) {
	const most = 1 << 20 // the agent takes messages of up to 4 MiB
	for rest := p; len(rest) > 0; {
		n := min(len(rest), most)
		if err := send(&proto.ExecTaskStreamingIOOperation{Data: rest[:n]}); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

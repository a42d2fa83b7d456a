package nomadkit

import (
	"context"
	"io"

	nomad "github.com/hashicorp/nomad/api"
)

// AskDriver sends a request to the driver of a task, by Nomad's exec, and returns the exit code that the driver answers with. It sends
// no input, and not the end of one either: a frame of input that reaches Nomad 1.11 when a short command has ended closes the stream
// before what the command has said (execStreamImpl in command/agent/alloc_endpoint.go: the input's failed write is looked at before
// the frames that are there), and the end of an empty input is such a frame. It is not for commands that run as processes: those
// of raw_exec and exec are waited for until their input ends.
func AskDriver(ctx context.Context, client *nomad.Client, alloc *nomad.Allocation, task string, request []string, stdout, stderr io.Writer) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return client.Allocations().Exec(ctx, alloc, task, false, request, silent{ctx}, stdout, stderr, nil, nil)
}

// silent has nothing to read for as long as its context lasts.
type silent struct{ ctx context.Context }

func (s silent) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

package driver

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// relay joins a call of the agent to the same call of the inner driver: first, when
// it is not nil, is a message that was already read from the agent. It returns what
// the inner driver returned.
func (d *Driver) relay(agent grpc.ServerStream, method string, first *frame) error {
	ctx, cancel := context.WithCancel(agent.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md.Copy())
	}
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	inner, err := d.inner.NewStream(ctx, desc, method, grpc.ForceCodecV2(d.codec))
	if err != nil {
		return err
	}

	// What the agent sends. A failure ends the whole call by way of the context.
	go func() {
		for f := first; ; f = nil {
			if f == nil {
				f = new(frame)
				if err := agent.RecvMsg(f); err != nil {
					if errors.Is(err, io.EOF) {
						inner.CloseSend()
					} else {
						cancel()
					}
					return
				}
			}
			if inner.SendMsg(f) != nil {
				return // RecvMsg below tells why
			}
		}
	}()

	for sentHeader := false; ; {
		f := new(frame)
		if err := inner.RecvMsg(f); err != nil {
			agent.SetTrailer(inner.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if !sentHeader {
			sentHeader = true
			if md, err := inner.Header(); err == nil {
				if err := agent.SetHeader(md); err != nil {
					return fmt.Errorf("header of %s: %w", method, err)
				}
			}
		}
		if err := agent.SendMsg(f); err != nil {
			return err
		}
	}
}

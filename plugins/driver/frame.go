package driver

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that passCodec falls back to
	"google.golang.org/grpc/mem"
)

// frame is the body of a message that passes through without being looked at.
type frame struct{ body []byte }

// passCodec carries frames as they are and leaves every other message to protobuf.
type passCodec struct{ proto encoding.CodecV2 }

func newPassCodec() passCodec { return passCodec{encoding.GetCodecV2("proto")} }

// Name is protobuf's: it becomes the content type, and the other side must see no difference.
func (passCodec) Name() string { return "proto" }

func (c passCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f.body)}, nil
	}
	return c.proto.Marshal(v)
}

func (c passCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		f.body = data.Materialize()
		return nil
	}
	return c.proto.Unmarshal(data, v)
}

// ServerOptions are what a gRPC server needs to pass on every call that it has no
// handler for.
func (d *Driver) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(d.codec),
		grpc.UnknownServiceHandler(d.passOn),
	}
}

// passOn is the proxy for everything that is not intercepted: calls of later
// versions of the protocol too, because no message is decoded.
func (d *Driver) passOn(_ any, agent grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(agent)
	if !ok {
		return fmt.Errorf("call without a method name")
	}
	return d.relay(agent, method, nil)
}

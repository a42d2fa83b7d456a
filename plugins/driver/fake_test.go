package driver

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	baseproto "github.com/hashicorp/nomad/plugins/base/proto"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	structsproto "github.com/hashicorp/nomad/plugins/shared/structs/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// fakeInner is a driver plugin of its own name, whose answers a test sets.
type fakeInner struct {
	proto.UnimplementedDriverServer
	baseproto.UnimplementedBasePluginServer
	name       string
	taskSchema *hclspec.Spec
	config     chan []byte // what SetConfig got
}

func newFakeInner() *fakeInner {
	return &fakeInner{
		name:       "fake",
		taskSchema: hclspec.NewObject(map[string]*hclspec.Spec{"command": hclspec.NewAttr("command", "string", true)}),
		config:     make(chan []byte, 1),
	}
}

func (f *fakeInner) PluginInfo(context.Context, *baseproto.PluginInfoRequest) (*baseproto.PluginInfoResponse, error) {
	return &baseproto.PluginInfoResponse{Name: f.name, Type: baseproto.PluginType_DRIVER, PluginVersion: "0.1.0", PluginApiVersions: []string{"v0.1.0"}}, nil
}

func (f *fakeInner) ConfigSchema(context.Context, *baseproto.ConfigSchemaRequest) (*baseproto.ConfigSchemaResponse, error) {
	return &baseproto.ConfigSchemaResponse{}, nil
}

func (f *fakeInner) SetConfig(_ context.Context, req *baseproto.SetConfigRequest) (*baseproto.SetConfigResponse, error) {
	f.config <- req.MsgpackConfig
	return &baseproto.SetConfigResponse{}, nil
}

func (f *fakeInner) TaskConfigSchema(context.Context, *proto.TaskConfigSchemaRequest) (*proto.TaskConfigSchemaResponse, error) {
	return &proto.TaskConfigSchemaResponse{Spec: f.taskSchema}, nil
}

func (f *fakeInner) Fingerprint(_ *proto.FingerprintRequest, s proto.Driver_FingerprintServer) error {
	return s.Send(&proto.FingerprintResponse{Health: proto.FingerprintResponse_HEALTHY, Attributes: map[string]*structsproto.Attribute{
		"driver." + f.name:              {Value: &structsproto.Attribute_BoolVal{BoolVal: true}},
		"driver." + f.name + ".version": {Value: &structsproto.Attribute_StringVal{StringVal: "1"}},
	}})
}

// connect serves over an in-memory connection and connects to it.
func connect(t *testing.T, register func(*grpc.Server), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer(opts...)
	register(s)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("passthrough:fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// decorate puts a Driver between the fake and the connection that it returns, which
// is the agent's.
func decorate(t *testing.T, f *fakeInner, opts Options, more ...func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	inner := connect(t, func(s *grpc.Server) {
		proto.RegisterDriverServer(s, f)
		baseproto.RegisterBasePluginServer(s, f)
		for _, m := range more {
			m(s)
		}
	})
	if opts.Log == nil {
		opts.Log = hclog.NewNullLogger()
	}
	d, err := New(testContext(t), inner, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return connect(t, func(s *grpc.Server) { d.Register(s) }, d.ServerOptions()...)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

package driver

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
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
	state      []byte      // the driver state that StartTask returns
	execTask   func(command []string) (code int32, stdout string)

	server *grpc.Server
	driver *Driver // that decorates it

	mu    sync.Mutex
	calls []string // what the decorator asked for, in order
	tasks map[string]*fakeTask
}

// fakeTask ends when its channel closes.
type fakeTask struct {
	config *proto.TaskConfig
	result proto.ExitResult
	ended  chan struct{}
	once   sync.Once
}

func (t *fakeTask) end(code int32) {
	t.once.Do(func() {
		t.result.ExitCode = code
		close(t.ended)
	})
}

func (f *fakeInner) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeInner) noted() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, "\n")
}

func (f *fakeInner) task(id string) (*fakeTask, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.tasks[id]
	if !ok {
		return nil, fmt.Errorf("task not found: %s", id)
	}
	return t, nil
}

func (f *fakeInner) add(c *proto.TaskConfig) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tasks[c.Id] = &fakeTask{config: c, ended: make(chan struct{})}
}

func (f *fakeInner) StartTask(_ context.Context, req *proto.StartTaskRequest) (*proto.StartTaskResponse, error) {
	f.note("start")
	f.add(req.Task)
	return &proto.StartTaskResponse{Handle: &proto.TaskHandle{Version: 1, Config: req.Task, DriverState: f.state}}, nil
}

func (f *fakeInner) RecoverTask(_ context.Context, req *proto.RecoverTaskRequest) (*proto.RecoverTaskResponse, error) {
	f.note("recover %x", req.Handle.DriverState)
	f.add(req.Handle.Config)
	return &proto.RecoverTaskResponse{}, nil
}

func (f *fakeInner) WaitTask(ctx context.Context, req *proto.WaitTaskRequest) (*proto.WaitTaskResponse, error) {
	t, err := f.task(req.TaskId)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.ended:
		return &proto.WaitTaskResponse{Result: &t.result}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fakeInner) StopTask(_ context.Context, req *proto.StopTaskRequest) (*proto.StopTaskResponse, error) {
	f.note("stop %s %s", req.Signal, req.Timeout.AsDuration())
	t, err := f.task(req.TaskId)
	if err != nil {
		return nil, err
	}
	t.end(0)
	return &proto.StopTaskResponse{}, nil
}

func (f *fakeInner) SignalTask(_ context.Context, req *proto.SignalTaskRequest) (*proto.SignalTaskResponse, error) {
	f.note("signal %s", req.Signal)
	return &proto.SignalTaskResponse{}, nil
}

func (f *fakeInner) DestroyTask(_ context.Context, req *proto.DestroyTaskRequest) (*proto.DestroyTaskResponse, error) {
	f.note("destroy")
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.tasks[req.TaskId]; t != nil {
		t.end(137)
	}
	delete(f.tasks, req.TaskId)
	return &proto.DestroyTaskResponse{}, nil
}

func (f *fakeInner) DestroyNetwork(_ context.Context, req *proto.DestroyNetworkRequest) (*proto.DestroyNetworkResponse, error) {
	f.note("destroy network %s", req.AllocId)
	return &proto.DestroyNetworkResponse{}, nil
}

func (f *fakeInner) ExecTask(_ context.Context, req *proto.ExecTaskRequest) (*proto.ExecTaskResponse, error) {
	if len(req.Command) == 1 && req.Command[0] == "env" {
		return &proto.ExecTaskResponse{Result: &proto.ExitResult{}}, nil
	}
	command := req.Command
	if command[0] == "env" { // the variables differ from run to run
		for command = command[1:]; strings.HasPrefix(command[0], "RETINUE_"); command = command[1:] {
		}
	}
	f.note("exec %s", strings.Join(command, " "))
	code, out := f.execTask(command)
	return &proto.ExecTaskResponse{Stdout: []byte(out), Result: &proto.ExitResult{ExitCode: code}}, nil
}

func (f *fakeInner) ExecTaskStreaming(s proto.Driver_ExecTaskStreamingServer) error {
	req, err := s.Recv()
	if err != nil {
		return err
	}
	out := &proto.ExecTaskStreamingIOOperation{Data: []byte(strings.Join(req.Setup.Command, " "))}
	if err := s.Send(&proto.ExecTaskStreamingResponse{Stdout: out}); err != nil {
		return err
	}
	return s.Send(&proto.ExecTaskStreamingResponse{Exited: true, Result: &proto.ExitResult{ExitCode: 7}})
}

func (f *fakeInner) TaskEvents(_ *proto.TaskEventsRequest, s proto.Driver_TaskEventsServer) error {
	if err := s.Send(&proto.DriverTaskEvent{Message: "of the inner driver"}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func newFakeInner() *fakeInner {
	return &fakeInner{
		name:       "fake",
		taskSchema: hclspec.NewObject(map[string]*hclspec.Spec{"command": hclspec.NewAttr("command", "string", true)}),
		config:     make(chan []byte, 1),
		execTask:   func([]string) (int32, string) { return 0, "" },
		tasks:      map[string]*fakeTask{},
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
		f.server = s
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
	f.driver = d
	t.Cleanup(d.Close)
	return connect(t, func(s *grpc.Server) { d.Register(s) }, d.ServerOptions()...)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

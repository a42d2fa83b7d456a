// Package driver is a Nomad task driver in front of another one: it gives every task
// of the inner driver hooks, a drain, pause and a management API, and leaves all else
// to it.
//
// It works on the protocol between the agent and a driver plugin. Only the calls that
// have to do with a task's lifecycle are decoded; all others, those of later Nomad
// versions too, pass through as bytes. So any driver plugin can be the inner one, its
// capabilities arrive as it sent them, and nothing of Nomad is linked but the
// generated code of its protocol.
package driver

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	baseproto "github.com/hashicorp/nomad/plugins/base/proto"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	structsproto "github.com/hashicorp/nomad/plugins/shared/structs/proto"
	"google.golang.org/grpc"
)

// Contract is the version of the lifecycle block and of the management API. It is
// the node attribute driver.NAME.lifecycle, for constraints of jobs.
const Contract = "1"

// Options of a Driver.
type Options struct {
	// As is the name to register under. The inner driver's own name takes the place
	// of the driver that is built into the agent.
	As string

	Log hclog.Logger

	// SweepEvery is the time between two looks for networks that the agent has
	// forgotten; 0: ten seconds.
	SweepEvery time.Duration
}

// Driver decorates the driver plugin at the other end of a connection.
type Driver struct {
	as    string // name for the agent
	name  string // name of the inner driver
	log   hclog.Logger
	inner *grpc.ClientConn
	base  baseproto.BasePluginClient
	tasks proto.DriverClient

	codec     passCodec
	stopSweep context.CancelFunc
	events    chan *proto.DriverTaskEvent // for the agent's TaskEvents stream

	end     chan struct{} // closed: the process has to end, to be started anew
	endOnce sync.Once

	mu       sync.Mutex
	running  map[string]*task  // by Nomad's ID of the task
	networks map[string]string // of allocations, with their folders
	groups   map[string]string // control groups of tasks that have ended, with the folders of their allocations
	closed   bool
	settings settings
}

// New asks the driver plugin behind conn what it is, and fails when it cannot be
// decorated: no answer, not a driver, or a configuration with a lifecycle of its own.
func New(ctx context.Context, conn *grpc.ClientConn, opts Options) (*Driver, error) {
	d := &Driver{
		as: opts.As, log: opts.Log, inner: conn, codec: newPassCodec(),
		base: baseproto.NewBasePluginClient(conn), tasks: proto.NewDriverClient(conn),
		events: make(chan *proto.DriverTaskEvent, 256), end: make(chan struct{}),
		running: map[string]*task{}, networks: map[string]string{}, groups: map[string]string{}, settings: defaultSettings(),
	}
	info, err := d.base.PluginInfo(ctx, &baseproto.PluginInfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the inner plugin what it is: %w", err)
	}
	if info.Type != baseproto.PluginType_DRIVER {
		return nil, fmt.Errorf("the inner plugin %q is not a task driver", info.Name)
	}
	if d.name = info.Name; d.as == "" {
		d.as = d.name
	}
	if _, err := d.taskConfigSchema(ctx, &proto.TaskConfigSchemaRequest{}); err != nil {
		return nil, err
	}
	if _, err := d.configSchema(ctx, &baseproto.ConfigSchemaRequest{}); err != nil {
		return nil, err
	}
	if d.as != d.name {
		d.warnAboutName()
	}
	sweeping, stop := context.WithCancel(context.Background())
	d.stopSweep = stop
	go d.sweep(sweeping, cmp.Or(opts.SweepEvery, sweepEvery))
	return d, nil
}

// warnAboutName says what a name other than the inner driver's own breaks.
func (d *Driver) warnAboutName() {
	log := d.log.With("as", d.as, "inner", d.name)
	log.Warn("this name does not replace the driver that is built into the agent; prefer -as " + d.name)
	log.Warn("user.checked_drivers and the driver lists of namespaces go by name: add this one, or they are bypassed")
	if d.name == "docker" {
		log.Warn("another docker driver on this engine removes these containers as dangling: " +
			"set gc { dangling_containers { enabled = false } } in the configuration of all of them")
		log.Warn("a bridge-mode group cannot mix this driver with docker; Connect's sidecar needs sidecar_task { driver }")
	}
}

// Register adds the calls that are intercepted to a server made with ServerOptions.
func (d *Driver) Register(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "hashicorp.nomad.plugins.base.proto.BasePlugin",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			method("PluginInfo", d.pluginInfo),
			method("ConfigSchema", d.configSchema),
			method("SetConfig", d.setConfig),
		},
	}, d)
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "hashicorp.nomad.plugins.drivers.proto.Driver",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			method("TaskConfigSchema", d.taskConfigSchema),
			method("StartTask", d.startTask),
			method("RecoverTask", d.recoverTask),
			method("WaitTask", d.waitTask),
			method("StopTask", d.stopTask),
			method("SignalTask", d.signalTask),
			method("DestroyTask", d.destroyTask),
			method("DestroyNetwork", d.destroyNetwork),
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "TaskEvents", ServerStreams: true, Handler: d.taskEvents},
			{StreamName: "ExecTaskStreaming", ServerStreams: true, ClientStreams: true, Handler: d.execTaskStreaming},
			{StreamName: "Fingerprint", ServerStreams: true, Handler: d.fingerprint},
		},
	}, d)
}

// method makes a handler of a typed function.
func method[Req, Resp any](name string, f func(context.Context, *Req) (*Resp, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err
		}
		return f(ctx, req)
	}}
}

func (d *Driver) pluginInfo(ctx context.Context, req *baseproto.PluginInfoRequest) (*baseproto.PluginInfoResponse, error) {
	resp, err := d.base.PluginInfo(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Name = d.as
	return resp, nil
}

// fingerprint adds the attribute of the contract, and renames the inner driver's
// attributes when it has another name: two drivers must not write the same ones.
func (d *Driver) fingerprint(_ any, agent grpc.ServerStream) error {
	req := new(proto.FingerprintRequest)
	if err := agent.RecvMsg(req); err != nil {
		return err
	}
	inner, err := d.tasks.Fingerprint(agent.Context(), req)
	if err != nil {
		return err
	}
	for {
		resp, err := inner.Recv()
		if err != nil {
			return endOfStream(err)
		}
		if err := agent.SendMsg(d.withAttributes(resp)); err != nil {
			return err
		}
	}
}

func (d *Driver) withAttributes(resp *proto.FingerprintResponse) *proto.FingerprintResponse {
	attrs := make(map[string]*structsproto.Attribute, len(resp.Attributes)+1)
	own := "driver." + d.name
	for key, value := range resp.Attributes {
		if rest, ok := strings.CutPrefix(key, own); ok && (rest == "" || rest[0] == '.') {
			key = "driver." + d.as + rest
		}
		attrs[key] = value
	}
	if resp.Health != proto.FingerprintResponse_UNDETECTED {
		attrs["driver."+d.as+".lifecycle"] = &structsproto.Attribute{
			Value: &structsproto.Attribute_StringVal{StringVal: Contract},
		}
	}
	resp.Attributes = attrs
	return resp
}

// Close ends the work for all tasks. The tasks themselves go on.
func (d *Driver) Close() {
	d.stopSweep()
	d.mu.Lock()
	d.closed = true
	tasks := slices.Collect(maps.Values(d.running))
	clear(d.running)
	d.mu.Unlock()
	for _, t := range tasks {
		t.close()
	}
}

// ends says that Close was called.
func (d *Driver) ends() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

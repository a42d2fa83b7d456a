package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// handshake is the one of all plugins of Nomad (plugins/base in its repository).
var handshake = plugin.HandshakeConfig{
	ProtocolVersion:  2,
	MagicCookieKey:   "NOMAD_PLUGIN_MAGIC_COOKIE",
	MagicCookieValue: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
}

// Serve starts the inner driver plugin, argv, and answers the agent on its behalf
// until the agent ends this process. When the inner process ends by itself it
// returns an error: the agent then starts both anew and recovers the tasks.
//
// It must be called from the main goroutine, locked to its thread: the inner process
// is killed when the thread that started it ends, so that it never outlives this one.
func Serve(argv []string, opts Options) error {
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		return errors.New("this program is a plugin of the Nomad agent, which starts it by itself")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	link := new(link)
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          map[string]plugin.Plugin{"driver": link},
		Cmd:              cmd,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		StartTimeout:     time.Minute,
		Logger:           opts.Log.Named("inner"),
		SyncStdout:       io.Discard,
		SyncStderr:       os.Stderr,
	})
	defer client.Kill()
	protocol, err := client.Client()
	if err != nil {
		return fmt.Errorf("start the inner plugin %q: %w", argv, err)
	}
	if _, err := protocol.Dispense("driver"); err != nil {
		return fmt.Errorf("connect to the inner plugin %q: %w", argv, err)
	}
	ctx, cancel := context.WithTimeout(link.ctx, time.Minute)
	defer cancel()
	d, err := New(ctx, link.conn, opts)
	if err != nil {
		return err
	}
	defer d.Close()

	served := make(chan struct{})
	go func() {
		defer close(served)
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig: handshake,
			Plugins:         map[string]plugin.Plugin{"base": service{}, "driver": service{d: d}},
			GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
				return plugin.DefaultGRPCServer(append(o, d.ServerOptions()...))
			},
			Logger: opts.Log,
		})
	}()
	select {
	case <-served:
		return nil
	case <-d.end:
		return errors.New("the driver has to find its containers again")
	case <-link.ctx.Done():
		return fmt.Errorf("the inner plugin %q ended", argv)
	}
}

// link is the connection to the inner plugin; ctx ends when its process does.
type link struct {
	plugin.NetRPCUnsupportedPlugin
	ctx  context.Context
	conn *grpc.ClientConn
}

func (l *link) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this side has no server")
}

func (l *link) GRPCClient(ctx context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	l.ctx, l.conn = ctx, conn
	return conn, nil
}

// service is what the agent asks for by name. The calls of both are registered once.
type service struct {
	plugin.NetRPCUnsupportedPlugin
	d *Driver
}

func (s service) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	if s.d != nil {
		s.d.Register(server)
	}
	return nil
}

func (service) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this side has no client")
}

// NewLogger writes to standard error in the format that the agent reads.
func NewLogger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true})
}

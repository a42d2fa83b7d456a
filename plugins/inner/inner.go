// Package inner serves Nomad's own docker, exec and raw_exec drivers, unmodified,
// as a driver plugin: the process behind the decorator of package driver. It is
// the only package that links drivers of Nomad (BUSL-1.1, see NOTICE).
//
// Tasks of the drivers that are built into the agent and tasks of this process have
// the same state, so each can take over the tasks of the other.
package inner

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/nomad/drivers/docker"
	"github.com/hashicorp/nomad/drivers/rawexec"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"google.golang.org/grpc"
)

// factory makes a driver; ctx ends with the process.
type factory func(ctx context.Context, log hclog.Logger) drivers.DriverPlugin

// factories are the drivers of this build by name.
func factories() map[string]factory {
	all := map[string]factory{
		"docker":   docker.NewDockerDriver,
		"raw_exec": rawexec.NewRawExecDriver,
	}
	addExec(all)
	return all
}

// Names lists the drivers that this build can serve.
func Names() []string { return slices.Sorted(maps.Keys(factories())) }

// New makes the driver of that name.
func New(ctx context.Context, name string, log hclog.Logger) (drivers.DriverPlugin, error) {
	f, ok := factories()[name]
	if !ok {
		return nil, fmt.Errorf("driver %q is not one of %v in this build", name, Names())
	}
	return f(ctx, log), nil
}

// Serve answers the agent, or the decorator in front of it, until that one ends the
// process. It returns at once with an error when there is no such driver.
func Serve(ctx context.Context, name string) error {
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true})
	d, err := New(ctx, name, log)
	if err != nil {
		return err
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: base.Handshake,
		Plugins: map[string]plugin.Plugin{
			base.PluginTypeBase:   &base.PluginBase{Impl: d},
			base.PluginTypeDriver: drivers.NewDriverPlugin(d, log),
		},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return plugin.DefaultGRPCServer(append(opts, ExactCapabilities(d)))
		},
		Logger: log,
	})
	return nil
}

// ExactCapabilities makes a server add the two capabilities that Nomad's plugin server
// leaves out. Without them an agent runs a raw_exec task that has a volume_mount,
// silently without the mount, where it refuses it for the built-in driver.
func ExactCapabilities(d drivers.DriverPlugin) grpc.ServerOption {
	return grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		resp, err := handle(ctx, req)
		if r, ok := resp.(*proto.CapabilitiesResponse); ok && err == nil {
			caps, err := d.Capabilities()
			if err != nil {
				return nil, fmt.Errorf("capabilities: %w", err)
			}
			if caps.MountConfigs == drivers.MountConfigSupportNone {
				r.Capabilities.MountConfigs = proto.DriverCapabilities_NO_MOUNTS
			}
			r.Capabilities.DisableLogCollection = caps.DisableLogCollection
		}
		return resp, err
	})
}

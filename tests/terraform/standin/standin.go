// Package standin serves the two Terraform providers that the modules use,
// without a registry: providers of this process that Terraform attaches to.
//
// They implement a hand-written subset of the public schemas of
// hashicorp/nomad 2.x and hashicorp/consul 2.x on the real APIs: what is in
// the subset behaves as documented there, and any other attribute is an error.
package standin

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6/tf6server"
)

const registry = "registry.terraform.io/hashicorp/"

// Env is what the providers would find in their environment: NOMAD_ADDR,
// NOMAD_TOKEN, CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN. They are in the test's own
// process, whose environment is not the one that Terraform runs in.
type Env map[string]string

// Serve starts the providers and returns the value of TF_REATTACH_PROVIDERS
// and a function that stops them.
func Serve(nomadBinary string, env Env) (reattach string, stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	providers := map[string]provider.Provider{
		registry + "nomad":  &nomadProvider{binary: nomadBinary, env: env},
		registry + "consul": &consulProvider{env: env},
	}
	var closed []chan struct{}
	stop = func() {
		cancel()
		for _, c := range closed {
			<-c
		}
	}
	config := map[string]any{}
	for address, p := range providers {
		c := make(chan struct{})
		attach, err := serve(ctx, address, p, c)
		if err != nil {
			stop()
			return "", nil, fmt.Errorf("serve %s: %w", address, err)
		}
		closed = append(closed, c)
		config[address] = map[string]any{
			"Protocol":        string(attach.Protocol),
			"ProtocolVersion": attach.ProtocolVersion,
			"Pid":             attach.Pid,
			"Test":            true, // Terraform must not stop this process
			"Addr":            map[string]string{"Network": attach.Addr.Network(), "String": attach.Addr.String()},
		}
	}
	data, err := json.Marshal(config)
	return string(data), stop, err
}

func serve(ctx context.Context, address string, p provider.Provider, closed chan struct{}) (*plugin.ReattachConfig, error) {
	attach := make(chan *plugin.ReattachConfig, 1)
	failed := make(chan error, 1)
	go func() {
		failed <- tf6server.Serve(address, providerserver.NewProtocol6(p),
			tf6server.WithDebug(ctx, attach, closed), tf6server.WithoutLogStderrOverride(), tf6server.WithGoPluginLogger(hclog.NewNullLogger()))
	}()
	select {
	case config := <-attach:
		return config, nil
	case err := <-failed:
		return nil, err
	case <-time.After(30 * time.Second):
		return nil, fmt.Errorf("no answer")
	}
}

package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
)

// NomadServer is a Nomad server agent on a host.
type NomadServer struct{ nomadAgent }

// NomadClient is a Nomad client agent on a host. Its only driver is raw_exec:
// the host is a network namespace, which no other driver keeps.
type NomadClient struct{ nomadAgent }

type nomadAgent struct {
	*Process
	api *nomadapi.Client
}

// RunNomadServer starts a single server on a host and waits for its leadership.
func RunNomadServer(t T, h *Host) *NomadServer {
	t.Helper()
	s := &NomadServer{runNomad(t, h, map[string]any{
		"server": map[string]any{"enabled": true, "bootstrap_expect": 1, "raft_multiplier": 1},
	})}
	api := s.API()
	Eventually(t, 30*time.Second, "nomad on "+h.Name+" leads, and can sign", func(context.Context) error {
		if _, err := api.Status().Leader(); err != nil {
			return err
		}
		// A client that comes earlier is refused, and tries again half a minute later.
		keys, _, err := api.Keyring().List(nil)
		if err == nil && len(keys) == 0 {
			err = errors.New("no key yet")
		}
		return err
	})
	return s
}

// RunNomadClient starts a client on a host and waits until it can be scheduled on.
func RunNomadClient(t T, h *Host, server *NomadServer) *NomadClient {
	t.Helper()
	c := &NomadClient{runNomad(t, h, map[string]any{
		"client": map[string]any{
			"enabled":           true,
			"servers":           []string{server.Host().IP + ":4647"},
			"network_interface": "eth0",
			"options":           map[string]any{"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean", "driver.allowlist": "raw_exec"},
		},
		"plugin": map[string]any{"raw_exec": map[string]any{"config": map[string]any{"enabled": true}}},
	})}
	api := server.API()
	Eventually(t, 60*time.Second, "nomad node "+h.Name+" is ready", func(ctx context.Context) error {
		nodes, _, err := api.Nodes().List((&nomadapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Name == h.Name && n.Status == "ready" {
				return nil
			}
		}
		return fmt.Errorf("not in the list of ready nodes")
	})
	return c
}

func runNomad(t T, h *Host, config map[string]any) nomadAgent {
	t.Helper()
	dir := Dir(t, "nomad")
	for key, value := range map[string]any{
		"name":                 h.Name,
		"data_dir":             filepath.Join(dir, "data"),
		"bind_addr":            "0.0.0.0",
		"advertise":            map[string]any{"http": h.IP, "rpc": h.IP, "serf": h.IP},
		"consul":               map[string]any{"address": ConsulAddr},
		"disable_update_check": true,
		"leave_on_terminate":   false,
	} {
		config[key] = value
	}
	writeJSON(t, filepath.Join(dir, "config.json"), config)
	p := Start(t, Spec{
		Name: "nomad-" + h.Name,
		Path: NomadBinary(t),
		Args: []string{"agent", "-config", filepath.Join(dir, "config.json")},
		Host: h,
	})
	client, err := nomadapi.NewClient(&nomadapi.Config{
		Address: "http://127.0.0.1:4646", HttpClient: &http.Client{Transport: h.Transport()}, TLSConfig: &nomadapi.TLSConfig{},
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return nomadAgent{Process: p, api: client}
}

// API is a client of this agent that connects from the agent's own host.
func (n nomadAgent) API() *nomadapi.Client { return n.api }

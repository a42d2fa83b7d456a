package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

// ConsulAddr is where the Consul agent of a host answers its own host.
const ConsulAddr = "127.0.0.1:8500"

// ConsulServer is a Consul server agent on a host.
type ConsulServer struct{ consulAgent }

// ConsulClient is a Consul client agent on a host.
type ConsulClient struct{ consulAgent }

type consulAgent struct {
	*Process
	api *consulapi.Client
	t   T
}

// RunConsulServers starts one server on each host and waits until they have
// elected a leader.
func RunConsulServers(t T, hosts ...*Host) []*ConsulServer {
	t.Helper()
	var servers []*ConsulServer
	for _, h := range hosts {
		servers = append(servers, &ConsulServer{runConsul(t, h, hosts, map[string]any{
			"server":           true,
			"bootstrap_expect": len(hosts),
			"session_ttl_min":  "1s",
			"performance":      map[string]any{"raft_multiplier": 1},
		})})
	}
	for _, s := range servers {
		s.WaitReady(30 * time.Second)
	}
	return servers
}

// RunConsulClient starts a client agent on a host that joins the servers.
func RunConsulClient(t T, h *Host, servers ...*ConsulServer) *ConsulClient {
	t.Helper()
	var join []*Host
	for _, s := range servers {
		join = append(join, s.Host())
	}
	c := &ConsulClient{runConsul(t, h, join, map[string]any{})}
	c.WaitReady(30 * time.Second)
	return c
}

func runConsul(t T, h *Host, join []*Host, config map[string]any) consulAgent {
	t.Helper()
	dir := Dir(t, "consul")
	var addresses []string
	for _, j := range join {
		addresses = append(addresses, j.IP)
	}
	for key, value := range map[string]any{
		"node_name":               h.Name,
		"datacenter":              "dc1",
		"data_dir":                filepath.Join(dir, "data"),
		"bind_addr":               h.IP,
		"client_addr":             "127.0.0.1 " + h.IP,
		"retry_join":              addresses,
		"retry_interval":          "250ms",
		"rejoin_after_leave":      true,
		"log_level":               "info",
		"disable_update_check":    true,
		"disable_host_node_id":    true, // hosts of one machine would share it
		"enable_script_checks":    false,
		"ui_config":               map[string]any{"enabled": false},
		"telemetry":               map[string]any{"disable_hostname": true},
		"skip_leave_on_interrupt": false,
	} {
		config[key] = value
	}
	writeJSON(t, filepath.Join(dir, "config.json"), config)
	p := Start(t, Spec{
		Name: "consul-" + h.Name,
		Path: ConsulBinary(t),
		Args: []string{"agent", "-config-file", filepath.Join(dir, "config.json")},
		Host: h,
	})
	client, err := consulapi.NewClient(&consulapi.Config{Address: ConsulAddr, Transport: h.Transport()})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return consulAgent{Process: p, api: client, t: t}
}

// API is a client of this agent. It connects from the agent's own host, so it
// works also while the host is partitioned.
func (c consulAgent) API() *consulapi.Client { return c.api }

// WaitReady waits until the agent knows a leader of the servers and its node
// is in the catalog.
func (c consulAgent) WaitReady(timeout time.Duration) {
	c.t.Helper()
	Eventually(c.t, timeout, "consul on "+c.Host().Name+" is ready", func(ctx context.Context) error {
		q := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
		node, _, err := c.api.Catalog().Node(c.Host().Name, q)
		if err == nil && node == nil {
			err = fmt.Errorf("not in the catalog yet")
		}
		return err
	})
}

// RaftLeader is the one of the servers that leads, once all of them have a vote: one that was away waits ten seconds for it, and
// until then the others may be no majority without their leader.
func RaftLeader(t T, servers []*ConsulServer) *ConsulServer {
	t.Helper()
	var leader *ConsulServer
	Eventually(t, 60*time.Second, "the servers have a leader and a vote each", func(ctx context.Context) (err error) {
		for _, ask := range servers {
			if leader, err = raftLeader(ctx, ask, servers); err == nil {
				return nil
			}
		}
		return err
	})
	return leader
}

func raftLeader(ctx context.Context, ask *ConsulServer, servers []*ConsulServer) (leader *ConsulServer, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	raft, err := ask.API().Operator().RaftGetConfiguration((&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	voters := 0
	for _, member := range raft.Servers {
		for _, s := range servers {
			if member.Address != s.Host().IP+":8300" {
				continue
			}
			if member.Voter {
				voters++
			}
			if member.Leader {
				leader = s
			}
		}
	}
	if leader == nil || voters < len(servers) {
		return nil, fmt.Errorf("%d of %d vote, leader known: %v", voters, len(servers), leader != nil)
	}
	return leader, nil
}

func writeJSON(t T, path string, v any) {
	t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatalf("%v", err)
	}
}

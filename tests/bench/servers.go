package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// subnet is a block of loopback addresses of our own, so that every server has
// its usual ports and none is another program's.
type subnet struct {
	prefix string
	next   int
}

var serverPorts = []string{"8300", "8301", "8500", "4646", "4647", "4648", "2379", "2380"}

func newSubnet() (*subnet, error) {
	for range 50 {
		prefix := fmt.Sprintf("127.%d.%d.", 64+rand.IntN(128), rand.IntN(256))
		if freeSubnet(prefix) {
			return &subnet{prefix: prefix}, nil
		}
	}
	return nil, fmt.Errorf("no free block of loopback addresses: something listens on every address at one of the ports %s", strings.Join(serverPorts, ", "))
}

func freeSubnet(prefix string) bool {
	for host := 1; host <= 12; host++ {
		for _, port := range serverPorts {
			l, err := net.Listen("tcp", fmt.Sprintf("%s%d:%s", prefix, host, port))
			if err != nil {
				return false
			}
			l.Close()
		}
	}
	return true
}

func (s *subnet) address() string {
	s.next++
	return fmt.Sprintf("%s%d", s.prefix, s.next)
}

// consulAgent is one Consul agent.
type consulAgent struct {
	*process
	ip     string
	config string
	rig    *rig
}

// http is the agent's HTTP address, host:port.
func (a *consulAgent) http() string { return a.ip + ":8500" }

// startConsul brings up servers with Raft on disk, and client agents.
func (r *rig) startConsul(ctx context.Context, servers, clients int) error {
	var ips []string
	for range servers + clients {
		ips = append(ips, r.net.address())
	}
	for i, ip := range ips {
		a := &consulAgent{ip: ip, rig: r}
		name := fmt.Sprintf("consul-server-%d", i+1)
		config := map[string]any{"server": true, "bootstrap_expect": servers, "session_ttl_min": "1s", "performance": map[string]any{"raft_multiplier": 1}}
		if i >= servers {
			name, config = fmt.Sprintf("consul-client-%d", i-servers+1), map[string]any{}
			r.clients = append(r.clients, a)
		} else {
			r.servers = append(r.servers, a)
		}
		for key, value := range map[string]any{
			"node_name": name, "datacenter": "dc1", "data_dir": filepath.Join(r.dir, name), "bind_addr": ip, "client_addr": ip,
			"retry_join": ips[:servers], "retry_interval": "250ms", "rejoin_after_leave": true, "log_level": "warn", "disable_update_check": true,
			"disable_host_node_id": true, "ui_config": map[string]any{"enabled": false},
			"ports": map[string]any{"dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1},
		} {
			config[key] = value
		}
		a.config = filepath.Join(r.dir, name+".json")
		if err := writeJSON(a.config, config); err != nil {
			return err
		}
		if err := a.run(name); err != nil {
			return err
		}
	}
	for _, a := range append(r.servers, r.clients...) {
		if err := a.ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (a *consulAgent) run(name string) (err error) {
	a.process, err = a.rig.spawn.start(name, nil, a.rig.consul, "agent", "-config-file", a.config)
	return err
}

// ready waits until the agent answers a consistent read and its node is in the catalog.
func (a *consulAgent) ready(ctx context.Context) error {
	err := eventually(ctx, 40*time.Second, a.name+" is ready", func(ctx context.Context) error {
		var node *struct{ Node any }
		if err := getJSON(ctx, "http://"+a.http()+"/v1/catalog/node/"+a.name+"?consistent", &node); err != nil {
			return err
		}
		if node == nil {
			return fmt.Errorf("not in the catalog yet")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, a.tail())
	}
	return nil
}

// startNomad brings up one server agent, which is all that variables need.
func (r *rig) startNomad(ctx context.Context) error {
	ip := r.net.address()
	config := filepath.Join(r.dir, "nomad.json")
	if err := writeJSON(config, map[string]any{
		"name": "nomad", "data_dir": filepath.Join(r.dir, "nomad"), "bind_addr": ip, "log_level": "WARN", "disable_update_check": true,
		"advertise": map[string]any{"http": ip, "rpc": ip, "serf": ip},
		"server":    map[string]any{"enabled": true, "bootstrap_expect": 1, "raft_multiplier": 1},
		"consul":    map[string]any{"address": r.clients[0].http(), "auto_advertise": false, "server_auto_join": false},
		"ui":        map[string]any{"enabled": false},
	}); err != nil {
		return err
	}
	p, err := r.spawn.start("nomad-server", nil, r.nomad, "agent", "-config", config)
	if err != nil {
		return err
	}
	r.nomadAddr = "http://" + ip + ":4646"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-p.done // there is nothing to wait for any more
		cancel()
	}()
	// The keyring, which variables are encrypted with, comes a moment after the leader.
	err = eventually(ctx, 40*time.Second, "nomad takes variables", func(ctx context.Context) error {
		body := strings.NewReader(`{"Path":"bench/ready","Items":{"ready":"yes"}}`)
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, r.nomadAddr+"/v1/var/bench/ready", body)
		if err != nil {
			return err
		}
		return do(req, nil)
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.tail())
	}
	return nil
}

// startEtcd brings up three servers.
func (r *rig) startEtcd(ctx context.Context) error {
	var ips, cluster []string
	for i := range 3 {
		ips = append(ips, r.net.address())
		cluster = append(cluster, fmt.Sprintf("e%d=http://%s:2380", i+1, ips[i]))
		r.etcdURLs = append(r.etcdURLs, "http://"+ips[i]+":2379")
	}
	for i, ip := range ips {
		name := fmt.Sprintf("e%d", i+1)
		if _, err := r.spawn.start("etcd-"+name, nil, r.etcd, "server", "-name", name, "-dir", filepath.Join(r.dir, "etcd-"+name),
			"-client", r.etcdURLs[i], "-peer", "http://"+ip+":2380", "-cluster", strings.Join(cluster, ",")); err != nil {
			return err
		}
	}
	for _, url := range r.etcdURLs {
		err := eventually(ctx, 30*time.Second, "etcd is healthy", func(ctx context.Context) error { return getJSON(ctx, url+"/health", nil) })
		if err != nil {
			return err
		}
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func getJSON(ctx context.Context, url string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	return do(req, out)
}

func do(req *http.Request, out any) error { return doWith(http.DefaultClient, req, out) }

func doWith(client *http.Client, req *http.Request, out any) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.200s", req.URL, resp.Status, data)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

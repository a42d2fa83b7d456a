package devcluster

import (
	"encoding/json"
	"net/netip"
	"strings"
)

// consulConfig is the part of Consul's agent configuration that the cluster
// sets; the field order is the order in the file, for people who read it.
type consulConfig struct {
	NodeName        string            `json:"node_name"`
	Datacenter      string            `json:"datacenter"`
	DataDir         string            `json:"data_dir"`
	Server          bool              `json:"server"`
	BootstrapExpect int               `json:"bootstrap_expect,omitempty"`
	BindAddr        netip.Addr        `json:"bind_addr"`
	ClientAddr      netip.Addr        `json:"client_addr"`
	Addresses       map[string]string `json:"addresses"`
	Ports           map[string]int    `json:"ports"`
	RetryJoin       []string          `json:"retry_join"`
	RetryInterval   string            `json:"retry_interval"`

	// Sessions shorter than Consul's default bound of 10 s, and Raft timeouts
	// for a network without delay, so that fail-over can be watched.
	SessionTTLMin string         `json:"session_ttl_min"`
	Performance   map[string]int `json:"performance"`

	// A stopped agent of a dev cluster looks like a crashed one: it does not
	// leave, so that a restarted agent finds itself still a member. The whole
	// cluster is thrown away by Down, where nobody needs a farewell.
	LeaveOnTerminate     bool `json:"leave_on_terminate"`
	SkipLeaveOnInterrupt bool `json:"skip_leave_on_interrupt"`

	UI                 map[string]bool `json:"ui_config"`
	Connect            map[string]bool `json:"connect"`
	Limits             map[string]int  `json:"limits"`
	DisableUpdateCheck bool            `json:"disable_update_check"`
	LogLevel           string          `json:"log_level"`
	ACL                *consulACL      `json:"acl,omitempty"`
}

type consulACL struct {
	Enabled       bool              `json:"enabled"`
	DefaultPolicy string            `json:"default_policy"`
	DownPolicy    string            `json:"down_policy"`
	Tokens        map[string]string `json:"tokens"`
}

// renderConsul returns the configuration file of a node's Consul agent.
func (p Plan) renderConsul(n Node, tokens Tokens) ([]byte, error) {
	kind, _ := kinds(n)
	cfg := consulConfig{
		NodeName:   n.Name,
		Datacenter: "dc1",
		DataDir:    p.AgentDir(agentName(kind, n)) + "/data",
		Server:     n.Server,
		BindAddr:   n.Addr,
		ClientAddr: n.Addr,
		Addresses:  map[string]string{"http": joinAddrs(p.consulHTTPAddrs(n)), "dns": joinAddrs(p.httpAddrs(n))},
		Ports: map[string]int{
			"http": p.port(portConsulHTTP), "dns": p.port(portConsulDNS), "server": p.port(portConsulRPC),
			"serf_lan": p.port(portConsulSerf), "serf_wan": -1, "https": -1, "grpc": -1, "grpc_tls": -1,
		},
		RetryInterval:        "1s",
		SessionTTLMin:        p.SessionTTLMin.String(),
		Performance:          map[string]int{"raft_multiplier": 1},
		SkipLeaveOnInterrupt: true,
		UI:                   map[string]bool{"enabled": true},
		Connect:              map[string]bool{"enabled": true},
		Limits:               map[string]int{"http_max_conns_per_client": 2000},
		DisableUpdateCheck:   true,
		LogLevel:             "info",
	}
	for _, s := range p.servers() {
		cfg.RetryJoin = append(cfg.RetryJoin, p.on(s.Addr, portConsulSerf).String())
	}
	if n.Server {
		cfg.BootstrapExpect = len(p.servers())
	} else {
		cfg.Ports["grpc"] = p.port(portConsulGRPC)
	}
	if p.ACL {
		cfg.ACL = &consulACL{
			Enabled: true, DefaultPolicy: "deny", DownPolicy: "extend-cache",
			Tokens: map[string]string{"agent": tokens.Agents[n.Name]},
		}
		if n.Server {
			cfg.ACL.Tokens["initial_management"] = tokens.Consul
		}
	}
	raw, err := json.MarshalIndent(cfg, "", "  ")
	return append(raw, '\n'), err
}

// consulHTTPAddrs adds the gateway of the node's bridge, where its tasks are.
func (p Plan) consulHTTPAddrs(n Node) []netip.Addr {
	addrs := p.httpAddrs(n)
	if n.Bridge != nil {
		addrs = append(addrs, n.Bridge.Gateway)
	}
	return addrs
}

func joinAddrs(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

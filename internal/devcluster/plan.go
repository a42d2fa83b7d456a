package devcluster

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"
)

// Standard ports of the agents; a cluster adds its offset to each.
const (
	portConsulRPC  = 8300
	portConsulSerf = 8301
	portConsulHTTP = 8500
	portConsulGRPC = 8502
	portConsulDNS  = 8600
	portNomadHTTP  = 4646
	portNomadRPC   = 4647
	portNomadSerf  = 4648
)

// A slot is what makes clusters on one host disjoint: loopback addresses,
// bridge subnets and dynamic ports all follow from its number.
const (
	maxSlots     = 50
	loopbackBase = 64  // slot n owns 127.(64+n).0.0/16
	bridgeBase   = 200 // slot n owns 10.(200+n).0.0/16
	offsetStep   = 10  // slot n has port offset 10*n when ports are chosen

	// Dynamic ports lie in 20000-31999, below the kernel's ephemeral ports. Each
	// client has a range of its own: clients believe they are separate hosts.
	dynamicBase  = 20000
	dynamicSlots = 12
	dynamicRange = 100
)

// Kinds of agents.
const (
	ConsulServer = "consul-server"
	NomadServer  = "nomad-server"
	ConsulClient = "consul-client"
	NomadClient  = "nomad-client"
)

// Bridge is the network of one client node's bridge-mode tasks.
type Bridge struct {
	Name    string       `json:"name"`
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
}

// Node is one simulated host: a Consul agent and a Nomad agent on an address.
type Node struct {
	Name    string     `json:"name"` // server-1, client-2
	Addr    netip.Addr `json:"addr"`
	Server  bool       `json:"server"`
	First   bool       `json:"first"` // also answers on 127.0.0.1
	Bridge  *Bridge    `json:"bridge,omitempty"`
	MinPort int        `json:"min_dynamic_port,omitempty"`
	MaxPort int        `json:"max_dynamic_port,omitempty"`
}

// Plan is everything about a cluster that is decided before it is started.
type Plan struct {
	Dir           string        `json:"dir"`
	ShortDir      string        `json:"short_dir,omitempty"` // a link to Dir, when its path is too long for sockets
	Slot          int           `json:"slot"`
	PortOffset    int           `json:"port_offset"`
	ACL           bool          `json:"acl"`
	Root          bool          `json:"root"`
	DockerSocket  string        `json:"docker_socket,omitempty"` // "" = no docker driver
	Image         string        `json:"image,omitempty"`         // local image of the cluster's own build; "" = no docker driver
	CNIPath       string        `json:"cni_path,omitempty"`      // "" = no bridge mode
	DriverPlugin  bool          `json:"driver_plugin,omitempty"` // the task drivers are decorated
	SessionTTLMin time.Duration `json:"session_ttl_min"`
	Nodes         []Node        `json:"nodes"`
}

// layOut makes the nodes of a slot. It is pure: what is free is checked by who
// calls it.
func layOut(slot, servers, clients int, bridges bool) []Node {
	var nodes []Node
	for i := 1; i <= servers; i++ {
		nodes = append(nodes, Node{
			Name: fmt.Sprintf("server-%d", i), Addr: loopback(slot, 1, i), Server: true, First: i == 1,
		})
	}
	for i := 1; i <= clients; i++ {
		low := dynamicBase + slot%dynamicSlots*1000 + (i-1)*dynamicRange
		node := Node{Name: fmt.Sprintf("client-%d", i), Addr: loopback(slot, 2, i), MinPort: low, MaxPort: low + dynamicRange - 1}
		if bridges {
			subnet := netip.AddrFrom4([4]byte{10, byte(bridgeBase + slot), byte(i), 0})
			node.Bridge = &Bridge{
				Name:    fmt.Sprintf("retinue%d-%d", slot, i),
				Subnet:  netip.PrefixFrom(subnet, 24),
				Gateway: subnet.Next(),
			}
		}
		nodes = append(nodes, node)
	}
	return nodes
}

func loopback(slot, row, i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(loopbackBase + slot), byte(row), byte(i)})
}

var localhost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// image is what tasks of the cluster run, with the docker driver.
func (p Plan) image() string {
	if p.Image == "" { // of a cluster that was started before builds had names
		return Image()
	}
	return p.Image
}

func (p Plan) servers() []Node { return p.nodes(true) }
func (p Plan) clients() []Node { return p.nodes(false) }

func (p Plan) nodes(server bool) []Node {
	var out []Node
	for _, n := range p.Nodes {
		if n.Server == server {
			out = append(out, n)
		}
	}
	return out
}

// Driver is the task driver that jobs use by default on this cluster.
func (p Plan) Driver() string {
	switch {
	case p.DockerSocket != "":
		return DriverDocker
	case p.Root:
		return DriverExec
	}
	return DriverRawExec
}

// NetworkMode is the mode that jobs use by default on this cluster.
func (p Plan) NetworkMode() string {
	if p.CNIPath != "" {
		return NetworkBridge
	}
	return NetworkHost
}

func (p Plan) port(standard int) int { return standard + p.PortOffset }

func (p Plan) on(addr netip.Addr, standard int) netip.AddrPort {
	return netip.AddrPortFrom(addr, uint16(p.port(standard)))
}

// consulForTasks is where a task on the node finds the node's Consul agent. A
// task in bridge mode cannot see the node's loopback address, so it is the
// gateway of the node's own bridge where there is one.
func (p Plan) consulForTasks(n Node) netip.AddrPort {
	if n.Bridge != nil {
		return p.on(n.Bridge.Gateway, portConsulHTTP)
	}
	return p.on(n.Addr, portConsulHTTP)
}

// endpoint is one address that an agent of the plan listens on.
type endpoint struct {
	agent string
	addr  netip.AddrPort
	udp   bool
}

// endpoints lists every address the cluster will bind on loopback.
func (p Plan) endpoints() []endpoint {
	var out []endpoint
	add := func(kind string, n Node, addr netip.Addr, standard int, udp bool) {
		out = append(out, endpoint{agent: agentName(kind, n), addr: p.on(addr, standard), udp: udp})
	}
	for _, n := range p.Nodes {
		consul, nomad := kinds(n)
		for _, addr := range p.httpAddrs(n) {
			add(consul, n, addr, portConsulHTTP, false)
			add(nomad, n, addr, portNomadHTTP, false)
			add(consul, n, addr, portConsulDNS, false)
			add(consul, n, addr, portConsulDNS, true)
		}
		add(consul, n, n.Addr, portConsulSerf, false)
		add(consul, n, n.Addr, portConsulSerf, true)
		if n.Server {
			add(consul, n, n.Addr, portConsulRPC, false)
			add(nomad, n, n.Addr, portNomadRPC, false)
			add(nomad, n, n.Addr, portNomadSerf, false)
			add(nomad, n, n.Addr, portNomadSerf, true)
		} else {
			add(consul, n, n.Addr, portConsulGRPC, false)
		}
	}
	return out
}

// httpAddrs are the loopback addresses where a node's agents answer requests.
func (p Plan) httpAddrs(n Node) []netip.Addr {
	if n.First {
		return []netip.Addr{n.Addr, localhost}
	}
	return []netip.Addr{n.Addr}
}

func kinds(n Node) (consul, nomad string) {
	if n.Server {
		return ConsulServer, NomadServer
	}
	return ConsulClient, NomadClient
}

// agentName is the kind and the node's number: nomad-client-2.
func agentName(kind string, n Node) string {
	return kind + n.Name[len("server"):]
}

// The layout of the folder. Paths stay short: a Unix socket's path may have 107
// bytes, and tasks put theirs four folders below allocDir.
func (p Plan) stateFile() string            { return filepath.Join(p.Dir, "state.json") }
func (p Plan) binDir() string               { return filepath.Join(p.Dir, "bin") }
func (p Plan) retinueBin() string           { return filepath.Join(p.Dir, "bin", "retinue") }
func (p Plan) logFile(agent string) string  { return filepath.Join(p.Dir, "log", agent+".log") }
func (p Plan) AgentDir(agent string) string { return filepath.Join(p.Dir, "agents", agent) }
func (p Plan) AllocDir(n Node) string {
	return filepath.Join(cmp.Or(p.ShortDir, p.Dir), "c"+n.Name[len("client-"):])
}

// maxDir is the longest folder below which Nomad's socket for a task fits:
// <dir>/c1/<36 of the allocation>/<16 of the task>/secrets/api.sock in 107 bytes.
const maxDir = 107 - len("/c1/") - 36 - len("/") - 16 - len("/secrets/api.sock")

// shortLink is the name of the link that stands for a folder whose path is too
// long; it follows from the folder, so that Down finds it without the state.
func shortLink(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join("/tmp", "retinue-"+hex.EncodeToString(sum[:4]))
}

func (p Plan) configFile(agent string) string {
	ext := ".hcl"
	if agent[0] == 'c' { // Consul's are JSON: nothing to quote by hand
		ext = ".json"
	}
	return filepath.Join(p.AgentDir(agent), "config"+ext)
}

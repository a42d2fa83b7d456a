package devcluster

import (
	"bytes"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue"
	"retinue/internal/hint"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	got = bytes.ReplaceAll(got, []byte(":"+retinue.Version+`"`), []byte(`:VERSION"`))
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs (go test -update rewrites it); got:\n%s", file, got)
	}
}

// rootPlan is a cluster with everything: root, Docker, bridges, ACLs.
func rootPlan() Plan {
	return Plan{
		Dir: "/srv/dev", Slot: 2, PortOffset: 20, ACL: true, Root: true, DockerSocket: "/var/run/docker.sock",
		CNIPath: "/usr/lib/cni", SessionTTLMin: time.Second, Nodes: layOut(2, 3, 2, true),
	}
}

// userPlan is what an ordinary user gets without Docker.
func userPlan() Plan {
	return Plan{Dir: "/home/u/dev", SessionTTLMin: time.Second, Nodes: layOut(0, 1, 1, false)}
}

func TestConfigurationFiles(t *testing.T) {
	tokens := Tokens{
		Nomad: "nomad-management", Consul: "consul-management", NomadServers: "for-nomad-servers", NomadClients: "for-nomad-clients",
		Agents: map[string]string{"server-1": "agent-of-server-1", "client-2": "agent-of-client-2"},
	}
	chroot := map[string]string{"/srv/dev/bin/retinue": taskBinary, "/usr/bin/dash": "/bin/sh"}
	for name, render := range map[string]func() ([]byte, error){
		"consul-server.json":      func() ([]byte, error) { return rootPlan().renderConsul(rootPlan().Nodes[0], tokens) },
		"consul-client.json":      func() ([]byte, error) { return rootPlan().renderConsul(rootPlan().Nodes[4], tokens) },
		"nomad-server.hcl":        func() ([]byte, error) { return rootPlan().renderNomad(rootPlan().Nodes[0], tokens, chroot) },
		"nomad-client.hcl":        func() ([]byte, error) { return rootPlan().renderNomad(rootPlan().Nodes[4], tokens, chroot) },
		"consul-client-user.json": func() ([]byte, error) { return userPlan().renderConsul(userPlan().Nodes[1], Tokens{}) },
		"nomad-client-user.hcl":   func() ([]byte, error) { return userPlan().renderNomad(userPlan().Nodes[1], Tokens{}, nil) },
	} {
		got, err := render()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		golden(t, name, got)
	}
}

// TestClustersAreDisjoint holds the address plan: no two nodes of any two slots
// share an address, a subnet, a bridge or, up to the twelfth, a dynamic port.
func TestClustersAreDisjoint(t *testing.T) {
	addrs, names := map[netip.Addr]bool{}, map[string]bool{}
	var subnets []netip.Prefix
	ports := map[int]int{}
	for slot := range maxSlots {
		for _, n := range layOut(slot, MaxServers, MaxClients, true) {
			if addrs[n.Addr] || !n.Addr.IsLoopback() || n.Addr == localhost {
				t.Fatalf("slot %d: address %s of %s", slot, n.Addr, n.Name)
			}
			addrs[n.Addr] = true
			if n.Bridge == nil {
				continue
			}
			if names[n.Bridge.Name] || len(n.Bridge.Name) > 15 {
				t.Fatalf("slot %d: bridge %s", slot, n.Bridge.Name)
			}
			names[n.Bridge.Name] = true
			for _, s := range subnets {
				if s.Overlaps(n.Bridge.Subnet) {
					t.Fatalf("slot %d: subnet %s overlaps %s", slot, n.Bridge.Subnet, s)
				}
			}
			subnets = append(subnets, n.Bridge.Subnet)
			if !n.Bridge.Subnet.Contains(n.Bridge.Gateway) || !n.Bridge.Subnet.Addr().Is4() || subnetOf(n.Bridge.Name) != strings.TrimSuffix(n.Bridge.Subnet.String(), "0/24") {
				t.Fatalf("slot %d: gateway %s, subnet %s, name %s", slot, n.Bridge.Gateway, n.Bridge.Subnet, n.Bridge.Name)
			}
			for port := n.MinPort; slot < dynamicSlots && port <= n.MaxPort; port++ {
				if other, taken := ports[port]; taken || port < 20000 || port > 31999 {
					t.Fatalf("slots %d and %d: dynamic port %d", slot, other, port)
				}
				ports[port] = slot
			}
		}
	}
}

func TestEndpointsAreDistinct(t *testing.T) {
	seen := map[endpoint]bool{}
	p := rootPlan()
	for _, e := range p.endpoints() {
		key := endpoint{addr: e.addr, udp: e.udp}
		if seen[key] {
			t.Errorf("%s of %s is planned twice", e.addr, e.agent)
		}
		seen[key] = true
	}
	for _, want := range []string{"127.66.1.1:8520", "127.0.0.1:8520", "127.0.0.1:4666", "127.66.2.2:4666", "127.66.1.3:4668"} {
		if !seen[endpoint{addr: netip.MustParseAddrPort(want)}] {
			t.Errorf("%s is missing", want)
		}
	}
	if seen[endpoint{addr: netip.MustParseAddrPort("127.66.2.1:8320")}] {
		t.Error("a client has a server's RPC port")
	}
}

func TestWhatJobsGet(t *testing.T) {
	root, user := newCluster(&state{Plan: rootPlan(), Tokens: Tokens{Nomad: "n", Consul: "c"}}), newCluster(&state{Plan: userPlan()})
	t.Setenv("PATH", "/usr/bin")
	for c, want := range map[*Cluster]string{
		root: "NOMAD_ADDR=http://127.0.0.1:4666 CONSUL_HTTP_ADDR=http://127.0.0.1:8520 NOMAD_TOKEN=n CONSUL_HTTP_TOKEN=c " +
			"NOMAD_VAR_driver=docker NOMAD_VAR_retinue_image=" + Image() + " NOMAD_VAR_retinue_command=/usr/local/bin/retinue " +
			"NOMAD_VAR_network_mode=bridge NOMAD_VAR_consul_http_addr=http://${meta.retinue_consul} NOMAD_VAR_retinue_consul_http_addr=http://${meta.retinue_consul} NOMAD_VAR_consul_ui=http://127.0.0.1:8520/ui/dc1 NOMAD_VAR_lease=2s PATH=/srv/dev/bin:/usr/bin",
		user: "NOMAD_ADDR=http://127.0.0.1:4646 CONSUL_HTTP_ADDR=http://127.0.0.1:8500 " +
			"NOMAD_VAR_driver=raw_exec NOMAD_VAR_retinue_image=" + Image() + " NOMAD_VAR_retinue_command=/home/u/dev/bin/retinue " +
			"NOMAD_VAR_network_mode=host NOMAD_VAR_consul_http_addr=http://${meta.retinue_consul} NOMAD_VAR_retinue_consul_http_addr=http://${meta.retinue_consul} NOMAD_VAR_consul_ui=http://127.0.0.1:8500/ui/dc1 NOMAD_VAR_lease=2s PATH=/home/u/dev/bin:/usr/bin",
	} {
		var got []string
		for _, v := range c.Env() {
			got = append(got, v.Name+"="+v.Value)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
		}
	}
	t.Setenv("PATH", "/srv/dev/bin:/usr/bin")
	if p := root.searchPath(os.Getenv("PATH")); p != "/srv/dev/bin:/usr/bin" {
		t.Errorf("a second eval changes PATH to %s", p)
	}
	if g := root.TaskGateway(); g != "10.202.1.1" {
		t.Errorf("task gateway %s", g)
	}
	noDocker := rootPlan()
	noDocker.DockerSocket = ""
	if noDocker.Driver() != DriverExec {
		t.Errorf("root without Docker: %s", noDocker.Driver())
	}
}

func TestSocketPathsFit(t *testing.T) {
	dir := strings.Repeat("d", maxDir)
	socket := dir + "/c1/01234567-0123-0123-0123-0123456789ab/retinue-0123456_/secrets/api.sock"
	if len(socket) != 107 {
		t.Errorf("the longest socket path has %d bytes", len(socket))
	}
	p := userPlan()
	p.ShortDir = shortLink(p.Dir)
	if got := p.AllocDir(p.Nodes[1]); got != p.ShortDir+"/c1" || len(p.ShortDir) > maxDir {
		t.Errorf("allocations in %s", got)
	}
	if !inside(p.ShortDir+"/c1/x", p.Dir) || !inside(p.Dir+"/c1", p.Dir) || inside(p.Dir+"2/c1", p.Dir) || inside(p.Dir, p.Dir) {
		t.Error("inside")
	}
}

func TestConfigProblems(t *testing.T) {
	bad := Config{Dir: "/tmp/x", Servers: 8, Clients: -1, PortOffset: 60000, Docker: "maybe", SessionTTLMin: time.Nanosecond}
	_, err := bad.withDefaults()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"servers: 8", "clients: -1", "port offset: 60000", `docker: "maybe"`, "session TTL: 1ns"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	for _, dir := range []string{`/tmp/a"b`, "/tmp/a:b", "/tmp/a\nb", "/tmp/$HOME"} {
		if _, err := (Config{Dir: dir}).withDefaults(); err == nil {
			t.Errorf("%q is accepted", dir)
		}
	}
}

func TestDirIsResolved(t *testing.T) {
	base := t.TempDir()
	base, err := filepath.EvalSymlinks(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(base, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	got, err := cleanDir(filepath.Join(base, "link", "not", "there"))
	if want := filepath.Join(base, "not", "there"); err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

// TestPortInUse holds the words: who has the port, and the way out.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).AddrPort()
	p := Plan{Nodes: layOut(0, 1, 1, false)}
	p.PortOffset = int(taken.Port()) - portConsulHTTP
	if p.PortOffset < 0 || p.PortOffset > maxOffset {
		t.Skipf("the kernel gave port %d", taken.Port())
	}
	err = p.portsTaken()
	if err == nil {
		t.Fatal("the port counts as free")
	}
	if msg := err.Error(); !strings.Contains(msg, "which consul-server-1 needs, is in use by pid ") || !strings.Contains(msg, ".test") {
		t.Errorf("error: %s", msg)
	}
	if h := hint.Of(err); !strings.Contains(h, "--port-offset auto") {
		t.Errorf("hint: %s", h)
	}
}

func TestSlotsAreClaimedOnce(t *testing.T) {
	const slot = 4711 // no cluster has this number
	held, ok := claimSlot(slot)
	if !ok {
		t.Fatal("not free")
	}
	if _, ok := claimSlot(slot); ok {
		t.Error("claimed twice")
	}
	held.Close()
	again, ok := claimSlot(slot)
	if !ok {
		t.Fatal("not free after it was given back")
	}
	again.Close()
}

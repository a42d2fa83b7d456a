package harness

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Net is a network of hosts on one switch. The switch is a bridge in a
// namespace of its own, so that nothing of the machine's own network is
// touched and any number of networks live side by side with equal addresses.
type Net struct {
	t     T
	sw    string
	name  string
	hosts int
}

// Host is a computer of a Net: a network namespace with one address.
type Host struct {
	Name string
	IP   string

	t  T
	ns string
}

// Direction says which packets a partition drops, seen from the host.
type Direction int

// The directions of a partition.
const (
	Both Direction = iota
	In
	Out
)

func (d Direction) String() string { return [...]string{"both ways", "inbound", "outbound"}[d] }

// NewNet makes a network without hosts.
func NewNet(t T) *Net {
	t.Helper()
	r := theRun(t)
	name := fmt.Sprintf("rt-%s-%d", r.id, r.seq())
	n := &Net{t: t, name: name, sw: name + "-sw"}
	n.addNamespace(n.sw)
	n.ip("-n", n.sw, "link", "add", "br0", "type", "bridge")
	n.ip("-n", n.sw, "link", "set", "br0", "up")
	return n
}

// Host adds a host. Addresses are 10.77.0.1, 10.77.0.2 and so on.
func (n *Net) Host(name string) *Host {
	n.t.Helper()
	n.hosts++
	h := &Host{Name: name, IP: fmt.Sprintf("10.77.0.%d", n.hosts), t: n.t, ns: fmt.Sprintf("%s-%s", n.name, name)}
	port := fmt.Sprintf("p%d", n.hosts)
	n.addNamespace(h.ns)
	n.ip("link", "add", "eth0", "netns", h.ns, "type", "veth", "peer", "name", port, "netns", n.sw)
	n.ip("-n", n.sw, "link", "set", port, "master", "br0", "up")
	n.ip("-n", h.ns, "addr", "add", h.IP+"/24", "dev", "eth0")
	n.ip("-n", h.ns, "link", "set", "lo", "up")
	n.ip("-n", h.ns, "link", "set", "eth0", "up")
	return h
}

func (n *Net) addNamespace(name string) {
	n.t.Helper()
	n.ip("netns", "add", name)
	n.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			n.t.Errorf("ip netns del %s: %v: %s", name, err, out)
		}
	})
}

func (n *Net) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Partition drops what the host receives (In), what it sends (Out) or both:
// to and from all, or only the hosts named.
func (h *Host) Partition(d Direction, from ...*Host) {
	h.t.Helper()
	if len(from) == 0 {
		h.drop(d, "", "")
	}
	for _, peer := range from {
		h.drop(d, "-s "+peer.IP, "-d "+peer.IP)
	}
}

func (h *Host) drop(d Direction, source, destination string) {
	h.t.Helper()
	if d != Out {
		h.iptables("-A INPUT -i eth0 " + source + " -j DROP")
	}
	if d != In {
		h.iptables("-A OUTPUT -o eth0 " + destination + " -j DROP")
	}
}

// Heal ends every partition of the host.
func (h *Host) Heal() {
	h.t.Helper()
	h.iptables("-F")
}

func (h *Host) iptables(rule string) {
	h.t.Helper()
	args := append([]string{"netns", "exec", h.ns, "iptables", "-w"}, strings.Fields(rule)...)
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		h.t.Fatalf("iptables %s on %s: %v: %s", rule, h.Name, err, out)
	}
}

// do runs f on a thread that is on the host. Sockets that f opens and
// processes that it starts stay there. A nil host is the machine itself.
func (h *Host) do(f func() error) error {
	if h == nil {
		return f()
	}
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	target, err := os.Open("/run/netns/" + h.ns)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", h.ns, err)
	}
	result := f()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so Go ends it with this goroutine rather than reuse it on the wrong host.
		return fmt.Errorf("leave %s: %w", h.ns, err)
	}
	runtime.UnlockOSThread()
	return result
}

// Dial connects from the host itself: a partition of its network does not
// stop a test from looking at what runs there.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := h.do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the host.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// Transport is an HTTP transport whose connections start on the host.
func (h *Host) Transport() *http.Transport {
	return &http.Transport{DialContext: h.Dial, MaxIdleConnsPerHost: 4, IdleConnTimeout: 10 * time.Second}
}

// sweepNamespaces removes the namespaces of a run that is gone, with the
// processes that are still in them.
func sweepNamespaces(id string) {
	entries, _ := os.ReadDir("/run/netns")
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "rt-"+id+"-") {
			continue
		}
		out, _ := exec.Command("ip", "netns", "pids", e.Name()).Output()
		for _, pid := range strings.Fields(string(out)) {
			_ = exec.Command("kill", "-9", pid).Run()
		}
		_ = exec.Command("ip", "netns", "del", e.Name()).Run()
	}
}

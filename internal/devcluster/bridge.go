package devcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"retinue/internal/hint"
)

// Nomad's bridge mode calls these plugins.
var cniPlugins = [...]string{"loopback", "bridge", "host-local", "firewall", "portmap"}

// CNIPath finds the folder with the CNI plugins that bridge mode needs.
func CNIPath() (string, error) {
	for _, dir := range []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"} {
		if hasPlugins(dir) {
			return dir, nil
		}
	}
	return "", hint.Wrap(errors.New("no CNI plugins in /opt/cni/bin, /usr/lib/cni or /usr/libexec/cni"),
		"install them (Debian: apt-get install containernetworking-plugins)")
}

func hasPlugins(dir string) bool {
	for _, name := range cniPlugins {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

// BridgeSupport says why bridge mode is not possible, or where its plugins are.
func BridgeSupport() (cniPath string, err error) {
	if os.Geteuid() != 0 {
		return "", hint.Wrap(errors.New("bridge mode needs root"), "start the cluster as root for bridge mode")
	}
	path, err := CNIPath()
	if err != nil {
		return "", err
	}
	if _, err := findIPTables(); err != nil {
		return "", err
	}
	return path, nil
}

// tryBridge makes a bridge and removes it: a root without the right to, in a
// container say, or a kernel without bridges, is found out only by trying.
func tryBridge() error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("try a bridge: %w", err)
	}
	defer unix.Close(sock)
	name := fmt.Sprintf("rtprobe%d", os.Getpid()%1e8)
	if err := ioctlName(sock, unix.SIOCBRADDBR, name); err != nil {
		return hint.Wrap(fmt.Errorf("no bridge can be made here: %w", err), "load the kernel's bridge module, or give this container CAP_NET_ADMIN")
	}
	if err := ioctlName(sock, unix.SIOCBRDELBR, name); err != nil {
		return fmt.Errorf("remove the bridge %s: %w", name, err)
	}
	return nil
}

func findIPTables() (string, error) {
	for _, name := range []string{"iptables", "/usr/sbin/iptables", "/sbin/iptables"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", hint.Wrap(errors.New("no iptables"), "install it (Debian: apt-get install iptables)")
}

// makeBridge creates the bridge with its gateway address. Nomad's own plugin
// would make it, but only with the first allocation, and the node's Consul agent
// listens on that address from the start. The alias says whose bridge it is.
//
// It has a hardware address of its own: one without takes the lowest of its
// ports', another one when an allocation comes or goes, and the others cannot
// reach their gateway for up to two minutes, until they ask for it again.
func makeBridge(b Bridge, dir string) error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	defer unix.Close(sock)
	if err := ioctlName(sock, unix.SIOCBRADDBR, b.Name); err != nil && !(errors.Is(err, unix.EEXIST) && bridgeAlias(b.Name) == alias(dir)) {
		return fmt.Errorf("make bridge %s: %w", b.Name, err)
	}
	if err := os.WriteFile(sysNet(b.Name, "ifalias"), []byte(alias(dir)), 0o644); err != nil {
		return fmt.Errorf("mark bridge %s: %w", b.Name, err)
	}
	mask := netip.AddrFrom4([4]byte{255, 255, 255, 0})
	for _, set := range []struct {
		request uint
		addr    netip.Addr
	}{{unix.SIOCSIFADDR, b.Gateway}, {unix.SIOCSIFNETMASK, mask}} {
		ifr, err := unix.NewIfreq(b.Name)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", b.Name, err)
		}
		if err := ifr.SetInet4Addr(set.addr.AsSlice()); err != nil {
			return fmt.Errorf("bridge %s: %w", b.Name, err)
		}
		if err := unix.IoctlIfreq(sock, set.request, ifr); err != nil {
			return fmt.Errorf("address of bridge %s: %w", b.Name, err)
		}
	}
	if err := setHardwareAddr(sock, b); err != nil {
		return fmt.Errorf("hardware address of bridge %s: %w", b.Name, err)
	}
	return setFlags(sock, b.Name, unix.IFF_UP, 0)
}

// setHardwareAddr gives a bridge a locally administered address, made of its IP address.
func setHardwareAddr(sock int, b Bridge) error {
	var request struct { // struct ifreq with a hardware address
		name   [unix.IFNAMSIZ]byte
		family uint16
		addr   [14]byte
		_      [8]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], b.Name)
	request.family = unix.ARPHRD_ETHER
	ip := b.Gateway.As4()
	copy(request.addr[:], append([]byte{0x02, 0x52}, ip[:]...))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}

func setFlags(sock int, name string, set, clear uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	if err := unix.IoctlIfreq(sock, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("flags of bridge %s: %w", name, err)
	}
	ifr.SetUint16(ifr.Uint16()&^clear | set)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("flags of bridge %s: %w", name, err)
	}
	return nil
}

// ioctlName is for the bridge requests, which take a bare name.
func ioctlName(sock int, request uintptr, name string) error {
	raw, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock), request, uintptr(unsafe.Pointer(raw))); errno != 0 {
		return errno
	}
	return nil
}

func removeBridge(name string) error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	defer unix.Close(sock)
	if err := setFlags(sock, name, 0, unix.IFF_UP); err != nil {
		return err
	}
	if err := ioctlName(sock, unix.SIOCBRDELBR, name); err != nil {
		return fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return nil
}

// bridgesOf lists the bridges that carry the mark of a cluster's folder.
func bridgesOf(dir string) []string {
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if bridgeAlias(e.Name()) == alias(dir) {
			names = append(names, e.Name())
		}
	}
	return names
}

func alias(dir string) string {
	const most = 255 // the kernel's limit of an alias
	s := "retinue dev " + dir
	return s[:min(len(s), most)]
}

func bridgeAlias(name string) string {
	raw, err := os.ReadFile(sysNet(name, "ifalias"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

func sysNet(name, file string) string { return filepath.Join("/sys/class/net", name, file) }

// subnetFree says whether no interface of this host and no route but the default
// one overlaps the prefix.
func subnetFree(want netip.Prefix) (bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("list the addresses of this host: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Overlaps(want) {
			return false, nil
		}
	}
	raw, err := os.ReadFile("/proc/net/route")
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("list the routes of this host: %w", err)
	}
	for _, route := range parseRoutes(string(raw)) {
		if route.Bits() > 0 && route.Overlaps(want) {
			return false, nil
		}
	}
	return true, nil
}

// parseRoutes reads /proc/net/route: destination and mask are 32-bit words in
// the host's byte order.
func parseRoutes(table string) []netip.Prefix {
	var out []netip.Prefix
	for line := range strings.Lines(table) {
		var iface, gateway string
		var dest, flags, mask uint32
		var skip int
		n, _ := fmt.Sscanf(line, "%s %x %s %x %d %d %d %x", &iface, &dest, &gateway, &flags, &skip, &skip, &skip, &mask)
		if n != 8 {
			continue
		}
		addr := netip.AddrFrom4([4]byte{byte(dest), byte(dest >> 8), byte(dest >> 16), byte(dest >> 24)})
		bits := 0
		for m := mask; m != 0; m &= m - 1 {
			bits++
		}
		out = append(out, netip.PrefixFrom(addr, bits))
	}
	return out
}

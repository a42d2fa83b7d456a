package procfs

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Owner is the process behind a socket. PID is 0 when the socket belongs to
// somebody whose file descriptors this user may not see.
type Owner struct {
	PID     int
	UID     int
	Command string // the command line, cut to a readable length
	Addr    netip.AddrPort
}

func (o Owner) String() string {
	if o.PID == 0 {
		return fmt.Sprintf("a process of user id %d", o.UID)
	}
	return fmt.Sprintf("pid %d (%s)", o.PID, o.Command)
}

// Socket is one line of /proc/net/tcp or udp that accepts traffic.
type Socket struct {
	Addr  netip.AddrPort
	UID   int
	Inode string
}

// Listeners returns the sockets that hold a local port: listening TCP sockets,
// or with udp the bound UDP ones.
func (f FS) Listeners(udp bool) []Socket {
	names, state := []string{"tcp", "tcp6"}, "0A"
	if udp {
		names, state = []string{"udp", "udp6"}, "07"
	}
	var all []Socket
	for _, name := range names {
		raw, err := os.ReadFile(filepath.Join(f.root, "net", name))
		if err != nil {
			continue
		}
		all = append(all, parseSockets(string(raw), state)...)
	}
	return all
}

// parseSockets reads a table of /proc/net and keeps the lines in one state.
func parseSockets(table, state string) []Socket {
	var out []Socket
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != state {
			continue
		}
		addr, err := parseAddr(fields[1])
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(fields[7])
		if err != nil {
			continue
		}
		out = append(out, Socket{Addr: addr, UID: uid, Inode: fields[9]})
	}
	return out
}

// parseAddr reads "0100007F:1F90": the address in 32-bit words of the host's
// byte order (little endian on everything Nomad runs on), the port in hex.
func parseAddr(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("socket address %q: no port", s)
	}
	raw, err := hex.DecodeString(host)
	if err != nil || (len(raw) != 4 && len(raw) != 16) {
		return netip.AddrPort{}, fmt.Errorf("socket address %q: bad host", s)
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("socket address %q: %w", s, err)
	}
	ip, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)), nil
}

// PortOwner finds who keeps addr from being bound: a socket on the same
// address, or on the wildcard.
func (f FS) PortOwner(addr netip.AddrPort, udp bool) (Owner, bool) {
	for _, s := range f.Listeners(udp) {
		if s.Addr.Port() != addr.Port() || (s.Addr.Addr() != addr.Addr() && !s.Addr.Addr().IsUnspecified()) {
			continue
		}
		owner := Owner{UID: s.UID, Addr: s.Addr}
		if pid := f.socketPID(s.Inode); pid != 0 {
			owner.PID = pid
			owner.Command = shorten(strings.Join(f.Args(pid), " "))
		}
		return owner, true
	}
	return Owner{}, false
}

// socketPID finds the process that has the socket open.
func (f FS) socketPID(inode string) int {
	want := "socket:[" + inode + "]"
	for _, pid := range f.PIDs() {
		dir := f.path(pid, "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && target == want {
				return pid
			}
		}
	}
	return 0
}

func shorten(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

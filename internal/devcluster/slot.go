package devcluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// claim is a slot that this process holds while it starts a cluster; afterwards
// the listening agents hold it. It is an abstract Unix socket: it needs no file,
// it works between users, and the kernel frees it when the process dies.
type claim struct{ net.Listener }

func claimSlot(slot int) (claim, bool) {
	l, err := net.Listen("unix", fmt.Sprintf("@retinue-dev-slot-%d", slot))
	return claim{l}, err == nil
}

// choose fills in the first slot that is free on this host, and with AutoPorts
// the port offset. The claim is held until the agents listen.
func choose(p Plan, servers, clients, offset int) (Plan, claim, error) {
	for slot := range maxSlots {
		held, ok := claimSlot(slot)
		if !ok {
			continue // another `up` is at it
		}
		try := p
		try.Slot, try.PortOffset = slot, offset
		if offset == AutoPorts {
			try.PortOffset = slot * offsetStep
		}
		try.Nodes = layOut(slot, servers, clients, p.CNIPath != "")
		busy, err := try.busy(offset == AutoPorts)
		if err == nil && !busy {
			if offset != AutoPorts {
				err = try.portsTaken()
			}
			if err == nil {
				return try, held, nil
			}
		}
		held.Close()
		if err != nil {
			return p, claim{}, err
		}
	}
	return p, claim{}, hint.Wrap(fmt.Errorf("none of the %d address ranges for clusters is free", maxSlots), "`retinue dev down` the clusters you do not need")
}

// busy says whether something of this host is in the slot: a listener on its
// loopback addresses, an interface or route in its subnets, a listener in its
// dynamic ports or, with ports, on any port the plan wants.
func (p Plan) busy(ports bool) (bool, error) {
	fs := procfs.New("")
	slotNet := netip.PrefixFrom(loopback(p.Slot, 0, 0), 16)
	tcp := fs.Listeners(false)
	for _, s := range tcp {
		if slotNet.Contains(s.Addr.Addr()) {
			return true, nil
		}
		for _, n := range p.clients() {
			if port := int(s.Addr.Port()); port >= n.MinPort && port <= n.MaxPort {
				return true, nil
			}
		}
	}
	for _, n := range p.Nodes {
		if n.Bridge == nil {
			continue
		}
		free, err := subnetFree(n.Bridge.Subnet)
		if err != nil || !free {
			return true, err
		}
	}
	return ports && p.portsTaken() != nil, nil
}

// portsTaken tries to bind every address of the plan, which is the truth, and
// names the process that has the first one that fails.
func (p Plan) portsTaken() error {
	for _, e := range p.endpoints() {
		if err := e.free(); err != nil {
			return err
		}
	}
	return nil
}

// free binds the address for a moment. Nobody to be found who has it is somebody who only tries as well, such as another
// cluster that starts, or a table of sockets that changed while it was read: both are over a moment later.
func (e endpoint) free() error {
	for try := 1; ; try++ {
		err := tryBind(e)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EADDRINUSE):
			return fmt.Errorf("address of %s: %w", e.agent, err)
		}
		fs := procfs.New("")
		if owner, found := fs.PortOwner(e.addr, e.udp); found {
			return e.taken(owner.String(), agentDirOf(fs.Args(owner.PID)))
		} else if try == 20 {
			return e.taken("another process", "")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// taken says who has the address, and the way out. dir is that of the dev cluster which the process belongs to.
func (e endpoint) taken(who, dir string) error {
	way := "stop that process"
	if dir != "" {
		who += ", the dev cluster in " + dir
		way = "`retinue dev down --dir " + dir + "`"
	}
	return hint.Wrap(fmt.Errorf("port %d, which %s needs, is in use by %s", e.addr.Port(), e.agent, who),
		"%s, or let retinue find free ports: `retinue dev up --port-offset auto`", way)
}

func tryBind(e endpoint) error {
	if e.udp {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(e.addr))
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(e.addr))
	if err != nil {
		return err
	}
	return l.Close()
}

// StandardPortsFree says who has a port that a cluster without an offset needs.
func StandardPortsFree() error {
	return Plan{Nodes: layOut(0, 1, 1, false)}.portsTaken()
}

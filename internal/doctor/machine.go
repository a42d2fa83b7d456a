package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"retinue/internal/devcluster"
	"retinue/internal/hint"
	"retinue/internal/toolchain"
)

// Machine returns the checks of this machine for a dev cluster in dir.
func Machine(dir string) []Check {
	const machine, programs = "This machine", "Programs"
	checks := []Check{
		{machine, "system", checkSystem},
		{machine, "user", checkUser},
		{machine, "cgroups", func(context.Context) (string, error) { return checkCgroups("/sys/fs/cgroup", os.Geteuid() == 0) }},
		{machine, "disk", func(context.Context) (string, error) { return checkDisk(dir) }},
		{machine, "docker", checkDocker},
		{machine, "CNI", checkCNI},
		{machine, "bridge", func(context.Context) (string, error) { return checkBridge("/sys/class/net") }},
		{machine, "ports", func(context.Context) (string, error) { return checkPorts(dir) }},
	}
	checks = append(checks, Check{programs, "driver plugin", func(context.Context) (string, error) {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		return checkDriverPlugin(self)
	}})
	for _, t := range toolchain.Tools() {
		checks = append(checks, Check{programs, t.String(), func(ctx context.Context) (string, error) { return checkTool(ctx, t) }})
	}
	return checks
}

func checkSystem(context.Context) (string, error) {
	detail := runtime.GOOS + "/" + runtime.GOARCH
	if runtime.GOOS != "linux" {
		return detail, hint.Wrap(errors.New("the dev cluster needs Linux"), "use a Linux machine or a virtual one")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return detail, err
	}
	return detail + ", kernel " + string(u.Release[:bytes.IndexByte(u.Release[:], 0)]), nil
}

func checkUser(context.Context) (string, error) {
	if os.Geteuid() == 0 {
		return "root", nil
	}
	return "an ordinary user", warn(hint.Wrap(errors.New("no exec driver and no bridge mode"), "start the cluster as root to have both"))
}

// checkCgroups tells the version by the controllers file that only version 2 has
// at its root. An ordinary user's Nomad does without cgroups.
func checkCgroups(root string, writable bool) (string, error) {
	var err error
	if writable {
		err = devcluster.CgroupsWritable(root)
	}
	if _, statErr := os.Stat(filepath.Join(root, "cgroup.controllers")); statErr == nil {
		return "version 2", err
	}
	var missing []string
	for _, c := range []string{"cpu", "cpuset", "memory", "freezer", "pids"} {
		if _, err := os.Stat(filepath.Join(root, c)); err != nil {
			missing = append(missing, c)
		}
	}
	switch {
	case len(missing) == 0 || err != nil:
		return "version 1", err
	case len(missing) == 5:
		return "", warn(hint.Wrap(errors.New("none are mounted"), "mount them on /sys/fs/cgroup: without, Nomad's exec and docker drivers cannot limit tasks"))
	}
	return "version 1", warn(hint.Wrap(fmt.Errorf("not mounted: %s", strings.Join(missing, ", ")), "mount them on /sys/fs/cgroup"))
}

// checkDriverPlugin looks for the task-driver plugin beside this program: there `retinue dev` finds it.
func checkDriverPlugin(self string) (string, error) {
	dir := filepath.Dir(self)
	if !devcluster.DriverPluginBeside(self) {
		return "", warn(hint.Wrap(fmt.Errorf("no retinue-driver and retinue-inner in %s: tasks of a dev cluster have no lifecycle block", dir),
			"`make plugin` builds them in a checkout"))
	}
	return "retinue-driver and retinue-inner in " + dir, nil
}

// A cluster's logs, Raft data and allocations fit into this.
const diskNeeded = 300 << 20

func checkDisk(dir string) (string, error) {
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", dir, err)
	}
	free := st.Bavail * uint64(st.Bsize)
	detail := fmt.Sprintf("%.1f GB free in %s", float64(free)/(1<<30), dir)
	if free < diskNeeded {
		return detail, hint.Wrap(errors.New("a cluster needs some 300 MB"), "free some space, or use another disk with --dir")
	}
	return detail, nil
}

func checkDocker(ctx context.Context) (string, error) {
	socket, err := devcluster.DockerSocket()
	if err != nil {
		return "", warn(err)
	}
	version, err := devcluster.NewEngine(socket).Version(ctx)
	if err != nil {
		return "", warn(err)
	}
	return "engine " + version + " at " + socket, nil
}

func checkCNI(context.Context) (string, error) {
	path, err := devcluster.CNIPath()
	if err != nil {
		return "", warn(err)
	}
	if _, err := devcluster.BridgeSupport(); err != nil {
		return "plugins in " + path, warn(err)
	}
	return "plugins in " + path + ", iptables", nil
}

// checkBridge looks at the bridge of Nomad's bridge mode. Where nothing has given it a hardware address it has the lowest of
// its ports', and changes it when an allocation comes or goes (hashicorp/nomad#12103). systemd-udevd gives it one.
func checkBridge(sysNet string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(sysNet, "nomad", "addr_assign_type"))
	if errors.Is(err, fs.ErrNotExist) {
		return "no allocation has made Nomad's yet", nil
	}
	if err != nil {
		return "", err
	}
	addr, err := os.ReadFile(filepath.Join(sysNet, "nomad", "address"))
	if err != nil {
		return "", err
	}
	const set = "3" // NET_ADDR_SET, include/uapi/linux/netdevice.h
	detail := "nomad, " + strings.TrimSpace(string(addr))
	if strings.TrimSpace(string(raw)) != set {
		return detail, warn(hint.Wrap(errors.New("its hardware address is the lowest of its ports': when that allocation goes, the others lose their network for up to two minutes"),
			"`ip link set nomad address 02:00:00:00:00:01` at each start of the machine, or MACAddressPolicy=persistent for it in a .link file of systemd"))
	}
	return detail, nil
}

func checkPorts(dir string) (string, error) {
	if c, err := devcluster.Open(dir); err == nil {
		return fmt.Sprintf("the dev cluster in %s has port offset %d", c.Dir(), c.Plan().PortOffset), nil
	}
	if err := devcluster.StandardPortsFree(); err != nil {
		return "", warn(err)
	}
	return "the standard ports are free", nil
}

func checkTool(ctx context.Context, t toolchain.Tool) (string, error) {
	found, ok := toolchain.Find(ctx, t)
	if !ok {
		detail := "not on PATH"
		if found.Note != "" {
			detail = found.Note
		}
		if err := t.CanBuild(); err != nil {
			return detail, err
		}
		return detail, warn(hint.Wrap(fmt.Errorf("%s will be built on first use", t.Pinned()), "`retinue tools` builds it now"))
	}
	detail := found.Version + " at " + found.Path
	if found.Note != "" {
		return detail, warn(hint.Wrap(errors.New(found.Note), "upgrade it, so that your shell and the cluster use the same"))
	}
	if _, err := exec.LookPath(t.String()); err != nil {
		detail += " (not on PATH; `retinue dev env` puts it there)"
	}
	return detail, nil
}

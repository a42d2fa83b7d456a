package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// sweep removes everything that belongs to a folder, and the folder. It goes by
// what is there (processes, containers, mounts, bridges), with the state file
// only as a help, so it does the same after any accident.
// known adds allocations to those that are found.
func sweep(ctx context.Context, dir string, known ...string) error {
	if err := sweepContent(ctx, dir, known...); err != nil {
		return err
	}
	if link := shortLink(dir); linksTo(link, dir) {
		if err := os.Remove(link); err != nil {
			return fmt.Errorf("remove the link to %s: %w", dir, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return diskError(fmt.Errorf("remove %s: %w", dir, err))
	}
	if dir == DefaultDir() {
		os.Remove(filepath.Dir(dir)) // the project's state folder, when nothing else is in it
	}
	return nil
}

// sweepContent is sweep without the folder and its lock.
func sweepContent(ctx context.Context, dir string, known ...string) error {
	f := procfs.New("")
	allocs := slices.Concat(known, allocsOf(dir), allocsOfProcesses(f, dir))
	var slot *Plan
	if st, err := loadState(dir); err == nil {
		slot = &st.Plan
	}
	if err := killAgents(ctx, f, dir); err != nil {
		return err
	}
	more, err := removeContainers(ctx, dir, allocs, slot)
	allocs = append(allocs, more...)
	thaw("/sys/fs/cgroup", allocs)
	errs := []error{err, killRest(f, dir, allocs), unmountUnder(dir)}
	if os.Geteuid() == 0 {
		errs = append(errs, removeNetworks(ctx, dir, allocs, slot), removeCgroups(f, allocs))
	}
	errs = append(errs, removeFiles(ctx, dir, slot))
	return errors.Join(errs...)
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// allocsOf lists the allocations whose folders the clients still have.
func allocsOf(dir string) []string {
	found, err := filepath.Glob(filepath.Join(dir, "c[1-9]", "*"))
	if err != nil {
		return nil
	}
	var ids []string
	for _, f := range found {
		if id := filepath.Base(f); uuid.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// allocsOfProcesses lists the allocations of the processes that run for the
// cluster: should somebody have removed its folder, they still know.
func allocsOfProcesses(f procfs.FS, dir string) []string {
	var ids []string
	for _, p := range processesOf(f, dir, nil) {
		for _, v := range f.Environ(p.PID) {
			if id, ok := strings.CutPrefix(v, "NOMAD_ALLOC_ID="); ok && uuid.MatchString(id) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// killAgents ends the agents: politely first, so that Nomad ends its plugins and
// Consul closes its files, but not for long.
func killAgents(ctx context.Context, f procfs.FS, dir string) error {
	var agents []procfs.Process
	for _, pid := range f.PIDs() {
		if !isAgentOf(f.Args(pid), dir) {
			continue
		}
		if p, ok := f.Lookup(pid); ok {
			agents = append(agents, p)
		}
	}
	for _, p := range agents {
		// A paused one could not hear SIGTERM.
		if err := errors.Join(f.Signal(p, syscall.SIGTERM), f.Signal(p, syscall.SIGCONT)); err != nil {
			return fmt.Errorf("stop agent %d: %w", p.PID, permission(err))
		}
	}
	limit := waitGone
	if ctx.Err() != nil {
		limit = 0
	}
	for _, p := range f.WaitGone(agents, limit) {
		if err := f.Signal(p, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill agent %d: %w", p.PID, permission(err))
		}
	}
	if left := f.WaitGone(agents, waitGone); len(left) > 0 {
		return fmt.Errorf("agent %d does not end after SIGKILL", left[0].PID)
	}
	return nil
}

func permission(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return hint.Wrap(err, "the cluster was started by another user: take it down as that user")
	}
	return err
}

// killRest kills what agents leave when they are killed: executors, log
// collectors, and the tasks themselves.
func killRest(f procfs.FS, dir string, allocs []string) error {
	for range 10 { // a dying executor can have started something meanwhile
		procs := processesOf(f, dir, allocs)
		if len(procs) == 0 {
			return nil
		}
		for _, p := range procs {
			if err := errors.Join(f.Signal(p, syscall.SIGKILL), f.Signal(p, syscall.SIGCONT)); err != nil {
				return fmt.Errorf("kill process %d: %w", p.PID, permission(err))
			}
		}
		f.WaitGone(procs, waitGone)
	}
	if left := processesOf(f, dir, allocs); len(left) > 0 {
		return fmt.Errorf("process %d does not end after SIGKILL", left[0].PID)
	}
	return nil
}

// processesOf lists the processes of a cluster: agents by their command line,
// what agents started by the marker in its environment, tasks by the allocation
// in theirs or in their cgroup, or by a root folder inside the cluster's. The
// caller and its ancestors are never among them.
func processesOf(f procfs.FS, dir string, allocs []string) []procfs.Process {
	spare := ancestors(f)
	var out []procfs.Process
	for _, pid := range f.PIDs() {
		if spare[pid] || !belongs(f, pid, dir, allocs) {
			continue
		}
		if p, ok := f.Lookup(pid); ok {
			out = append(out, p)
		}
	}
	return out
}

func belongs(f procfs.FS, pid int, dir string, allocs []string) bool {
	if isAgentOf(f.Args(pid), dir) || inside(f.Link(pid, "root"), dir) {
		return true
	}
	for _, v := range f.Environ(pid) {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case markerEnv:
			return value == dir
		case "NOMAD_ALLOC_ID":
			if slices.Contains(allocs, value) {
				return true
			}
		case "NOMAD_ALLOC_DIR":
			if inside(value, dir) {
				return true
			}
		}
	}
	cgroup := f.Cgroup(pid)
	return slices.ContainsFunc(allocs, func(id string) bool { return strings.Contains(cgroup, id) })
}

func ancestors(f procfs.FS) map[int]bool {
	out := map[int]bool{}
	for pid := os.Getpid(); pid > 0 && !out[pid]; {
		out[pid] = true
		st, err := f.Stat(pid)
		if err != nil {
			break
		}
		pid = st.Parent
	}
	return out
}

// inside says whether path is below a cluster's folder, by its name or by the
// short link that stands for it.
func inside(path, dir string) bool {
	return strings.HasPrefix(path, dir+"/") || strings.HasPrefix(path, shortLink(dir)+"/")
}

// removeContainers removes the containers of the cluster's allocations, and
// those that mount a folder of the cluster, whose allocations it returns: that
// finds them without the folder.
func removeContainers(ctx context.Context, dir string, allocs []string, p *Plan) (found []string, err error) {
	socket := ""
	switch {
	case p != nil:
		socket = p.DockerSocket
	default:
		socket, _ = DockerSocket() // the state is lost: it is worth a look
	}
	if socket == "" || !exists(socket) {
		return nil, nil
	}
	e := NewEngine(socket)
	list, err := e.containers(ctx)
	if err != nil {
		if p == nil || errors.Is(err, unix.ECONNREFUSED) {
			return nil, nil // an engine that does not run runs no containers
		}
		return nil, err
	}
	mine := map[string]bool{}
	for _, id := range allocs {
		mine[id] = true
	}
	for _, c := range list {
		if id := c.Labels[labelAlloc]; !mine[id] && c.mounts(dir) {
			mine[id] = true // and so is its pause container, which has no mount
			found = append(found, id)
		}
	}
	var errs []error
	for _, c := range list {
		if mine[c.Labels[labelAlloc]] {
			errs = append(errs, e.removeContainer(ctx, c.ID))
		}
	}
	return found, errors.Join(errs...)
}

// unmountUnder unmounts everything mounted below the folder, the deepest first:
// secrets folders, what exec binds into its roots.
func unmountUnder(dir string) error {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	points := mountsUnder(string(raw), dir)
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil {
			err = unix.Unmount(point, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
			if err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s: %w", point, err)
			}
		}
	}
	return nil
}

// mountsUnder reads mountinfo, which is in the order of mounting.
func mountsUnder(mountinfo, dir string) []string {
	var points []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape(fields[4]); inside(point, dir) {
			points = append(points, point)
		}
	}
	return points
}

// unescape undoes the kernel's octal escapes of spaces and the like.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// removeFiles removes all but the lock. As an ordinary user there can be folders
// that a container's root made: only that root can remove them.
func removeFiles(ctx context.Context, dir string, p *Plan) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return diskError(err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() == "lock" {
			continue
		}
		name := filepath.Join(dir, e.Name())
		err := os.RemoveAll(name)
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 && p != nil && p.DockerSocket != "" {
			err = NewEngine(p.DockerSocket).runToEnd(ctx, p.image(), name, taskBinary, "remove-content", name)
			if err == nil {
				err = os.RemoveAll(name)
			}
		}
		errs = append(errs, err)
	}
	return diskError(errors.Join(errs...))
}

package devcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// CgroupsWritable says why Nomad, as root, could not make its cgroups under
// root, without which it does not start.
func CgroupsWritable(root string) error {
	dir := root
	if !exists(filepath.Join(root, "cgroup.controllers")) { // version 1
		dir = filepath.Join(root, "cpuset")
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return hint.Wrap(fmt.Errorf("nomad cannot make cgroups in %s: %w", dir, err),
			"start the cluster as an ordinary user, or mount cgroups writable (a container needs --privileged)")
	}
	return nil
}

// Nomad's own cgroup, on both versions; its cgroup_parent option changes nothing.
var nomadCgroups = [...]string{"/sys/fs/cgroup/nomad.slice", "/sys/fs/cgroup/*/nomad"}

// removeCgroups removes the (by now empty) cgroups of the allocations, which
// Nomad leaves when it is killed. Where no other Nomad agent runs that would miss
// it, Nomad's own goes too, with what earlier accidents left in it; a cgroup with
// a process in it stays.
func removeCgroups(f procfs.FS, allocs []string) error {
	var errs []error
	for _, pattern := range nomadCgroups {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, root := range roots {
			for _, id := range allocs {
				for _, depth := range []string{"/", "/*/"} { // below share or reserve on version 2
					found, err := filepath.Glob(root + depth + id + ".*")
					if err != nil {
						continue
					}
					for _, dir := range found {
						errs = append(errs, removeCgroupTree(dir))
					}
				}
			}
			if !nomadRuns(f) && !hasProcesses(root) {
				errs = append(errs, removeCgroupTree(root))
			}
		}
	}
	return errors.Join(errs...)
}

// thaw lets the tasks of the allocations go on that the lifecycle driver has paused: in version 1 of control groups a frozen
// process does not even die.
func thaw(root string, allocs []string) {
	for _, id := range allocs {
		found, err := filepath.Glob(filepath.Join(root, "freezer", "nomad", id+".*", "freezer.state"))
		if err != nil {
			continue
		}
		for _, state := range found {
			_ = os.WriteFile(state, []byte("THAWED"), 0) // what is left frozen is seen as a process that does not end
		}
	}
}

func nomadRuns(f procfs.FS) bool {
	return slices.ContainsFunc(f.PIDs(), func(pid int) bool {
		args := f.Args(pid)
		return len(args) > 1 && filepath.Base(args[0]) == "nomad" && args[1] == "agent"
	})
}

// hasProcesses says whether a process is in a cgroup or in one below it.
func hasProcesses(root string) bool {
	found := false
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			raw, err := os.ReadFile(path)
			found = found || err != nil || len(raw) > 0
		}
		return nil
	})
	return found || err != nil
}

// removeCgroupTree removes a cgroup with those below it. The kernel lets go of a
// dead process's cgroup a moment after the process.
func removeCgroupTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		err := os.Remove(d)
		for i := 0; i < 50 && errors.Is(err, unix.EBUSY); i++ {
			time.Sleep(20 * time.Millisecond)
			err = os.Remove(d)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A start that was cut off, by a crash of this process or of the inner one, has left no handle with anybody: the process
// of the task may run, and its helper (executor, docker_logger) does. Nomad starts the task again, and so it would run
// twice, or, with exec, not at all, because its control group is not empty. And when an executor is killed, the inner
// driver forgets the task, and leaves its process running.

// leftLimit is how long killed processes may take to be gone.
const leftLimit = 5 * time.Second

// interrupted says that an earlier start of this task was cut off: what is written of it is removed when a task ends.
func (t *task) interrupted() bool {
	_, err := os.Stat(t.stateFile())
	return err == nil
}

// clear ends what an earlier run of the task has left. It must not be called while the task runs.
func (t *task) clear(ctx context.Context) {
	helpers, err := t.helpers("/proc")
	if err != nil {
		t.log.Warn("cannot look for what an earlier start has left", "error", err)
		return
	}
	for _, pid := range helpers {
		t.log.Warn("ending what an earlier start of the task, which was cut off, has left", "pid", pid)
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	t.clearGroup(ctx)
}

// clearGroup ends all processes of the task's control group. A container is its engine's to end, and the inner driver's to find again.
func (t *task) clearGroup(ctx context.Context) {
	if t.container != "" || t.d.name == "docker" {
		return
	}
	if g, err := t.ownGroup("/sys/fs/cgroup"); err == nil && g != nil {
		g.end(ctx, t.log)
	}
}

// end kills what runs in the group, until nothing does.
func (g group) end(ctx context.Context, log hclog.Logger) {
	deadline := time.Now().Add(leftLimit)
	for {
		pids, err := g.processes()
		if err != nil || len(pids) == 0 {
			return
		}
		log.Warn("ending processes that the task has left", "pids", pids)
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if !g.v2 { // there a frozen process does not even die
			_ = write(filepath.Join(g.dir, "freezer.state"), "THAWED")
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return
		}
		if time.Now().After(deadline) {
			log.Error("processes of the task do not end", "pids", pids)
			return
		}
	}
}

// rememberGroup notes that the control groups of a task may be left when its allocation is gone: an executor that was
// killed has not removed those that it made.
func (d *Driver) rememberGroup(t *task) {
	if mark := t.mark(); mark != "" && t.container == "" && t.dir != "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.groups[mark] = t.dir
	}
}

// removeGroups removes empty control groups of tasks whose allocation is gone.
func (d *Driver) removeGroups(cgroups string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for mark, dir := range d.groups {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		delete(d.groups, mark)
		found, err := filepath.Glob(filepath.Join(cgroups, "*", "nomad", mark))
		if err != nil {
			continue // no pattern comes from a mark
		}
		for _, group := range found {
			var dirs []string
			_ = filepath.WalkDir(group, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, one := range slices.Backward(dirs) { // the deepest first
				if err := syscall.Rmdir(one); err != nil && !errors.Is(err, fs.ErrNotExist) {
					d.log.Warn("cannot remove a control group of a task that is gone", "group", one, "error", err)
				}
			}
		}
	}
}

// mark is the name of the control groups that Nomad makes for the task; "" when it has none.
func (t *task) mark() string {
	mark := t.alloc + "." + t.name
	if len(t.alloc) < 8 || strings.ContainsAny(mark, `*?[\/`) {
		return ""
	}
	return mark
}

// ownGroup is the control group that Nomad has made for the task; nil when there is none.
func (t *task) ownGroup(cgroups string) (*group, error) {
	mark := t.mark()
	if mark == "" {
		return nil, nil
	}
	for _, known := range []struct {
		pattern string
		v2      bool
	}{{"freezer/nomad/" + mark, false}, {"nomad.slice/*/" + mark + ".scope", true}} {
		found, err := filepath.Glob(filepath.Join(cgroups, known.pattern))
		if err != nil {
			return nil, fmt.Errorf("find the control group: %w", err)
		}
		if len(found) > 0 {
			return &group{found[0], known.v2}, nil
		}
	}
	return nil, nil
}

// processes lists those of the group.
func (g group) processes() (pids []int, err error) {
	err = filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return skipGone(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return skipGone(err)
		}
		for _, field := range strings.Fields(string(raw)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			if pid > 0 { // 0 is one of another namespace
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// helpers finds the processes that the inner driver has beside this task: an executor by its log file, which lies in the
// folder of the task, a docker_logger by the pipe of the task's log that it writes to.
func (t *task) helpers(proc string) (pids []int, err error) {
	if t.dir == "" || t.name == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	logFile := strconv.Quote(filepath.Join(t.dir, t.name, "executor.out"))
	pipes := filepath.Join(t.dir, "alloc", "logs", "."+t.name+".std")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(proc, e.Name(), "cmdline"))
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		switch {
		case len(args) == 3 && args[1] == "executor" && strings.Contains(args[2], logFile),
			len(args) == 2 && args[1] == "docker_logger" && hasOpen(filepath.Join(proc, e.Name(), "fd"), pipes):
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hasOpen says whether one of a process's open files begins with a path.
func hasOpen(fds, path string) bool {
	entries, err := os.ReadDir(fds)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		to, err := os.Readlink(filepath.Join(fds, e.Name()))
		return err == nil && strings.HasPrefix(to, path)
	})
}

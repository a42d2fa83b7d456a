package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A freezer stops all processes of a control group and lets them go on.
type freezer struct {
	file         string // to write to
	freeze, thaw string // what
	state        string // file to read
	frozen, runs string // what it says, when it is done
}

// Freeze implements lifecycle.Host: by the freezer of the task's control group, which
// no process of it can see or escape, else by SIGSTOP to the main process.
func (t *task) Freeze(ctx context.Context) error { return t.setFrozen(ctx, true) }

// Thaw implements lifecycle.Host.
func (t *task) Thaw(ctx context.Context) error { return t.setFrozen(ctx, false) }

func (t *task) setFrozen(ctx context.Context, frozen bool) error {
	f, err := t.findFreezer("/sys/fs/cgroup", "/proc")
	if err != nil {
		return err
	}
	if f == nil {
		t.log.Warn("no freezer for this task: SIGSTOP and SIGCONT to its main process instead")
		if frozen {
			return t.Signal(ctx, "SIGSTOP")
		}
		return t.Signal(ctx, "SIGCONT")
	}
	return f.set(ctx, frozen)
}

// set writes the wish and waits until it has come true.
func (f *freezer) set(ctx context.Context, frozen bool) error {
	wish, want := f.thaw, f.runs
	if frozen {
		wish, want = f.freeze, f.frozen
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		// Again each time: in version 1 a process that forks meanwhile needs it.
		if err := os.WriteFile(f.file, []byte(wish), 0o644); err != nil {
			return err
		}
		said, err := os.ReadFile(f.state)
		if err != nil {
			return err
		}
		if bytes.Contains(said, []byte(want)) {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			if frozen {
				os.WriteFile(f.file, []byte(f.thaw), 0o644) // not half frozen
			}
			return fmt.Errorf("the freezer does not say %q within 10 s but %q", want, bytes.TrimSpace(said))
		}
	}
}

// findFreezer finds the control group of the task by one of its processes: nil when
// there is none with a freezer of its own.
func (t *task) findFreezer(cgroups, proc string) (*freezer, error) {
	mark := t.container
	if mark == "" {
		mark = t.alloc + "." + t.name // as Nomad names the group of exec and raw_exec
	}
	if len(mark) < 8 {
		return nil, nil
	}
	// Version 1 has a folder of the freezer's own, so no process has to be found for it.
	for _, pattern := range []string{"nomad/" + mark, "docker/" + mark, "*/docker-" + mark + ".scope", "*/" + mark} {
		found, err := filepath.Glob(filepath.Join(cgroups, "freezer", pattern, "freezer.state"))
		if err != nil {
			return nil, fmt.Errorf("find the freezer: %w", err)
		}
		if len(found) > 0 {
			return &freezer{found[0], "FROZEN", "THAWED", found[0], "FROZEN", "THAWED"}, nil
		}
	}
	lines, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("find the control group: %w", err)
	}
	for _, name := range lines {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		path := groupOf(string(raw), mark)
		if path == "" {
			continue
		}
		file := filepath.Join(cgroups, path, "cgroup.freeze")
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return &freezer{file, "1", "0", filepath.Join(cgroups, path, "cgroup.events"), "frozen 1", "frozen 0"}, nil
	}
	return nil, nil
}

// groupOf is the path of the version 2 group in /proc/PID/cgroup, up to the folder that
// has the mark in its name; "" when it has not.
func groupOf(cgroup, mark string) string {
	for line := range strings.Lines(cgroup) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		at := strings.Index(path, mark)
		if at < 0 {
			return ""
		}
		if end := strings.IndexByte(path[at:], '/'); end >= 0 {
			return path[:at+end]
		}
		return path
	}
	return ""
}

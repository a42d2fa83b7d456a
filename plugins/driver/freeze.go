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

	"retinue/internal/lifecycle"
)

// A group is the control group of a task: its folder in version 2, or that of the
// freezer in version 1.
type group struct {
	dir string
	v2  bool
}

// Freeze implements lifecycle.Host: by the freezer of the task's control group, which
// no process of it can see or escape, else by SIGSTOP to the main process.
func (t *task) Freeze(ctx context.Context) error { return t.setFrozen(ctx, true) }

// Thaw implements lifecycle.Host.
func (t *task) Thaw(ctx context.Context) error { return t.setFrozen(ctx, false) }

func (t *task) setFrozen(ctx context.Context, frozen bool) error {
	if !frozen && t.container != "" && t.d.name == "docker" {
		// An engine that was asked to pause the container starts no command in it until it is asked to let it go on.
		if err := t.d.current().engine.unpause(ctx, t.container); err != nil {
			t.log.Warn("the engine does not let the container go on; its freezer does", "error", err)
		}
	}
	g, err := t.findGroup("/sys/fs/cgroup", "/proc")
	if err != nil {
		return err
	}
	if g != nil {
		err := g.freeze(ctx, frozen)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	t.log.Warn("no freezer for this task: SIGSTOP and SIGCONT to its main process instead")
	if frozen {
		return t.Signal(ctx, "SIGSTOP")
	}
	return t.Signal(ctx, "SIGCONT")
}

// thawForeign ends a freeze that is not the lifecycle's own, by `docker pause` or by somebody who has written to the freezer:
// the hooks of a stop would only wait for a frozen application, and its signal would wait too.
func (t *task) thawForeign(ctx context.Context) {
	if t.engine.Status().Phase == lifecycle.Paused {
		return // the stop itself thaws
	}
	g, err := t.findGroup("/sys/fs/cgroup", "/proc")
	if err != nil || g == nil || !g.frozen() {
		return
	}
	t.log.Warn("the task is to be stopped, and was frozen by somebody else: thawing it")
	message := "Thawed: somebody else had frozen it"
	if err := t.Thaw(ctx); err != nil {
		message = "Frozen by somebody else, and cannot be thawed: " + err.Error()
		t.log.Error("cannot thaw the task", "error", err)
	}
	t.Event(lifecycle.Event{Message: message})
}

// frozen says that the group's processes do not run, or will not in a moment.
func (g group) frozen() bool {
	name, word := "freezer.state", "F" // FROZEN, FREEZING
	if g.v2 {
		name, word = "cgroup.events", "frozen 1"
	}
	said, err := os.ReadFile(filepath.Join(g.dir, name))
	return err == nil && bytes.Contains(said, []byte(word))
}

// freezeLimit is how long the kernel may take: a process in an uninterruptible wait
// does not freeze before its end.
const freezeLimit = 10 * time.Second

// freeze writes the wish and waits until it has come true. The error is fs.ErrNotExist
// where the group has no freezer.
func (g group) freeze(ctx context.Context, frozen bool) error {
	file, state := filepath.Join(g.dir, "freezer.state"), filepath.Join(g.dir, "freezer.state")
	freeze, thaw, isFrozen, isThawed := "FROZEN", "THAWED", "FROZEN", "THAWED"
	if g.v2 {
		file, state = filepath.Join(g.dir, "cgroup.freeze"), filepath.Join(g.dir, "cgroup.events")
		freeze, thaw, isFrozen, isThawed = "1", "0", "frozen 1", "frozen 0"
	}
	wish, want := thaw, isThawed
	if frozen {
		wish, want = freeze, isFrozen
	}
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		// Again each time: in version 1 a process that forks meanwhile needs it.
		if err := write(file, wish); err != nil {
			return err
		}
		said, err := os.ReadFile(state)
		if err != nil {
			return err
		}
		if bytes.Contains(said, []byte(want)) {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			err := fmt.Errorf("the freezer does not say %q within %s but %q", want, freezeLimit, bytes.TrimSpace(said))
			if frozen {
				err = errors.Join(err, write(file, thaw)) // not half frozen
			}
			return err
		}
	}
}

// write writes to a file of the kernel, and does not make one.
func write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// findGroup finds the control group of the task; nil when it has none of its own.
func (t *task) findGroup(cgroups, proc string) (*group, error) {
	mark := t.container
	if mark == "" {
		mark = t.alloc + "." + t.name // as Nomad names the group of exec and raw_exec
	}
	if len(mark) < 8 || strings.ContainsAny(mark, `*?[\/`) {
		return nil, nil
	}
	for _, pattern := range []string{"nomad/" + mark, "docker/" + mark, "*/docker-" + mark + ".scope", "*/" + mark} {
		found, err := filepath.Glob(filepath.Join(cgroups, "freezer", pattern))
		if err != nil {
			return nil, fmt.Errorf("find the control group: %w", err)
		}
		if len(found) > 0 {
			return &group{found[0], false}, nil
		}
	}
	for _, pattern := range []string{"nomad.slice/*/" + mark + ".scope", "docker/" + mark, "system.slice/docker-" + mark + ".scope"} {
		found, err := filepath.Glob(filepath.Join(cgroups, pattern))
		if err != nil {
			return nil, fmt.Errorf("find the control group: %w", err)
		}
		if len(found) > 0 {
			return &group{found[0], true}, nil
		}
	}
	// Of an engine or a job with a parent of its own for control groups: its processes know.
	lists, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("find the control group: %w", err)
	}
	for _, name := range lists {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		if path := groupOf(string(raw), mark); path != "" {
			return &group{filepath.Join(cgroups, path), true}, nil
		}
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
		if at < 0 || strings.HasSuffix(path, " (deleted)") { // of a zombie, from an earlier run of the task
			return ""
		}
		if end := strings.IndexByte(path[at:], '/'); end >= 0 {
			return path[:at+end]
		}
		return path
	}
	return ""
}

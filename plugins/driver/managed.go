package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/manage"
	"retinue/internal/lifecycle/state"
)

// managed is what the management API asks of a task. It implements manage.Task.
type managed struct{ t *task }

func (m managed) Engine() *lifecycle.Engine { return m.t.engine }

func (m managed) Info() manage.Info {
	c := m.t.config
	return manage.Info{
		Namespace: c.Namespace, Job: c.JobId, Group: c.TaskGroupName, Task: c.Name, Alloc: c.AllocId,
		Node: c.NodeName, Driver: m.t.d.as, Version: Contract,
	}
}

func (m managed) Config() map[string]any {
	config := map[string]any{"driver": m.t.d.as, "user": m.t.config.User}
	var block map[string]any
	if msgpack.Unmarshal(m.t.config.MsgpackDriverConfig, &block) == nil && block != nil {
		config["config"] = block
	}
	env := map[string]any{}
	for name, value := range m.t.env {
		env[name] = value
	}
	config["env"] = env
	return config
}

func (m managed) Exec(ctx context.Context, call lifecycle.ExecCall) (lifecycle.ExecResult, error) {
	return m.t.Exec(ctx, call)
}

func (m managed) Dial(ctx context.Context) (net.Conn, error) {
	return m.t.socket(sockApp).Dial(ctx, "unix")
}

func (m managed) State(ctx context.Context) (state.Meta, error) {
	if m.t.states == nil {
		return state.Meta{}, state.ErrNone
	}
	return m.t.states.Show(ctx)
}

func (m managed) Replicate(ctx context.Context, count func(int) (int, error)) (before, after int, err error) {
	return m.t.replicate(ctx, count)
}

func (m managed) Pids(context.Context) ([]int, error) {
	group, err := m.t.findGroup("/sys/fs/cgroup", "/proc")
	if err != nil {
		return nil, err
	}
	if group == nil {
		return nil, fmt.Errorf("%w: it has no control group of its own", manage.ErrUnsupported)
	}
	raw, err := os.ReadFile(filepath.Join(group.dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for word := range strings.FieldsSeq(string(raw)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("process %q in %s", word, group.dir)
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// Usage adds up what the kernel says of each process.
func (m managed) Usage(ctx context.Context) (manage.Usage, error) {
	pids, err := m.Pids(ctx)
	if err != nil {
		return manage.Usage{}, err
	}
	u := manage.Usage{Processes: len(pids), MemoryMaxBytes: uint64(max(0, m.t.config.GetResources().GetLinuxResources().GetMemoryLimitBytes()))}
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it ended meanwhile
		}
		// The name, in parentheses, may have anything in it.
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		if len(fields) < 22 {
			return u, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
		}
		number := func(i int) uint64 {
			n, _ := strconv.ParseUint(fields[i-3], 10, 64) // numbered as in proc(5)
			return n
		}
		const ticks = 100 // USER_HZ, the same on every Linux that Go runs on
		u.CPUSeconds += float64(number(14)+number(15)+number(16)+number(17)) / ticks
		u.Threads += int(number(20))
		u.MemoryBytes += number(24) * uint64(os.Getpagesize())
	}
	return u, nil
}

// Logs implements manage.Task with the files that Nomad collects the output in.
func (m managed) Logs(ctx context.Context, stream string, tail int64, follow bool) (io.ReadCloser, error) {
	root, err := os.OpenRoot(m.t.dir)
	if err != nil {
		return nil, err
	}
	l := &logReader{ctx: ctx, root: root, prefix: m.t.name + "." + stream + ".", follow: follow}
	if err := l.seek(tail); err != nil {
		root.Close()
		return nil, err
	}
	return l, nil
}

// logReader reads the rotated files of a log one after the other. The folder is one
// that the task can write in, so nothing but regular files of the allocation is read.
type logReader struct {
	ctx    context.Context
	root   *os.Root
	prefix string
	follow bool
	index  int // of the file that is read
	file   *os.File
}

const logDir = "alloc/logs"

// indexes lists the numbers of the files that are there.
func (l *logReader) indexes() ([]int, error) {
	dir, err := l.root.Open(logDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, name := range names {
		if rest, ok := strings.CutPrefix(name, l.prefix); ok {
			if n, err := strconv.Atoi(rest); err == nil && n >= 0 {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

func (l *logReader) open(index int) error {
	f, err := l.root.OpenFile(fmt.Sprintf("%s/%s%d", logDir, l.prefix, index), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Name())
	}
	if err != nil {
		f.Close()
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.index = f, index
	return nil
}

// seek opens the file that the last tail bytes begin in.
func (l *logReader) seek(tail int64) error {
	all, err := l.indexes()
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("%w: the task has no such log", manage.ErrUnsupported)
	}
	for i := len(all) - 1; i >= 0; i-- {
		if err := l.open(all[i]); err != nil {
			return err
		}
		info, err := l.file.Stat()
		if err != nil {
			return err
		}
		if info.Size() >= tail || i == 0 {
			_, err := l.file.Seek(max(0, info.Size()-tail), io.SeekStart)
			return err
		}
		tail -= info.Size()
	}
	return nil
}

func (l *logReader) Read(p []byte) (int, error) {
	for {
		n, err := l.file.Read(p)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		next, err := l.next()
		if err != nil {
			return 0, err
		}
		if next {
			continue
		}
		if !l.follow {
			return 0, io.EOF
		}
		select {
		case <-l.ctx.Done():
			return 0, io.EOF
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// next goes on to the file after this one, when it is there.
func (l *logReader) next() (bool, error) {
	all, err := l.indexes()
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(all, func(n int) bool { return n > l.index })
	if i < 0 {
		return false, nil
	}
	return true, l.open(all[i])
}

func (l *logReader) Close() error {
	return errors.Join(l.file.Close(), l.root.Close())
}

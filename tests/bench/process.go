package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spawner starts processes from one thread that lives as long as the program:
// the kernel's parent-death signal is about threads, and so it kills them all
// when the program is killed.
type spawner struct {
	dir   string
	tasks chan func()

	mu      sync.Mutex
	started []*process
}

func newSpawner(dir string) *spawner {
	s := &spawner{dir: dir, tasks: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for task := range s.tasks {
			task()
		}
	}()
	return s
}

// process is one that this program started, with a process group of its own.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

func (s *spawner) start(name string, env []string, path string, args ...string) (*process, error) {
	log := filepath.Join(s.dir, name+".log")
	out, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	failed := make(chan error)
	s.tasks <- func() { failed <- cmd.Start() }
	if err := <-failed; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // killed or not: who cares looks at the log
		close(p.done)
	}()
	s.mu.Lock()
	s.started = append(s.started, p)
	s.mu.Unlock()
	return p, nil
}

// close ends everything that was started.
func (s *spawner) close() {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	for i := len(started) - 1; i >= 0; i-- {
		started[i].kill()
	}
	close(s.tasks)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill sends SIGKILL to the process and its group, and waits until the process is reaped. A nil or ended process is fine.
func (p *process) kill() {
	if p == nil {
		return
	}
	if p.running() {
		_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	}
	<-p.done
}

// tail is the end of the process's log.
func (p *process) tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return fmt.Sprintf("--- %s ---\n%s", p.name, strings.Join(lines[max(0, len(lines)-15):], "\n"))
}

// rss is the resident memory of a process, in bytes.
func rss(pid int) (int64, error) { return memory(pid, "VmRSS:") }

// peakRSS is the most that it ever was.
func peakRSS(pid int) (int64, error) { return memory(pid, "VmHWM:") }

func memory(pid int, field string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}

// cpuTime is what a process has used of the processors, precise to a scheduling event.
func cpuTime(pid int) (time.Duration, error) {
	var total time.Duration
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d has no tasks", pid)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has just ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// connections counts the established TCP connections of a process to an address.
func connections(pid int, addr string) (int, error) {
	inodes := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return 0, err
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil {
			if inode, ok := strings.CutPrefix(link, "socket:["); ok {
				inodes[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	want, err := hexAddr(addr)
	if err != nil {
		return 0, err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		return 0, err
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		const established = "01"
		if len(f) > 9 && f[2] == want && f[3] == established && inodes[f[9]] {
			n++
		}
	}
	return n, nil
}

// hexAddr writes 127.0.0.1:80 as the kernel's tables do on a little-endian machine: 0100007F:0050.
func hexAddr(addr string) (string, error) {
	var a, b, c, d, port int
	if _, err := fmt.Sscanf(addr, "%d.%d.%d.%d:%d", &a, &b, &c, &d, &port); err != nil {
		return "", fmt.Errorf("address %q: %w", addr, err)
	}
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", d, c, b, a, port), nil
}

// loadAverage is the machine's load over the last minute.
func loadAverage() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	load, _ := strconv.ParseFloat(string(bytes.Fields(data)[0]), 64)
	return load
}

// eventually tries until check succeeds, every few milliseconds.
func eventually(ctx context.Context, limit time.Duration, what string, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// pause waits, or returns why it cannot.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Package procfs reads what the dev cluster must know about processes and
// sockets of this host from /proc: who a process is (its pid is not enough:
// pids are used again), what belongs to a folder, and who holds a port.
//
// Everything here is best effort over a moving target: a process that ends
// while it is read is simply not reported.
package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Root is where the proc file system is mounted; tests give another folder.
const Root = "/proc"

// Process identifies one process for good: a pid together with the time it
// started, in clock ticks since boot, never comes back.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// FS is one proc file system.
type FS struct{ root string }

// New returns the proc file system under root; "" means /proc.
func New(root string) FS {
	if root == "" {
		root = Root
	}
	return FS{root: root}
}

// Stat is the part of /proc/<pid>/stat that matters here.
type Stat struct {
	Command string
	State   byte
	Parent  int
	Threads int
	Start   uint64
}

// Stat reads /proc/<pid>/stat.
func (f FS) Stat(pid int) (Stat, error) {
	raw, err := os.ReadFile(f.path(pid, "stat"))
	if err != nil {
		return Stat{}, err
	}
	return parseStat(string(raw))
}

// parseStat takes the line apart. The command is in parentheses and may itself
// hold spaces and parentheses, so fields are counted from the last ")".
func parseStat(line string) (Stat, error) {
	open, shut := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || shut < open {
		return Stat{}, fmt.Errorf("stat line without a command: %q", line)
	}
	fields := strings.Fields(line[shut+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return Stat{}, fmt.Errorf("stat line with %d fields: %q", len(fields), line)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return Stat{}, fmt.Errorf("parent of %q: %w", line, err)
	}
	threads, err := strconv.Atoi(fields[17])
	if err != nil {
		return Stat{}, fmt.Errorf("threads of %q: %w", line, err)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Stat{}, fmt.Errorf("start time of %q: %w", line, err)
	}
	return Stat{Command: line[open+1 : shut], State: fields[0][0], Parent: parent, Threads: threads, Start: start}, nil
}

// Lookup returns the identity of a running pid; false when there is none or it
// is only a zombie that nobody has waited for. A zombie with threads is one whose
// first thread has ended before the others: they still hold its files and ports.
func (f FS) Lookup(pid int) (Process, bool) {
	st, err := f.Stat(pid)
	if err != nil || st.State == 'Z' && st.Threads <= 1 || st.State == 'X' {
		return Process{}, false
	}
	return Process{PID: pid, Start: st.Start}, true
}

// Alive says whether exactly this process still runs.
func (f FS) Alive(p Process) bool {
	now, ok := f.Lookup(p.PID)
	return ok && p.PID > 0 && now.Start == p.Start
}

// PIDs lists the processes that exist now.
func (f FS) PIDs() []int {
	entries, err := os.ReadDir(f.root)
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Args returns the command line of a process.
func (f FS) Args(pid int) []string { return f.list(pid, "cmdline") }

// Environ returns the environment a process was started with; empty for the
// processes of others.
func (f FS) Environ(pid int) []string { return f.list(pid, "environ") }

func (f FS) list(pid int, name string) []string {
	raw, err := os.ReadFile(f.path(pid, name))
	if err != nil || len(raw) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimRight(raw, "\x00")), "\x00")
}

// Link resolves one of the magic links of a process: exe, cwd, root.
func (f FS) Link(pid int, name string) string {
	target, err := os.Readlink(f.path(pid, name))
	if err != nil {
		return ""
	}
	return target
}

// Cgroup returns the text of /proc/<pid>/cgroup.
func (f FS) Cgroup(pid int) string {
	raw, err := os.ReadFile(f.path(pid, "cgroup"))
	if err != nil {
		return ""
	}
	return string(raw)
}

func (f FS) path(pid int, name string) string {
	return filepath.Join(f.root, strconv.Itoa(pid), name)
}

// Signal sends sig to exactly this process. One that has ended already is no
// error.
func (f FS) Signal(p Process, sig syscall.Signal) error {
	if !f.Alive(p) {
		return nil
	}
	err := syscall.Kill(p.PID, sig)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// WaitGone waits until none of the processes runs, at most for the given time,
// and returns those that still do.
func (f FS) WaitGone(procs []Process, limit time.Duration) []Process {
	deadline := time.Now().Add(limit)
	for {
		var left []Process
		for _, p := range procs {
			if f.Alive(p) {
				left = append(left, p)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(10 * time.Millisecond)
	}
}

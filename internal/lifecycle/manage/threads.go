package manage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/lifecycle"
)

// procDir is the kernel's; a variable would be a global.
const procDir = "/proc"

// maxThreads bounds a listing.
const maxThreads = 2000

// threads lists the threads of a task with what the kernel knows of each, and the stacks of a JVM as it prints them itself.
func (h *handlers) threads(ctx context.Context, pids []int) (string, error) {
	var b strings.Builder
	count := 0
	for _, pid := range pids {
		dump, err := h.jvm(ctx, pid)
		if err != nil {
			fmt.Fprintf(&b, "process %d is a JVM, its own thread dump failed: %v\n", pid, err)
		}
		if dump != "" {
			fmt.Fprintf(&b, "process %d, thread dump of the JVM:\n%s\n\n", pid, dump)
			continue
		}
		n, err := processThreads(&b, pid, maxThreads-count)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return "", err
		}
		if count += n; count >= maxThreads {
			fmt.Fprintf(&b, "... more than %d threads\n", maxThreads)
			break
		}
	}
	if b.Len() == 0 {
		return "", fmt.Errorf("%w: no process of the task was found", ErrUnsupported)
	}
	return b.String(), nil
}

func read(parts ...string) string {
	data, err := os.ReadFile(filepath.Join(append([]string{procDir}, parts...)...))
	if err != nil {
		return ""
	}
	return strings.TrimRight(strings.ReplaceAll(string(data), "\x00", " "), "\n ")
}

// statusField returns a field of /proc/PID/status.
func statusField(status, name string) string {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func processThreads(b *strings.Builder, pid, limit int) (int, error) {
	dir := strconv.Itoa(pid)
	tasks, err := os.ReadDir(filepath.Join(procDir, dir, "task"))
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(b, "process %d: %s\n", pid, read(dir, "cmdline"))
	n := 0
	for _, t := range tasks {
		if n == limit {
			break
		}
		status := read(dir, "task", t.Name(), "status")
		if status == "" {
			continue
		}
		n++
		fmt.Fprintf(b, "  thread %s %q state %s, waits in %s, switches %s voluntary %s involuntary\n", t.Name(), statusField(status, "Name"), statusField(status, "State"),
			or(strings.Trim(read(dir, "task", t.Name(), "wchan"), "0"), "nothing"), statusField(status, "voluntary_ctxt_switches"), statusField(status, "nonvoluntary_ctxt_switches"))
		if stack := read(dir, "task", t.Name(), "stack"); stack != "" {
			for line := range strings.Lines(stack) {
				fmt.Fprintf(b, "    %s\n", strings.TrimSpace(line))
			}
		}
	}
	return n, nil
}

// jvm returns a JVM's own thread dump; empty for a process that is none. It asks jcmd inside the task; where the image has
// none, SIGQUIT makes the JVM print the dump to its standard output.
func (h *handlers) jvm(ctx context.Context, pid int) (string, error) {
	dir := strconv.Itoa(pid)
	// By what it has loaded: SIGQUIT ends any other program.
	if !strings.Contains(read(dir, "maps"), "/libjvm.so") {
		return "", nil
	}
	inside := strings.Fields(statusField(read(dir, "status"), "NSpid"))
	if len(inside) == 0 {
		inside = []string{dir}
	}
	res, err := h.task.Exec(ctx, lifecycle.ExecCall{Command: []string{"jcmd", inside[len(inside)-1], "Thread.print"}, Limit: 8 << 20})
	if err == nil && res.Code == 0 && len(res.Stdout) > 0 {
		return string(res.Stdout), nil
	}
	return h.sigquit(ctx, pid)
}

const dumpBegins = "Full thread dump"

func (h *handlers) sigquit(ctx context.Context, pid int) (string, error) {
	before := strings.Count(h.tail(ctx), dumpBegins)
	if err := unix.Kill(pid, unix.SIGQUIT); err != nil {
		return "", fmt.Errorf("SIGQUIT: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	last := ""
	for {
		// The dump is whole when nothing more comes.
		text := h.tail(ctx)
		if at := strings.LastIndex(text, dumpBegins); at >= 0 && strings.Count(text, dumpBegins) > before {
			if dump := text[at:]; dump == last {
				return dump, nil
			} else {
				last = dump
			}
		}
		select {
		case <-ctx.Done():
			if last != "" {
				return last, nil
			}
			return "", errors.New("no thread dump came on its standard output; `retinue task logs` may show it later")
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (h *handlers) tail(ctx context.Context) string {
	log, err := h.task.Logs(ctx, "stdout", 1<<20, false)
	if err != nil {
		return ""
	}
	defer log.Close()
	data, _ := io.ReadAll(io.LimitReader(log, 1<<20)) // what could be read is enough
	return string(data)
}

// network gives the message statistics of the task's network namespace: devices, protocols, sockets.
func network(pids []int) (string, error) {
	seen := []string{}
	var b strings.Builder
	for _, pid := range pids {
		dir := strconv.Itoa(pid)
		ns, err := os.Readlink(filepath.Join(procDir, dir, "ns", "net"))
		if err != nil || slices.Contains(seen, ns) {
			continue
		}
		seen = append(seen, ns)
		for _, file := range []string{"dev", "snmp", "netstat", "sockstat"} {
			if text := read(dir, "net", file); text != "" {
				fmt.Fprintf(&b, "# %s %s\n%s\n\n", ns, file, text)
			}
		}
	}
	if b.Len() == 0 {
		return "", fmt.Errorf("%w: no process of the task was found", ErrUnsupported)
	}
	return b.String(), nil
}

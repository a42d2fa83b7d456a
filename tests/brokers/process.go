package brokers

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// Spawner starts processes from one thread that lives as long as the program: the kernel's parent-death signal is about threads, and
// so it kills them all when the program is killed.
type Spawner struct {
	tasks chan func()

	mu      sync.Mutex
	started []*Process
}

// NewSpawner makes one. Close ends what it started.
func NewSpawner() *Spawner {
	s := &Spawner{tasks: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for task := range s.tasks {
			task()
		}
	}()
	return s
}

// Command is a program to run.
type Command struct {
	Name string
	Path string
	Args []string
	Env  []string // in addition to our own
	Dir  string
	Log  string // file that gets what it writes
}

// Process is one that runs, in a process group of its own.
type Process struct {
	Command
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a process.
func (s *Spawner) Start(c Command) (*Process, error) {
	out, err := os.OpenFile(c.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	failed := make(chan error)
	s.tasks <- func() { failed <- cmd.Start() }
	if err := <-failed; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	p := &Process{Command: c, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // killed or not: who cares looks at the log
		close(p.done)
	}()
	s.mu.Lock()
	s.started = append(s.started, p)
	s.mu.Unlock()
	return p, nil
}

// Close kills everything that was started, the latest first.
func (s *Spawner) Close() {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	for i := len(started) - 1; i >= 0; i-- {
		started[i].Kill()
	}
	close(s.tasks)
}

// PID is the process's id, and that of its group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running says whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process and its group.
func (p *Process) Signal(sig syscall.Signal) {
	if p.Running() {
		_ = syscall.Kill(-p.PID(), sig) // it may have ended by now
	}
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	if p == nil {
		return
	}
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Tail is the end of the process's log.
func (p *Process) Tail() string {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return fmt.Sprintf("--- %s ---\n%s", p.Name, strings.Join(lines[max(0, len(lines)-25):], "\n"))
}

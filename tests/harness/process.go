package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Spec says how to run a process.
type Spec struct {
	Name string   // as logs and failures call it
	Path string   // the program
	Args []string // without the program
	Env  []string // in addition to the test's own
	Dir  string
	Host *Host // where it runs; nil is the machine itself
}

// Process is an external process that belongs to a test: it dies with the
// test binary, and its log is shown when the test fails.
type Process struct {
	spec Spec
	log  string
	t    T

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs a process until the test is over.
func Start(t T, spec Spec) *Process {
	t.Helper()
	r := theRun(t)
	p := &Process{spec: spec, t: t, log: filepath.Join(r.dir, fmt.Sprintf("%d-%s.log", r.seq(), spec.Name))}
	t.Cleanup(p.Cleanup)
	attachLog(t, func() string { return p.tail(25) })
	p.Run()
	return p
}

// Run starts the process, also again after a Kill. Its log goes on. What env says is added for this run.
func (p *Process) Run(env ...string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && !p.exitedLocked() {
		p.t.Fatalf("%s runs already", p.spec.Name)
	}
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatalf("%v", err)
	}
	defer log.Close()
	cmd := exec.Command(p.spec.Path, p.spec.Args...)
	cmd.Env = append(append(os.Environ(), p.spec.Env...), env...)
	cmd.Dir = p.spec.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.spec.Host.do(cmd.Start); err != nil {
		p.t.Fatalf("start %s: %v", p.spec.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
}

// PID is the process id of the last Run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Kill sends SIGKILL and waits until the process is gone.
func (p *Process) Kill() {
	p.t.Helper()
	p.Signal(syscall.SIGKILL)
	p.WaitExit(10 * time.Second)
}

// Stop asks the process to end, and kills it when it does not.
func (p *Process) Stop(patience time.Duration) {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.Done():
	case <-time.After(patience):
		p.Kill()
	}
}

// Pause stops the process where it is, as a long garbage collection or a
// suspended machine would. Resume lets it go on.
func (p *Process) Pause() { p.t.Helper(); p.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() { p.t.Helper(); p.Signal(syscall.SIGCONT) }

// Signal sends a signal to the process.
func (p *Process) Signal(sig syscall.Signal) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exitedLocked() {
		return
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("send %v to %s: %v", sig, p.spec.Name, err)
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// WaitExit waits for the end of the process and returns its error, nil for
// exit status 0.
func (p *Process) WaitExit(timeout time.Duration) error {
	p.t.Helper()
	select {
	case <-p.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	case <-time.After(timeout):
		p.t.Fatalf("%s does not end within %v", p.spec.Name, timeout)
		return nil
	}
}

// Cleanup ends the process and what it started in its process group.
func (p *Process) Cleanup() {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	// The group goes first: once the leader is reaped its id may be another's.
	select {
	case <-done:
	default:
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
	}
}

// Host is where the process runs, nil for the machine itself.
func (p *Process) Host() *Host { return p.spec.Host }

// Partition cuts the host of the process off. Heal ends it.
func (p *Process) Partition(d Direction, from ...*Host) {
	p.t.Helper()
	p.spec.Host.Partition(d, from...)
}

// Heal ends every partition of the host of the process.
func (p *Process) Heal() { p.t.Helper(); p.spec.Host.Heal() }

// Log is everything the process has written so far.
func (p *Process) Log() string {
	data, _ := os.ReadFile(p.log)
	return string(data)
}

func (p *Process) exitedLocked() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *Process) tail(lines int) string {
	return fmt.Sprintf("--- last %d lines of %s ---\n%s", lines, p.spec.Name, Tail(p.log, lines))
}

// Tail returns the last lines of a file.
func Tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

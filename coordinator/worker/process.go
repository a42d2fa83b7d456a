package worker

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a command that runs in a process group of its own and is killed when this process dies. No thread waits for it: its end is an event
// as others are. The kernel sends Pdeathsig when the thread ends that started it; threads of this program end with it, because no goroutine of it
// ends while it is locked to one.
type process struct {
	pid   int
	ended *os.File // readable from the end of the process on
}

// start starts a program with these descriptors as stdin, stdout and stderr.
func start(path string, argv []string, dir string, env []string, files [3]int) (*process, error) {
	pidfd := -1
	pid, _, err := syscall.StartProcess(path, argv, &syscall.ProcAttr{Dir: dir, Env: env, Files: []uintptr{uintptr(files[0]), uintptr(files[1]), uintptr(files[2])},
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}})
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid}
	if pidfd >= 0 && unix.SetNonblock(pidfd, true) == nil {
		p.ended = os.NewFile(uintptr(pidfd), "pidfd")
	}
	if p.ended == nil || p.ended.SetReadDeadline(time.Time{}) != nil { // older than Linux 5.3
		if err := p.watch(); err != nil {
			p.kill()
			_, _ = p.reap()
			return nil, err
		}
	}
	return p, nil
}

// watch is for kernels without pidfd: a thread waits after all, and closes a pipe then.
func (p *process) watch() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	if p.ended != nil {
		p.ended.Close()
	}
	p.ended = r
	go func() {
		for unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		w.Close()
	}()
	return nil
}

// wait waits until the process has ended, or until a time; the zero time is never. late: it has not ended.
func (p *process) wait(until time.Time) (late bool) {
	return p.ended.SetReadDeadline(until) == nil && p.blocked()
}

// waitFor waits until the process has ended, or a context has, which may have before. late: the process has not ended.
func (p *process) waitFor(ctx context.Context) (late bool) {
	if p.ended.SetReadDeadline(time.Time{}) != nil {
		return false
	}
	// From here on nothing else sets the deadline: it would undo that of a context that ends in between.
	stop := context.AfterFunc(ctx, p.interrupt)
	defer stop()
	return p.blocked()
}

// blocked waits until the process has ended, or until the deadline that is set.
func (p *process) blocked() (late bool) {
	conn, err := p.ended.SyscallConn()
	if err != nil {
		return false
	}
	err = conn.Read(func(uintptr) bool {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		return err != unix.EINTR && (err != nil || info.Signo != 0)
	})
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// interrupt ends a wait from elsewhere.
func (p *process) interrupt() { _ = p.ended.SetReadDeadline(time.Unix(1, 0)) }

// signal reaches all of the group. Nobody else can have its number before the process is reaped.
func (p *process) signal(s syscall.Signal) { _ = syscall.Kill(-p.pid, s) } // they may have ended

func (p *process) kill() { p.signal(syscall.SIGKILL) }

// reap returns how the process ended. It has ended, or is about to.
func (p *process) reap() (status syscall.WaitStatus, err error) {
	for {
		_, err = syscall.Wait4(p.pid, &status, 0, nil)
		if err != syscall.EINTR {
			break
		}
	}
	if p.ended != nil {
		p.ended.Close()
	}
	return status, os.NewSyscallError("wait4", err)
}

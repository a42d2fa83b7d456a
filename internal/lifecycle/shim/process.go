package shim

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"retinue/internal/lifecycle"
)

// reaper waits for every child there is, its own and those that it has inherited. Nobody else may wait.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

// newReaper makes this process the one that orphans are handed to; process 1 is it anyway.
func newReaper() *reaper {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // without it orphans go to another process, which reaps them
	return &reaper{waiting: map[int]chan syscall.WaitStatus{}}
}

// run reaps until stop is closed.
func (r *reaper) run(stop <-chan struct{}) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGCHLD)
	defer signal.Stop(changed)
	for {
		r.reap()
		select {
		case <-changed:
		case <-stop:
			return
		}
	}
}

func (r *reaper) reap() {
	for {
		// Held over the wait, so that a child which ends at once is known by then.
		r.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		for errors.Is(err, syscall.EINTR) {
			pid, err = syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		}
		ch := r.waiting[pid]
		delete(r.waiting, pid)
		r.mu.Unlock()
		if err != nil || pid <= 0 {
			return
		}
		if ch != nil {
			ch <- status
		}
	}
}

// start starts a process in a group of its own; its end comes over the channel.
func (r *reaper) start(argv, env []string, files []*os.File) (pid int, ended <-chan syscall.WaitStatus, err error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := os.StartProcess(path, argv, &os.ProcAttr{Env: env, Files: files, Sys: &syscall.SysProcAttr{Setpgid: true}})
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan syscall.WaitStatus, 1)
	r.waiting[p.Pid] = ch
	pid = p.Pid
	return pid, ch, p.Release()
}

// exitStatus says how a process ended.
func exitStatus(s syscall.WaitStatus) lifecycle.ExitStatus {
	if s.Signaled() {
		return lifecycle.ExitStatus{Code: 128 + int(s.Signal()), Signal: int(s.Signal())}
	}
	return lifecycle.ExitStatus{Code: s.ExitStatus()}
}

package elector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"retinue/internal/clock"
)

// Wrapper runs a command while, and only while, this elector leads: for programs that know nothing of elections.
//
// The command gets RETINUE_ELECTION, RETINUE_TOKEN (its fencing token) and RETINUE_TERM. It is asked to end (SIGTERM) early enough to have
// Grace before the lease ends, and is killed (SIGKILL, its process group) before the lease ends. Its own end resigns.
type Wrapper struct {
	Elector  *Elector
	Election string
	ID       string
	Priority int
	Grace    time.Duration // between SIGTERM and SIGKILL; less than half a lease
	Command  []string
	Env      []string // on top of the elector's own
	Stdin    *os.File
	Stdout   *os.File
	Stderr   *os.File
}

// killMargin is left between SIGKILL and the end of the lease, for the kernel to end the process.
const killMargin = 100 * time.Millisecond

// Run campaigns, runs the command as leader, and campaigns again when leadership was lost. It returns the exit code when the command
// has ended by itself, or when ctx ended.
func (w *Wrapper) Run(ctx context.Context) (int, error) {
	for {
		grant, err := w.campaign(ctx)
		if err != nil {
			return 0, err
		}
		if grant == nil { // ctx ended before this elector led
			return 0, nil
		}
		code, ended, err := w.lead(ctx, grant)
		if err != nil || ended || ctx.Err() != nil {
			return code, err
		}
	}
}

func (w *Wrapper) campaign(ctx context.Context) (*Grant, error) {
	rep, err := w.Elector.ask(ctx, evCampaign{election: w.Election, id: w.ID, priority: w.Priority})
	if err == nil && rep.refusal != nil {
		err = rep.refusal.err()
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, fmt.Errorf("campaign for %s: %w", w.Election, err)
	}
	grant, _ := w.Elector.campaign(ctx, w.Election, w.ID, nil)
	if grant == nil {
		w.Elector.ask(context.WithoutCancel(ctx), evWithdraw{w.Election, w.ID})
		if ctx.Err() == nil {
			return nil, fmt.Errorf("campaign for %s: %w", w.Election, errEnded)
		}
	}
	return grant, nil
}

// lead runs the command under one leadership. ended: the command ended by itself.
func (w *Wrapper) lead(ctx context.Context, grant *Grant) (code int, ended bool, err error) {
	// The wrapper is the application's tether: as long as this process lives, the command's state is known.
	if rep, err := w.Elector.ask(ctx, evTether{election: w.Election, token: grant.Token}); err != nil || rep.refusal != nil {
		return 0, false, nil // lost before it began
	}
	defer w.Elector.ask(context.WithoutCancel(ctx), evTether{election: w.Election, token: grant.Token, closed: true})
	p, err := w.start(grant)
	if err != nil {
		return 0, false, err
	}
	if w.supervise(ctx, p, grant) {
		return p.code, true, nil
	}
	w.end(p)
	return p.code, false, nil
}

// supervise returns true when the command has ended by itself, and false when it is time to end it.
func (w *Wrapper) supervise(ctx context.Context, p *child, grant *Grant) (ended bool) {
	p.deadline = grant.DeadlineBoot
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		changed := w.Elector.feed.changed(w.Election)
		v := w.Elector.feed.view(w.Election)
		if v.Holder != w.ID || v.Token != grant.Token || v.Stepdown || !v.Proven {
			return false
		}
		p.deadline = v.Deadline
		left := p.deadline.Sub(w.Elector.clock.Now()) - w.Grace - killMargin
		if left <= 0 {
			return false
		}
		timer.Reset(left)
		select {
		case <-p.done:
			return true
		case <-changed:
		case <-timer.C:
		case <-w.Elector.ended:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// end asks the command to end, and kills it when its grace or the lease is over.
func (w *Wrapper) end(p *child) {
	_ = syscall.Kill(-p.pid, syscall.SIGTERM) // it may have ended already
	grace := min(w.Grace, p.deadline.Sub(w.Elector.clock.Now())-killMargin)
	timer := time.NewTimer(max(0, grace))
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
	_ = syscall.Kill(-p.pid, syscall.SIGKILL) // whatever is left of its group
	<-p.done
}

// child is the running command.
type child struct {
	pid      int
	done     chan struct{}
	code     int // after done
	deadline clock.Instant
}

// start starts the command in a process group of its own. It dies with this process.
func (w *Wrapper) start(grant *Grant) (*child, error) {
	cmd := exec.Command(w.Command[0], w.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = w.Stdin, w.Stdout, w.Stderr
	cmd.Env = append(append(os.Environ(), w.Env...), "RETINUE_ELECTION="+w.Election, "RETINUE_TOKEN="+strconv.FormatUint(grant.Token, 10),
		"RETINUE_TERM="+strconv.FormatUint(grant.Term, 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &child{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread ends that started the process, so that thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		p.code = exitCode(cmd.Wait())
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", w.Command[0], err)
	}
	return p, nil
}

// exitCode is the code a shell would report.
func exitCode(err error) int {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		if err != nil {
			return 1
		}
		return 0
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"retinue/coordinator/item"
)

// ExitCodes say what a command's exit code means. A code that is in no list is a retry.
type ExitCodes struct {
	Ack, Retry, Dead, Drop, Pause []int
}

// DefaultExitCodes are those of the contract.
func DefaultExitCodes() ExitCodes {
	return ExitCodes{Ack: []int{0}, Retry: []int{75}, Dead: []int{65}, Drop: []int{99}, Pause: []int{126, 127}}
}

func (c ExitCodes) verdict(code int) Verdict {
	v := Verdict{Kind: Retry, Reason: "exit code " + strconv.Itoa(code)}
	switch {
	case slices.Contains(c.Ack, code):
		v.Kind, v.Reason = Ack, ""
	case slices.Contains(c.Retry, code):
	case slices.Contains(c.Dead, code):
		v.Kind = Dead
	case slices.Contains(c.Drop, code):
		v.Kind = Drop
	case slices.Contains(c.Pause, code):
		v.Kind, v.Reason = NotReady, "the worker is broken: "+v.Reason
	}
	return v
}

// Exec starts a command for each item.
type Exec struct {
	Folders Folders
	Command []string
	Codes   ExitCodes
	Grace   time.Duration // between SIGTERM and SIGKILL
	Env     []string      // beside this process's own
	lock    *os.File
}

// Open prepares the work folder.
func (w *Exec) Open() (err error) {
	w.lock, err = w.Folders.Open()
	return err
}

// Close implements Worker.
func (w *Exec) Close() error { return w.lock.Close() }

// Discard implements Worker.
func (w *Exec) Discard(o *Output) { discard(o) }

// Call implements Worker. It has one task.
func (w *Exec) Call(ctx context.Context, tasks []*item.Task) []Verdict {
	task := tasks[0]
	dir := filepath.Join(w.Folders.Work, runDir, task.Attempt)
	if err := w.Folders.make(dir, task); err != nil {
		discard(&Output{Dir: dir})
		return []Verdict{inputVerdict(err)}
	}
	v := w.run(ctx, dir, filepath.Join(dir, "input"), environment(task, dir))
	if v.Kind == Ack {
		if err := keepStdout(dir); err != nil {
			return []Verdict{{Kind: Infra, Reason: err.Error(), Output: &Output{Dir: dir}}}
		}
	}
	return []Verdict{w.Folders.collect(dir, task, v)}
}

func environment(task *item.Task, dir string) []string {
	return []string{
		"RETINUE_INPUT=" + filepath.Join(dir, "input"), "RETINUE_OUTPUT=" + filepath.Join(dir, "out"),
		"RETINUE_ITEM=" + task.ID, "RETINUE_STAGE=" + task.Stage, "RETINUE_KEY=" + task.Key, "RETINUE_ATTEMPT=" + strconv.Itoa(task.N),
		"RETINUE_MAX_ATTEMPTS=" + strconv.Itoa(task.Max), "RETINUE_FENCE=" + strconv.FormatUint(task.Fence, 10),
		"RETINUE_DEADLINE_MS=" + strconv.FormatInt(time.Until(task.Deadline).Milliseconds(), 10),
	}
}

// run starts the command in dir and waits for the end of everything it started in its process group. Its stdout is a file
// there.
func (w *Exec) run(ctx context.Context, dir, stdin string, env []string) Verdict {
	cmd := exec.Command(w.Command[0], w.Command[1:]...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), w.Env...), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	in, err := os.Open(stdin)
	if err != nil {
		return Verdict{Kind: Infra, Reason: err.Error()}
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "stdout"), os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return Verdict{Kind: Infra, Reason: err.Error()}
	}
	defer out.Close()
	said, err := openStderr()
	if err != nil {
		return Verdict{Kind: Infra, Reason: err.Error()}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, said.write
	state, killed, err := w.supervise(ctx, cmd)
	end := said.close()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, exec.ErrNotFound) || errors.Is(err, syscall.ENOEXEC) {
			return Verdict{Kind: NotReady, Reason: "the worker is broken: " + err.Error()}
		}
		return Verdict{Kind: Infra, Reason: err.Error()}
	}
	v := w.judge(ctx, state, killed)
	if v.Kind != Ack {
		v.Stderr = end
	}
	return v
}

func (w *Exec) judge(ctx context.Context, state *os.ProcessState, killed bool) Verdict {
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case killed:
		return stopped(ctx)
	case ok && status.Signaled():
		return Verdict{Kind: Crashed, Reason: fmt.Sprintf("killed by signal %d (%s)", int(status.Signal()), status.Signal())}
	case state.ExitCode() == 128+int(syscall.SIGKILL), state.ExitCode() == 128+int(syscall.SIGSEGV), state.ExitCode() == 128+int(syscall.SIGABRT):
		// A shell reports the death of its last command so.
		return Verdict{Kind: Crashed, Reason: fmt.Sprintf("exit code %d: killed by signal %d", state.ExitCode(), state.ExitCode()-128)}
	}
	return w.Codes.verdict(state.ExitCode())
}

// supervise returns when the command has ended and nothing of its process group is left. killed: because the context ended.
func (w *Exec) supervise(ctx context.Context, cmd *exec.Cmd) (state *os.ProcessState, killed bool, err error) {
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The kernel sends Pdeathsig when the thread ends that started the process, so that thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its state tells
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, false, fmt.Errorf("start %s: %w", w.Command[0], err)
	}
	group := -cmd.Process.Pid
	select {
	case <-ended:
	case <-ctx.Done():
		killed = true
		_ = syscall.Kill(group, syscall.SIGTERM) // it may have ended by now
		timer := time.NewTimer(w.Grace)
		select {
		case <-ended:
		case <-timer.C:
		}
		timer.Stop()
	}
	_ = syscall.Kill(group, syscall.SIGKILL) // whatever is left of it
	<-ended
	return cmd.ProcessState, killed, nil
}

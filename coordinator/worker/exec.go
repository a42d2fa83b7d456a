package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
	"retinue/internal/disk"
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
	Signs   Signs
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
	stop := w.Signs.follow(ctx, dir, task.ID)
	v := w.run(ctx, dir, filepath.Join(dir, "input"), environment(task, dir))
	stop()
	if v.Kind == Ack {
		if err := keepStdout(dir); err != nil {
			return []Verdict{{Kind: Infra, Reason: err.Error(), Output: &Output{Dir: dir}}}
		}
	}
	return []Verdict{w.Folders.collect(dir, task, v)}
}

// Progress implements Progressive.
func (w *Exec) Progress(task *item.Task) json.RawMessage {
	return progressOf(filepath.Join(w.Folders.Work, runDir, task.Attempt))
}

func environment(task *item.Task, dir string) []string {
	return []string{
		"RETINUE_INPUT=" + filepath.Join(dir, "input"), "RETINUE_OUTPUT=" + filepath.Join(dir, "out"),
		"RETINUE_ITEM=" + task.ID, "RETINUE_STAGE=" + task.Stage, "RETINUE_KEY=" + task.Key, "RETINUE_ATTEMPT=" + strconv.Itoa(task.N),
		"RETINUE_MAX_ATTEMPTS=" + strconv.Itoa(task.Max), "RETINUE_FENCE=" + strconv.FormatUint(task.Fence, 10),
		"RETINUE_DEADLINE_MS=" + strconv.FormatInt(time.Until(task.Deadline).Milliseconds(), 10),
	}
}

// inherited is this process's environment without what environment sets: of two variables with one name, a program sees the first.
var inherited = sync.OnceValue(func() []string {
	var own []string
	for _, v := range environment(&item.Task{}, "") {
		name, _, _ := strings.Cut(v, "=")
		own = append(own, name)
	}
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(own, name)
	})
})

// run starts the command in dir and waits for the end of everything it started in its process group. Its stdout is a file
// there.
func (w *Exec) run(ctx context.Context, dir, stdin string, env []string) Verdict {
	p, said, err := w.start(dir, stdin, env)
	switch {
	case err == nil:
	case errors.Is(err, errProgram):
		return Verdict{Kind: NotReady, Reason: "the worker is broken: " + err.Error()}
	default:
		return Verdict{Kind: Infra, Reason: err.Error()}
	}
	status, killed, err := w.supervise(ctx, p, said)
	end := said.close()
	if err != nil {
		return Verdict{Kind: Infra, Reason: err.Error()}
	}
	v := w.judge(ctx, status, killed)
	if v.Kind != Ack {
		v.Stderr = end
	}
	return v
}

// errProgram: the command cannot be started, whatever the item.
var errProgram = errors.New("start")

func (w *Exec) start(dir, stdin string, env []string) (p *process, said *stderr, err error) {
	path := w.Command[0]
	if !strings.Contains(path, "/") {
		if path, err = exec.LookPath(path); err != nil {
			return nil, nil, fmt.Errorf("%w %w", errProgram, err)
		}
	}
	in, err := disk.Open(stdin, unix.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(in)
	out, err := disk.Open(filepath.Join(dir, "stdout"), unix.O_WRONLY|unix.O_CREAT, 0o666)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(out)
	if said, err = openStderr(); err != nil {
		return nil, nil, err
	}
	p, err = start(path, w.Command, dir, slices.Concat(inherited(), env), [3]int{in, out, said.write})
	said.handed()
	if err != nil {
		said.close()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOEXEC) {
			return nil, nil, fmt.Errorf("%w %s: %w", errProgram, path, err)
		}
		return nil, nil, fmt.Errorf("start %s: %w", path, err)
	}
	return p, said, nil
}

func (w *Exec) judge(ctx context.Context, status syscall.WaitStatus, killed bool) Verdict {
	switch code := status.ExitStatus(); {
	case killed:
		return stopped(ctx)
	case status.Signaled():
		return Verdict{Kind: Crashed, Reason: fmt.Sprintf("killed by signal %d (%s)", int(status.Signal()), status.Signal())}
	case code == 128+int(syscall.SIGKILL), code == 128+int(syscall.SIGSEGV), code == 128+int(syscall.SIGABRT):
		// A shell reports the death of its last command so.
		return Verdict{Kind: Crashed, Reason: fmt.Sprintf("exit code %d: killed by signal %d", code, code-128)}
	default:
		return w.Codes.verdict(code)
	}
}

// soon is how long a command runs before somebody reads its stderr, and before the end of its context ends it.
const soon = 20 * time.Millisecond

// supervise returns when the command has ended and nothing of its process group is left. killed: because the context ended.
func (w *Exec) supervise(ctx context.Context, p *process, said *stderr) (status syscall.WaitStatus, killed bool, err error) {
	if p.wait(time.Now().Add(soon)) {
		said.follow()
		killed = w.await(ctx, p)
	}
	p.kill() // whatever is left of the group
	status, err = p.reap()
	return status, killed, err
}

// await waits for the end of a command that takes longer, and ends it when the context does.
func (w *Exec) await(ctx context.Context, p *process) (killed bool) {
	if !p.waitFor(ctx) {
		return false
	}
	p.signal(syscall.SIGTERM)
	if p.wait(time.Now().Add(w.Grace)) {
		p.kill()
		p.wait(time.Time{})
	}
	return true
}

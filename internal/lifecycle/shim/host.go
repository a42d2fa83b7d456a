package shim

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/hookhttp"
)

// host is the engine's Host: the application is a child of this process.
type host struct {
	command []string
	env     []string
	state   string // where a restored state is placed; empty: nowhere
	reaper  *reaper
	http    *hookhttp.Caller
	log     hclog.Logger
	exited  func(lifecycle.ExitStatus)

	mu    sync.Mutex
	pid   int // 0: it does not run
	ended chan struct{}
}

var errNoProcess = errors.New("the process has ended")

func (h *host) Place(_ context.Context, state []byte) error {
	if h.state == "" {
		return errors.New("NOMAD_TASK_DIR is not set: there is no place for the state")
	}
	return os.WriteFile(h.state, state, 0o600)
}

func (h *host) Start(context.Context) error {
	pid, ended, err := h.reaper.start(h.command, h.env, []*os.File{os.Stdin, os.Stdout, os.Stderr})
	if err != nil {
		return fmt.Errorf("start %s: %w", h.command[0], err)
	}
	done := make(chan struct{})
	h.mu.Lock()
	h.pid, h.ended = pid, done
	h.mu.Unlock()
	go func() {
		status := <-ended
		h.mu.Lock()
		h.pid = 0
		h.mu.Unlock()
		close(done)
		h.exited(exitStatus(status))
	}()
	return nil
}

// signal sends a signal to the application, or to its whole group.
func (h *host) signal(sig syscall.Signal, group bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.pid == 0:
		return errNoProcess
	case group:
		return syscall.Kill(-h.pid, sig)
	}
	return syscall.Kill(h.pid, sig)
}

func (h *host) Signal(_ context.Context, name string) error {
	sig := unix.SignalNum(name)
	if sig == 0 {
		return fmt.Errorf("there is no signal %s", name)
	}
	return h.signal(sig, false)
}

func (h *host) Stop(ctx context.Context, name string, timeout time.Duration) error {
	sig := syscall.SIGTERM
	if name != "" {
		sig = unix.SignalNum(name)
	}
	h.mu.Lock()
	ended := h.ended
	h.mu.Unlock()
	if err := h.signal(sig, false); errors.Is(err, errNoProcess) {
		return nil
	} else if err != nil {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	case <-timer.C:
	}
	if err := h.Kill(ctx); err != nil && !errors.Is(err, errNoProcess) {
		return err
	}
	<-ended
	return nil
}

func (h *host) Kill(context.Context) error   { return h.signal(syscall.SIGKILL, true) }
func (h *host) Freeze(context.Context) error { return h.signal(syscall.SIGSTOP, true) }
func (h *host) Thaw(context.Context) error   { return h.signal(syscall.SIGCONT, true) }

func (h *host) Exec(ctx context.Context, call lifecycle.ExecCall) (lifecycle.ExecResult, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return lifecycle.ExecResult{}, err
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outW.Close()
		return lifecycle.ExecResult{}, err
	}
	defer errR.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return lifecycle.ExecResult{}, errors.Join(err, outW.Close(), errW.Close())
	}
	pid, ended, err := h.reaper.start(call.Command, append(append([]string{}, h.env...), call.Env...), []*os.File{null, outW, errW})
	outW.Close()
	errW.Close()
	null.Close()
	if err != nil {
		return lifecycle.ExecResult{}, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = syscall.Kill(-pid, syscall.SIGKILL) // it may have ended
		outR.Close()
		errR.Close()
	})
	defer stop()
	var stdout, stderr bytes.Buffer
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(&stderr, io.LimitReader(errR, 64<<10)); _, _ = io.Copy(io.Discard, errR) })
	both.Go(func() { _, _ = io.Copy(&stdout, io.LimitReader(outR, call.Limit+1)); _, _ = io.Copy(io.Discard, outR) })
	status := <-ended
	// What the command has left running must not hold up the answer.
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	both.Wait()
	if ctx.Err() != nil {
		return lifecycle.ExecResult{}, context.Cause(ctx)
	}
	return lifecycle.ExecResult{Code: exitStatus(status).Code, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}, nil
}

func (h *host) HTTP(ctx context.Context, call lifecycle.HTTPCall) (lifecycle.HTTPResult, error) {
	return h.http.Do(ctx, call)
}

// Connections counts the established connections of a local port.
func (h *host) Connections(_ context.Context, port int) (int, error) {
	n := 0
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open(filepath.Join("/proc/net", name))
		if errors.Is(err, fs.ErrNotExist) && name == "tcp6" {
			continue // no IPv6 here
		}
		if err != nil {
			return 0, err
		}
		n += established(f, port)
		f.Close()
	}
	return n, nil
}

func established(r io.Reader, port int) (n int) {
	const state = "01"
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != state {
			continue
		}
		_, local, _ := strings.Cut(fields[1], ":")
		if got, err := strconv.ParseUint(local, 16, 16); err == nil && int(got) == port {
			n++
		}
	}
	return n
}

func (h *host) Event(e lifecycle.Event) {
	args := []any{"from", e.From, "to", e.To}
	if e.Failed {
		h.log.Warn(e.Message, args...)
		return
	}
	h.log.Info(e.Message, args...)
}

// Persist keeps nothing: when process 1 ends, so does the container.
func (h *host) Persist([]byte) error { return nil }

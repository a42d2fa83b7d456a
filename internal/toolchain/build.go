package toolchain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"retinue/internal/hint"
)

// BuildLimit bounds the build of the tools on a slow machine.
const BuildLimit = 45 * time.Minute

// Progress is the state of a build, reported about once a second.
type Progress struct {
	Tool       Tool
	Elapsed    time.Duration
	Downloaded int // modules
	Compiled   int // packages
	Waiting    bool
}

func (p Progress) String() string {
	took := p.Elapsed.Round(time.Second)
	switch {
	case p.Waiting:
		return fmt.Sprintf("waiting for another build of %s %s, %s", p.Tool, p.Tool.Pinned(), took)
	case p.Compiled == 0:
		return fmt.Sprintf("building %s %s (once): %s, %d modules downloaded", p.Tool, p.Tool.Pinned(), took, p.Downloaded)
	}
	return fmt.Sprintf("building %s %s (once): %s, %d packages compiled", p.Tool, p.Tool.Pinned(), took, p.Compiled)
}

// Ensure finds the tool or builds it. progress may be nil.
func Ensure(ctx context.Context, t Tool, progress func(Progress)) (Found, error) {
	found, ok := Find(ctx, t)
	if ok {
		return found, nil
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	path, err := t.build(ctx, progress)
	if err != nil {
		return Found{}, err
	}
	return Found{Tool: t, Path: path, Version: t.Pinned(), Built: true, Note: found.Note}, nil
}

// build makes the pinned version. One builder works at a time, and the program
// appears under its name only when it is whole.
func (t Tool) build(ctx context.Context, progress func(Progress)) (string, error) {
	if err := t.CanBuild(); err != nil {
		return "", err
	}
	dest, err := t.cached()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return "", spaceHint(fmt.Errorf("make the cache folder: %w", err))
	}
	began := time.Now()
	lock, err := lockFile(ctx, filepath.Dir(dest)+".lock", func() {
		progress(Progress{Tool: t, Elapsed: time.Since(began), Waiting: true})
	})
	if err != nil {
		return "", fmt.Errorf("wait for another build of %s: %w", t, err)
	}
	defer lock.Close()
	if found, ok := Find(ctx, t); ok && found.Built {
		return found.Path, nil // the other builder made it
	}
	if err := removeAbandoned(filepath.Dir(dest)); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(filepath.Dir(dest), "build-*")
	if err != nil {
		return "", spaceHint(fmt.Errorf("build %s: %w", t, err))
	}
	defer os.RemoveAll(work)
	for _, ext := range []string{"mod", "sum"} {
		raw, err := fs.ReadFile(pinned, "pinned/"+t.String()+"."+ext)
		if err != nil {
			return "", fmt.Errorf("build %s: %w", t, err)
		}
		if err := os.WriteFile(filepath.Join(work, "go."+ext), raw, 0o644); err != nil {
			return "", spaceHint(fmt.Errorf("build %s: %w", t, err))
		}
	}
	out := filepath.Join(work, t.String())
	if err := t.compile(ctx, work, out, progress); err != nil {
		return "", err
	}
	if err := os.Rename(out, dest); err != nil {
		return "", spaceHint(fmt.Errorf("build %s: %w", t, err))
	}
	return dest, nil
}

// removeAbandoned removes what builders left that were killed; who calls it has
// the lock, so nobody builds there.
func removeAbandoned(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "build-*"))
	for _, name := range left {
		err = errors.Join(err, os.RemoveAll(name))
	}
	return err
}

// CanBuild checks for the compilers before minutes are spent.
func (t Tool) CanBuild() error {
	s := t.spec()
	if _, err := exec.LookPath("go"); err != nil {
		return hint.Wrap(fmt.Errorf("%s is not on PATH, and without Go it cannot be built", s.name),
			"put %s >= %s on PATH, or install Go", s.name, s.minimum)
	}
	if s.cgo == "0" {
		return nil
	}
	for _, cc := range []string{os.Getenv("CC"), "gcc", "cc", "clang"} {
		name, _, _ := strings.Cut(cc, " ")
		if name == "" {
			continue
		}
		if _, err := exec.LookPath(name); err == nil {
			return nil
		}
	}
	return hint.Wrap(fmt.Errorf("%s is not on PATH, and without a C compiler it cannot be built", s.name),
		"install one (Debian: apt-get install gcc libc6-dev), or put %s >= %s on PATH", s.name, s.minimum)
}

func (t Tool) compile(ctx context.Context, dir, out string, progress func(Progress)) error {
	s := t.spec()
	args := append([]string{"build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out}, s.flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, s.pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED="+s.cgo)
	// The compilers are children of go: a Ctrl-C must end them all, and go removes
	// its work folder only when it is asked to stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	watch := &watcher{tool: t, began: time.Now()}
	cmd.Stdout, cmd.Stderr = watch, watch
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build %s: %w", t, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	progress(watch.progress())
	for {
		select {
		case <-tick.C:
			progress(watch.progress())
		case err := <-done:
			if ctx.Err() != nil {
				return fmt.Errorf("build %s: %w", t, context.Cause(ctx))
			}
			return watch.explain(err)
		}
	}
}

// watcher counts the lines of `go build -v`, and keeps what is no progress.
type watcher struct {
	tool  Tool
	began time.Time

	mu         sync.Mutex
	rest       []byte
	downloaded int
	compiled   int
	other      []string
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		line, after, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.line(string(line))
		w.rest = after
	}
}

func (w *watcher) line(s string) {
	switch {
	case strings.HasPrefix(s, "go: downloading "):
		w.downloaded++
	case s == "" || strings.HasPrefix(s, "#") || strings.ContainsAny(s, " \t"):
		w.other = append(w.other, s)
	default:
		w.compiled++ // an import path
	}
}

func (w *watcher) progress() Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Progress{Tool: w.tool, Elapsed: time.Since(w.began), Downloaded: w.downloaded, Compiled: w.compiled}
}

// explain turns a failed build into an error with the compiler's last words and
// the advice that fits.
func (w *watcher) explain(err error) error {
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	said := append(w.other, string(w.rest))
	text := strings.TrimSpace(strings.Join(said[max(0, len(said)-15):], "\n"))
	return hint.Wrap(fmt.Errorf("build %s %s: %w\n%s", w.tool, w.tool.Pinned(), err, text), "%s", w.tool.advice(text))
}

// advice knows the usual reasons for which a build fails.
func (t Tool) advice(output string) string {
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(output, p) {
				return true
			}
		}
		return false
	}
	s := t.spec()
	switch {
	case has("no space left on device", "disk quota exceeded"):
		return "the disk is full: the build needs some 4 GB in the Go caches and TMPDIR (`go clean -cache` frees space)"
	case has("dial tcp", "no such host", "i/o timeout", "TLS handshake timeout", "connection refused", "network is unreachable", "proxyconnect", "module lookup disabled"):
		return fmt.Sprintf("the Go modules could not be downloaded: check the network and `go env GOPROXY`, or put %s >= %s on PATH", s.name, s.minimum)
	case has("requires go >="):
		return fmt.Sprintf("this Go is too old for %s %s: install a newer one, or put %s >= %s on PATH", s.name, s.pinned, s.name, s.minimum)
	case has("signal: killed", "cannot allocate memory"):
		return "the machine ran out of memory: the build needs some 4 GB"
	}
	return fmt.Sprintf("put %s >= %s on PATH to do without the build", s.name, s.minimum)
}

func spaceHint(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hint.Wrap(err, "the disk is full: free some space, or set XDG_CACHE_HOME to another disk")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return hint.Wrap(err, "set XDG_CACHE_HOME to a folder that you may write to")
	}
	return err
}

// lockFile takes the lock, telling about once a second that it still waits.
func lockFile(ctx context.Context, name string, waiting func()) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, spaceHint(err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, err
		}
		waiting()
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

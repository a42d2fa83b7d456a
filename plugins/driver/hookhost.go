package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"retinue/internal/lifecycle"
)

// Exec implements lifecycle.Host: a command inside the task, by the inner driver. That
// has no way to cancel one, so its own timeout ends it.
func (t *task) Exec(ctx context.Context, call lifecycle.ExecCall) (lifecycle.ExecResult, error) {
	command := call.Command
	if len(call.Env) > 0 && t.hasEnv() {
		command = append(append([]string{"env"}, call.Env...), command...)
	}
	type answer struct {
		resp *proto.ExecTaskResponse
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		resp, err := t.d.tasks.ExecTask(ctx, &proto.ExecTaskRequest{TaskId: t.id, Command: command, Timeout: durationpb.New(timeLeft(call.Env))})
		done <- answer{resp, err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return lifecycle.ExecResult{}, a.err
		}
		return lifecycle.ExecResult{Code: int(a.resp.GetResult().GetExitCode()), Stdout: a.resp.Stdout, Stderr: a.resp.Stderr}, nil
	case <-ctx.Done():
		return lifecycle.ExecResult{}, context.Cause(ctx)
	}
}

// timeLeft is what a hook's environment says of its deadline, and a second for the
// engine to be first.
func timeLeft(env []string) time.Duration {
	for _, v := range env {
		if text, ok := strings.CutPrefix(v, "RETINUE_DEADLINE_MS="); ok {
			if ms, err := strconv.ParseInt(text, 10, 64); err == nil {
				return time.Duration(ms)*time.Millisecond + time.Second
			}
		}
	}
	return lifecycle.MaxTimeout
}

// lookForEnv asks whether the task's file system has the program env. An image FROM
// scratch has not; its hooks do without the variables.
func (t *task) lookForEnv() bool {
	ctx, cancel := context.WithTimeout(t.ctx, 10*time.Second)
	defer cancel()
	resp, err := t.d.tasks.ExecTask(ctx, &proto.ExecTaskRequest{TaskId: t.id, Command: []string{"env"}, Timeout: durationpb.New(10 * time.Second)})
	return err == nil && resp.GetResult().GetExitCode() == 0
}

// HTTP implements lifecycle.Host.
func (t *task) HTTP(ctx context.Context, call lifecycle.HTTPCall) (lifecycle.HTTPResult, error) {
	target := call.URL
	dial := t.dialApp
	switch {
	case target == "":
		target = "http://task"
	case call.FromHost:
		dial = dialFromHost
	default:
		dial = t.dialInside
	}
	req, err := http.NewRequestWithContext(ctx, call.Method, target+call.Path, bytes.NewReader(call.Body))
	if err != nil {
		return lifecycle.HTTPResult{}, err
	}
	for name, value := range call.Header {
		req.Header.Set(name, value)
	}
	client := http.Client{
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the address in it is the job's own
		}
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			err = fmt.Errorf("%w: %w", lifecycle.ErrUnreachable, err)
		}
		return lifecycle.HTTPResult{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, call.Limit+1))
	if err != nil {
		return lifecycle.HTTPResult{}, fmt.Errorf("read the answer: %w", err)
	}
	return lifecycle.HTTPResult{Status: resp.StatusCode, RetryAfter: resp.Header.Get("Retry-After"), Body: body}, nil
}

// dialApp connects to the application's own socket. The folder is the task's to write
// in, so what lies there must be a socket itself: behind a link could be any socket of
// the host, and this process may open them all. The way by the descriptor also goes
// where the path is longer than the 107 bytes that a socket's address has.
func (t *task) dialApp(ctx context.Context, _, _ string) (net.Conn, error) {
	root, err := unix.Open(t.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the allocation's folder: %w", err)
	}
	defer unix.Close(root)
	name := filepath.Join("alloc", "tmp", sockName(t.name))
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s is not a socket", name)
	}
	return new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// dialInside connects to an address as the task sees it.
func (t *task) dialInside(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ip, err := netip.ParseAddr(host)
	if host == "localhost" {
		ip, err = netip.MustParseAddr("127.0.0.1"), nil
	}
	if err != nil {
		return nil, fmt.Errorf("give the address of %q as a number: names mean something else inside the task", host)
	}
	var conn net.Conn
	err = inNetns(t.netns, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(ip.String(), port))
		return err
	})
	return conn, err
}

// dialFromHost connects from the network of the host, which a job may have no other
// way into: so nothing of the host itself, and no metadata service.
func dialFromHost(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		ip := ap.Addr().Unmap()
		if ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
			return fmt.Errorf("on_exit may not reach %s: it is called from the host, whose own addresses are not the job's", ip)
		}
		return nil
	}}
	return dialer.DialContext(ctx, network, addr)
}

// Place implements lifecycle.Host. The folder was the task's in an earlier run: a link
// in it must not lead out of the allocation.
func (t *task) Place(_ context.Context, state []byte) error {
	root, err := os.OpenRoot(t.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name := filepath.Join(t.name, "local", stateName)
	tmp := name + ".new"
	if err := root.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(state)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return root.Rename(tmp, name)
}

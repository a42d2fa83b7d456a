package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/hookhttp"
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
			return lifecycle.ExecResult{}, ofInner(ctx, a.err)
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
	caller := hookhttp.Caller{Socket: t.socket(sockApp), Dial: t.dialInside}
	return caller.Do(ctx, call)
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

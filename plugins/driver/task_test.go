package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
	structsproto "github.com/hashicorp/nomad/plugins/shared/structs/proto"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// testTask is a task with an allocation folder, and the agent's view of its driver.
type testTask struct {
	t      *testing.T
	f      *fakeInner
	agent  proto.DriverClient
	config *proto.TaskConfig
	plain  []byte // its driver configuration without the lifecycle block
}

func newTestTask(t *testing.T, lifecycle map[string]any) *testTask {
	f := newFakeInner()
	f.state = encode(t, innerState{Pid: 5})
	dir := t.TempDir()
	for _, sub := range []string{"alloc/tmp", "app/local", "app/private"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := map[string]any{"command": "app"}
	plain := encode(t, config)
	if lifecycle != nil {
		config[lifecycleKey] = lifecycle
	}
	return &testTask{t: t, f: f, agent: proto.NewDriverClient(decorate(t, f, Options{})), plain: plain, config: &proto.TaskConfig{
		Id: "alloc-1/app/x", Name: "app", AllocId: "alloc-1", AllocDir: dir, MsgpackDriverConfig: encode(t, config),
		Env: map[string]string{"NOMAD_ALLOC_DIR": "/alloc", "NOMAD_TASK_DIR": "/local"},
	}}
}

func (tt *testTask) start() *proto.StartTaskResponse {
	tt.t.Helper()
	resp, err := tt.agent.StartTask(testContext(tt.t), &proto.StartTaskRequest{Task: tt.config})
	if err != nil {
		tt.t.Fatal(err)
	}
	return resp
}

func (tt *testTask) stop() error {
	_, err := tt.agent.StopTask(testContext(tt.t), &proto.StopTaskRequest{TaskId: tt.config.Id, Signal: "SIGTERM", Timeout: durationpb.New(3 * time.Second)})
	return err
}

func (tt *testTask) wantCalls(want ...string) {
	tt.t.Helper()
	if got := tt.f.noted(); got != strings.Join(want, "\n") {
		tt.t.Fatalf("the inner driver was asked\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// app is an application that answers on the task's socket.
func (tt *testTask) app(handle func(method, path string, body []byte) (int, string)) {
	tt.t.Helper()
	l, err := net.Listen("unix", filepath.Join(tt.config.AllocDir, "alloc", "tmp", "retinue-app.sock"))
	if err != nil {
		tt.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			tt.t.Error(err)
		}
		tt.f.note("http %s %s %s", r.Method, r.URL.Path, r.Header.Get("Retinue-Hook"))
		code, answer := handle(r.Method, r.URL.Path, body)
		w.WriteHeader(code)
		fmt.Fprint(w, answer)
	})}
	go server.Serve(l)
	tt.t.Cleanup(func() { server.Close() })
}

func ok(string, string, []byte) (int, string) { return 200, "" }

func TestHooksAroundATask(t *testing.T) {
	tt := newTestTask(t, map[string]any{
		"post_start": map[string]any{"exec": []string{"/init", "x"}},
		"ready":      map[string]any{"http": "GET /ready"},
		"pre_drain":  map[string]any{"http": "POST /drain"},
		"pre_stop":   map[string]any{"exec": []string{"/bye"}},
	})
	tt.app(ok)
	tt.start()
	if err := tt.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := tt.agent.DestroyTask(testContext(t), &proto.DestroyTaskRequest{TaskId: tt.config.Id}); err != nil {
		t.Fatal(err)
	}
	tt.wantCalls("start", "exec /init x", "http GET /ready ready", "http POST /drain pre_drain", "exec /bye", "stop SIGTERM 3s", "destroy")
	if left, err := os.ReadDir(filepath.Join(tt.config.AllocDir, "app", "private")); err != nil || len(left) > 0 {
		t.Errorf("left after the end: %v, %v", left, err)
	}
}

func TestTheInnerDriverSeesItsOwnConfigurationAlone(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_stop": map[string]any{"sleep": "1s"}})
	resp := tt.start()
	task, err := tt.f.task(tt.config.Id)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(task.config.MsgpackDriverConfig, tt.plain) {
		t.Errorf("configuration %x, want %x", task.config.MsgpackDriverConfig, tt.plain)
	}
	if got := task.config.Env["RETINUE_SOCK"]; got != "/alloc/tmp/retinue-app.sock" {
		t.Errorf("RETINUE_SOCK is %q", got)
	}
	inner, value, err := unsplice(resp.Handle.DriverState)
	if err != nil || !bytes.Equal(inner, tt.f.state) || value == nil {
		t.Errorf("state %x with %q, %v", inner, value, err)
	}
}

func TestFailedPostStartEndsTheTaskAndMayBeTriedAgain(t *testing.T) {
	tt := newTestTask(t, map[string]any{"post_start": map[string]any{"exec": []string{"/init"}}})
	tt.f.execTask = func([]string) (int32, string) { return 3, "no" }
	_, err := tt.agent.StartTask(testContext(t), &proto.StartTaskRequest{Task: tt.config})
	if err == nil || !strings.Contains(err.Error(), "post_start: exit code 3: no") {
		t.Fatalf("error %v", err)
	}
	if d := status.Convert(err).Details(); len(d) != 1 || !d[0].(*structsproto.RecoverableError).Recoverable {
		t.Errorf("details %v: the restart policy must apply", d)
	}
	if !strings.HasSuffix(tt.f.noted(), "destroy") {
		t.Errorf("the process is not destroyed: %s", tt.f.noted())
	}
}

func TestBadBlockIsRefusedForGood(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_stop": map[string]any{"exec": []string{"x"}, "timeout": "soon"}})
	_, err := tt.agent.StartTask(testContext(t), &proto.StartTaskRequest{Task: tt.config})
	if err == nil || !strings.Contains(err.Error(), "lifecycle.pre_stop.timeout") {
		t.Fatalf("error %v", err)
	}
	if d := status.Convert(err).Details(); len(d) != 1 || d[0].(*structsproto.RecoverableError).Recoverable {
		t.Errorf("details %v: to try again would change nothing", d)
	}
	tt.wantCalls()
}

func TestRecoveredTaskHasItsHooks(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_stop": map[string]any{"exec": []string{"/bye"}}})
	handle := tt.start().Handle
	handle.Config.MsgpackDriverConfig = nil // an agent that was restarted has lost it

	again := newTestTask(t, nil)
	if _, err := again.agent.RecoverTask(testContext(t), &proto.RecoverTaskRequest{TaskId: handle.Config.Id, Handle: handle}); err != nil {
		t.Fatal(err)
	}
	if err := again.stop(); err != nil {
		t.Fatal(err)
	}
	again.wantCalls(fmt.Sprintf("recover %x", tt.f.state), "exec /bye", "stop SIGTERM 3s")
}

func TestTaskOfTheBuiltInDriverIsAdopted(t *testing.T) {
	tt := newTestTask(t, nil)
	handle := &proto.TaskHandle{Version: 1, Config: tt.config, DriverState: tt.f.state}
	if _, err := tt.agent.RecoverTask(testContext(t), &proto.RecoverTaskRequest{TaskId: tt.config.Id, Handle: handle}); err != nil {
		t.Fatal(err)
	}
	if err := tt.stop(); err != nil {
		t.Fatal(err)
	}
	tt.wantCalls(fmt.Sprintf("recover %x", tt.f.state), "stop SIGTERM 3s")
}

func TestEndOfTheProcessCutsThePreStopShort(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_stop": map[string]any{"sleep": "50m", "timeout": "1h"}})
	tt.start()
	done := make(chan error, 1)
	go func() { done <- tt.stop() }()
	waitFor(t, "the stop begins", func() bool { return strings.Contains(tt.exec("@retinue", "GET", "/v1/lifecycle"), `"hook":"pre_stop"`) })
	task, err := tt.f.task(tt.config.Id)
	if err != nil {
		t.Fatal(err)
	}
	task.end(1)
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("StopTask waits for a hook of a process that is gone")
	}
}

func TestSignalsAndPseudoSignals(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pause": map[string]any{"exec": []string{"/pause"}}, "on_config": map[string]any{"exec": []string{"/reload"}}})
	tt.start()
	for _, signal := range []string{"SIGUSR1", "SIGHUP", "pause"} {
		if _, err := tt.agent.SignalTask(testContext(t), &proto.SignalTaskRequest{TaskId: tt.config.Id, Signal: signal}); err != nil {
			t.Fatalf("%s: %v", signal, err)
		}
	}
	// The fake has no control group, so the freeze is a signal.
	tt.wantCalls("start", "signal SIGUSR1", "exec /reload", "exec /pause", "signal SIGSTOP")
	if got := tt.exec("@retinue", "GET", "/v1/lifecycle"); !strings.Contains(got, `"phase":"paused"`) {
		t.Errorf("status %s", got)
	}
}

// exec runs a command and returns its standard output, its error output and its exit code.
func (tt *testTask) exec(command ...string) string {
	tt.t.Helper()
	s, err := tt.agent.ExecTaskStreaming(testContext(tt.t))
	if err != nil {
		tt.t.Fatal(err)
	}
	if err := s.Send(&proto.ExecTaskStreamingRequest{Setup: &proto.ExecTaskStreamingRequest_Setup{TaskId: tt.config.Id, Command: command}}); err != nil {
		tt.t.Fatal(err)
	}
	var out strings.Builder
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			tt.t.Fatal(err)
		}
		out.Write(m.GetStdout().GetData())
		if e := m.GetStderr().GetData(); len(e) > 0 {
			fmt.Fprintf(&out, "stderr: %s", e)
		}
		if m.Exited {
			fmt.Fprintf(&out, "|%d", m.Result.ExitCode)
		}
	}
}

func TestExecTunnel(t *testing.T) {
	tt := newTestTask(t, nil)
	big := strings.Repeat("x", 5<<20)
	tt.app(func(_, path string, body []byte) (int, string) {
		switch path {
		case "/big":
			return 200, big
		case "/echo":
			return 200, string(body)
		}
		return 404, "nothing here"
	})
	tt.start()
	for _, c := range []struct {
		command []string
		want    string
	}{
		{[]string{"ls", "-l"}, "ls -l|7"},
		{[]string{"@retinue", "GET", "/big"}, big + "|0"},
		{[]string{"@retinue", "POST", "/echo", "hello"}, "hello|0"},
		{[]string{"@retinue", "GET", "/none"}, "stderr: nothing here|1"},
	} {
		if got := tt.exec(c.command...); got != c.want {
			t.Errorf("%q: got %.200q, want %.200q", c.command, got, c.want)
		}
	}
	if got := tt.exec("@retinue", "what"); !strings.HasPrefix(got, "stderr: Error: want METHOD /path") || !strings.HasSuffix(got, "|1") {
		t.Errorf("wrong use: %q", got)
	}
}

func TestEventsOfBothDrivers(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_stop": map[string]any{"exec": []string{"/bye"}}})
	s, err := tt.agent.TaskEvents(testContext(t), &proto.TaskEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := s.Recv(); err != nil || ev.Message != "of the inner driver" {
		t.Fatalf("first event %v, %v", ev, err)
	}
	tt.start()
	if err := tt.stop(); err != nil {
		t.Fatal(err)
	}
	ev, err := s.Recv()
	if err != nil || !strings.Contains(ev.Message, "pre_stop") || ev.TaskName != "app" || ev.AllocId != "alloc-1" || ev.TaskId != tt.config.Id {
		t.Fatalf("event %v, %v", ev, err)
	}
}

func TestNoWayOutOfTheAllocationByALink(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_drain": map[string]any{"http": "POST /containers/create"}})
	secret := filepath.Join(t.TempDir(), "host.sock")
	l, err := net.Listen("unix", secret)
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{}, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			reached <- struct{}{}
			c.Close()
		}
	}()
	defer l.Close()
	if err := os.Symlink(secret, filepath.Join(tt.config.AllocDir, "alloc", "tmp", "retinue-app.sock")); err != nil {
		t.Fatal(err)
	}
	tt.start()
	if err := tt.stop(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reached:
		t.Fatal("a hook reached a socket of the host through a link that the task made")
	default:
	}
}

func waitFor(t *testing.T, what string, check func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !check() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within a minute: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

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
	"google.golang.org/grpc/codes"
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
	t.Helper()
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
	return &testTask{t: t, f: f, agent: proto.NewDriverClient(decorate(t, f, Options{SweepEvery: time.Millisecond})), plain: plain, config: &proto.TaskConfig{
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
	waitFor(t, "the stop begins", func() bool { return strings.Contains(tt.exec("@retinue", "GET", "/v1/task"), `"hook":"pre_stop"`) })
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
	if got := tt.exec("@retinue", "GET", "/v1/task"); !strings.Contains(got, `"phase":"paused"`) {
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
	tt.app(func(_, path string, _ []byte) (int, string) {
		switch path {
		case "/metrics":
			return 200, big
		case "/retinue/v1/live":
			return 500, "deadlock"
		}
		return 404, ""
	})
	tt.start()
	if got := tt.exec("ls", "-l"); got != "ls -l|7" {
		t.Errorf("a command of the task: %q", got)
	}
	if got := tt.exec("@retinue", "GET", "/v1/metrics"); !strings.HasPrefix(got, big) || !strings.HasSuffix(got, "|0") {
		t.Errorf("metrics of the application: %d bytes, ...%q", len(got), got[max(0, len(got)-100):])
	}
	if got := tt.exec("@retinue", "GET", "/v1/health"); !strings.Contains(got, "deadlock") || !strings.HasSuffix(got, "|1") {
		t.Errorf("health: %q", got)
	}
	if got := tt.exec("@retinue", "what"); !strings.HasPrefix(got, "stderr: usage:") || !strings.HasSuffix(got, "|2") {
		t.Errorf("wrong use: %q", got)
	}
}

func TestManagementOnTheTasksSocket(t *testing.T) {
	tt := newTestTask(t, nil)
	logs := filepath.Join(tt.config.AllocDir, "alloc", "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"one\n", "two\n", "three\n"} {
		if err := os.WriteFile(filepath.Join(logs, fmt.Sprintf("app.stdout.%d", 9+i)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tt.start()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(tt.config.AllocDir, "alloc", "tmp", "retinue-app.api.sock"))
	}}}
	get := func(path string) (text string) {
		t.Helper()
		waitFor(t, "the socket answers", func() bool {
			resp, err := client.Get("http://task" + path)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			text = string(body)
			return err == nil
		})
		return text
	}
	if got := get("/v1/task"); !strings.Contains(got, `"phase":"running"`) || !strings.Contains(got, `"driver":"fake"`) {
		t.Errorf("task %s", got)
	}
	if got := get("/v1/logs?tail=8"); got != "o\nthree\n" {
		t.Errorf("the last 8 bytes of the log are %q", got)
	}
	if got := get("/v1/logs"); got != "one\ntwo\nthree\n" {
		t.Errorf("log %q", got)
	}
	if got := get("/v1/config"); !strings.Contains(got, `"command":"app"`) {
		t.Errorf("config %s", got)
	}
}

func TestStateIsSavedAndGivenBack(t *testing.T) {
	tt := newTestTask(t, map[string]any{"save_state": map[string]any{"http": "GET /retinue/v1/state"}})
	tt.app(func(string, string, []byte) (int, string) { return 200, "count 7" })
	tt.start()
	if err := tt.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := tt.agent.DestroyTask(testContext(t), &proto.DestroyTaskRequest{TaskId: tt.config.Id}); err != nil {
		t.Fatal(err)
	}
	place := filepath.Join(tt.config.AllocDir, "app", "local", "retinue.state")
	if err := os.Symlink("/etc/passwd", place); err != nil { // the task may leave a trap
		t.Fatal(err)
	}
	tt.start()
	got, err := os.ReadFile(place)
	if err != nil || string(got) != "count 7" {
		t.Fatalf("given back %q, %v", got, err)
	}
	task, err := tt.f.task(tt.config.Id)
	if err != nil || task.config.Env["RETINUE_STATE"] != "/local/retinue.state" {
		t.Errorf("RETINUE_STATE %q, %v", task.config.Env["RETINUE_STATE"], err)
	}
}

func TestReadyByNotifySocket(t *testing.T) {
	tt := newTestTask(t, map[string]any{"ready": map[string]any{"notify": true}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tt.start()
	}()
	waitFor(t, "the datagram goes out", func() bool {
		c, err := net.Dial("unixgram", filepath.Join(tt.config.AllocDir, "alloc", "tmp", "retinue-app.notify.sock"))
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = c.Write([]byte("STATUS=warm\nREADY=1\n"))
		return err == nil
	})
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the start does not end")
	}
	if got := tt.exec("@retinue", "GET", "/v1/task"); !strings.Contains(got, `"app_status":"warm"`) {
		t.Errorf("task %s", got)
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

func TestNetworkThatTheAgentForgot(t *testing.T) {
	tt := newTestTask(t, nil)
	tt.config.NetworkIsolationSpec = &proto.NetworkIsolationSpec{Labels: map[string]string{"container": "x"}}
	tt.start()
	if err := tt.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := tt.agent.DestroyTask(testContext(t), &proto.DestroyTaskRequest{TaskId: tt.config.Id}); err != nil {
		t.Fatal(err)
	}
	// Between two runs of a task there is no task either, and its network stays.
	tt.wantCalls("start", "stop SIGTERM 3s", "destroy")
	if err := os.RemoveAll(tt.config.AllocDir); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the network is given back", func() bool { return strings.HasSuffix(tt.f.noted(), "destroy network alloc-1") })
}

func TestInnerProcessLostIsNoEnd(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_stop": map[string]any{"exec": []string{"/bye"}}})
	tt.f.execTask = func([]string) (int32, string) {
		select {} // until the process is gone
	}
	tt.start()
	go tt.stop()
	waitFor(t, "pre_stop runs", func() bool { return strings.Contains(tt.f.noted(), "/bye") })
	tt.f.server.Stop()
	waitFor(t, "the loss is noticed", func() bool {
		_, err := tt.agent.InspectTask(testContext(t), &proto.InspectTaskRequest{TaskId: tt.config.Id})
		return status.Code(err) == codes.Unavailable
	})
	if got := tt.exec("@retinue", "GET", "/v1/task"); !strings.Contains(got, `"hook":"pre_stop"`) {
		t.Errorf("pre_stop is over: %s", got)
	}
	saved, err := os.ReadFile(filepath.Join(tt.config.AllocDir, "app", "private", "retinue-lifecycle.json"))
	if err != nil || !strings.Contains(string(saved), `"phase":"stopping"`) || strings.Contains(string(saved), `"exit"`) || strings.Contains(string(saved), `"hooks_ended":true`) {
		t.Fatalf("kept %s, %v: the next driver would not run pre_stop again", saved, err)
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

package driver

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The agent is killed while a task starts, and starts it again when it is back, by another ID: the first run is ended before.
func TestStartThatTheAgentForgot(t *testing.T) {
	tt := newTestTask(t, map[string]any{"post_start": map[string]any{"exec": []string{"/init"}}})
	began, release := make(chan struct{}), make(chan struct{})
	first := true
	tt.f.execTask = func([]string) (int32, string) {
		if first {
			first = false
			close(began)
			<-release
		}
		return 0, ""
	}
	defer close(release)
	ended := make(chan error, 1)
	go func() {
		_, err := tt.agent.StartTask(testContext(t), &proto.StartTaskRequest{Task: tt.config})
		ended <- err
	}()
	<-began
	tt.config.Id = "alloc-1/app/y"
	tt.start()
	if err := <-ended; err == nil {
		t.Error("the start that was given up succeeded")
	}
	if err := tt.stop(); err != nil {
		t.Fatal(err)
	}
	tt.wantCalls("start", "exec /init", "destroy", "start", "exec /init", "stop SIGTERM 3s")
	if _, err := tt.f.task("alloc-1/app/x"); err == nil {
		t.Error("the inner driver still has the first run")
	}
}

// What an earlier process has left of a start is found and ended before the task is started again; what is not of this task is left alone.
func TestInterruptedStartIsCleared(t *testing.T) {
	tt := newTestTask(t, map[string]any{"pre_stop": map[string]any{"sleep": "1ms"}})
	sleeper := func(args ...string) *exec.Cmd {
		cmd := exec.Command("sleep", "600")
		cmd.Args = args // what is seen in /proc
		cmd.Path = self(t)
		cmd.Env = append(os.Environ(), "RETINUE_TEST_SLEEP=1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd
	}
	log := func(dir string) string {
		return `{"LogFile":` + strconv.Quote(filepath.Join(dir, "app", "executor.out")) + `}`
	}
	mine, others := sleeper("inner", "executor", log(tt.config.AllocDir)), sleeper("inner", "executor", log(tt.config.AllocDir+"2"))
	if err := os.WriteFile(filepath.Join(tt.config.AllocDir, "app", "private", "retinue-lifecycle.json"), []byte(`{"format":1,"phase":"warming"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	tt.start()
	gone := make(chan error, 1)
	go func() { gone <- mine.Wait() }()
	select {
	case <-gone:
	case <-time.After(30 * time.Second):
		t.Error("the executor of the start that was cut off runs")
	}
	if err := others.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another task's executor: %v", err)
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	if os.Getenv("RETINUE_TEST_SLEEP") != "" { // a process with the arguments of another program
		time.Sleep(10 * time.Minute)
		return
	}
	os.Exit(m.Run())
}

func TestHelpersOfATask(t *testing.T) {
	dir := t.TempDir()
	tk := &task{dir: dir, name: "app", log: hclog.NewNullLogger()}
	logFile := strconv.Quote(filepath.Join(dir, "app", "executor.out"))
	proc := tree(t, map[string]string{
		"11/cmdline": "/x/retinue-inner\x00executor\x00{\"LogFile\":" + logFile + "}\x00",
		"12/cmdline": "/x/retinue-inner\x00executor\x00{\"LogFile\":" + strings.Replace(logFile, "/app/", "/app2/", 1) + "}\x00",
		"13/cmdline": "/x/retinue-inner\x00docker_logger\x00",
		"14/cmdline": "/x/retinue-inner\x00docker_logger\x00",
		"15/cmdline": "sh\x00-c\x00executor " + logFile + "\x00",
		"version":    "",
	})
	for pid, file := range map[string]string{"13": ".app.stdout.fifo", "14": ".app2.stdout.fifo"} {
		if err := os.Mkdir(filepath.Join(proc, pid, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(dir, "alloc", "logs", file), filepath.Join(proc, pid, "fd", "7")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := tk.helpers(proc)
	if err != nil || len(got) != 2 || got[0] != 11 || got[1] != 13 {
		t.Errorf("%v, %v; want 11 and 13", got, err)
	}
	// What a wrong answer here would do is kill.
	for _, wrong := range []*task{{name: "app"}, {dir: dir}} {
		if got, err := wrong.helpers(proc); err != nil || len(got) > 0 {
			t.Errorf("%+v has %v, %v", wrong, got, err)
		}
	}
}

func TestOwnControlGroup(t *testing.T) {
	root := tree(t, map[string]string{"freezer/nomad/a1b2c3d4-0000.app/cgroup.procs": "7\n8\n0\n", "freezer/nomad/a1b2c3d4-0000.app/sub/cgroup.procs": "9\n", "freezer/nomad/a1b2c3d4-0001.app/cgroup.procs": "10\n"})
	tk := &task{alloc: "a1b2c3d4-0000", name: "app"}
	g, err := tk.ownGroup(root)
	if err != nil || g == nil || g.v2 {
		t.Fatalf("%+v, %v", g, err)
	}
	if pids, err := g.processes(); err != nil || len(pids) != 3 {
		t.Errorf("%v, %v; want 7, 8 and 9", pids, err)
	}
	for _, other := range []*task{{alloc: "", name: "app"}, {alloc: "a1b2c3d4-0000", name: "*"}, {alloc: "a1b2c3d4-0000", name: "app2"}} {
		if g, err := other.ownGroup(root); g != nil || err != nil {
			t.Errorf("%q.%q has %+v, %v", other.alloc, other.name, g, err)
		}
	}
}

// The inner process ends in the middle of a start. The agent must take it for a crash, and what is written down has to stay for the next driver.
func TestDriverEndsInAStart(t *testing.T) {
	tt := newTestTask(t, map[string]any{"post_start": map[string]any{"exec": []string{"/init"}}})
	began, release := make(chan struct{}), make(chan struct{})
	tt.f.execTask = func([]string) (int32, string) {
		close(began)
		<-release
		return 0, ""
	}
	defer close(release)
	ended := make(chan error, 1)
	go func() {
		_, err := tt.agent.StartTask(testContext(t), &proto.StartTaskRequest{Task: tt.config})
		ended <- err
	}()
	<-began
	tt.f.driver.Close()
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("the agent gets %v", err)
	}
	if _, err := os.Stat(filepath.Join(tt.config.AllocDir, "app", "private", "retinue-lifecycle.json")); err != nil {
		t.Errorf("nothing tells the next driver of the start: %v", err)
	}
	tt.wantCalls("start", "exec /init")
}

func TestControlGroupsOfTheGoneAreRemoved(t *testing.T) {
	root := tree(t, map[string]string{"x/y": ""})
	mine, there, other := filepath.Join(root, "blkio/nomad/a1b2c3d4-0000.app"), filepath.Join(root, "blkio/nomad/a1b2c3d4-0001.app"), filepath.Join(root, "pids/nomad/a1b2c3d4-0000.app")
	for _, dir := range []string{filepath.Join(mine, "sub"), there, other} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := &Driver{log: hclog.NewNullLogger(), groups: map[string]string{}}
	d.rememberGroup(&task{alloc: "a1b2c3d4-0000", name: "app", dir: filepath.Join(root, "gone")})
	d.rememberGroup(&task{alloc: "a1b2c3d4-0001", name: "app", dir: root})
	d.rememberGroup(&task{alloc: "a1b2c3d4-0002", name: "..", dir: ""})
	d.removeGroups(root)
	for dir, want := range map[string]bool{mine: false, other: false, there: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if len(d.groups) != 1 {
		t.Errorf("still to do: %v", d.groups)
	}
}

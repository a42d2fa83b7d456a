package shim

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestMain makes this test binary the shim itself: it reaps every child it has, which go test would not like.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "shim" {
		kill, err := time.ParseDuration(os.Getenv("SHIM_KILL_TIMEOUT"))
		if err != nil {
			kill = MinKillTimeout
		}
		code, err := Run(Options{Command: os.Args[2:], Environ: os.Environ(), KillTimeout: kill, Log: hclog.New(&hclog.LoggerOptions{Output: os.Stderr})})
		if err != nil {
			io.WriteString(os.Stderr, "Error: "+err.Error()+"\n")
			os.Exit(1)
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// container is a running shim.
type container struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   bytes.Buffer
	err   bytes.Buffer
	alloc string
	local string
}

func start(t *testing.T, meta map[string]string, script string) *container {
	t.Helper()
	c := &container{t: t, alloc: t.TempDir(), local: t.TempDir()}
	return c.start(meta, script)
}

func (c *container) start(meta map[string]string, script string) *container {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Join(c.alloc, "tmp"), 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.cmd = exec.Command(os.Args[0], "shim", "sh", "-c", script)
	c.cmd.Env = append(os.Environ(), "NOMAD_ALLOC_DIR="+c.alloc, "NOMAD_TASK_DIR="+c.local, "NOMAD_TASK_NAME=t", "NOMAD_ALLOC_ID=a", "GOCOVERDIR="+c.t.TempDir())
	for k, v := range meta {
		if strings.HasPrefix(k, "SHIM_") {
			c.cmd.Env = append(c.cmd.Env, k+"="+v)
			continue
		}
		c.cmd.Env = append(c.cmd.Env, "NOMAD_META_retinue_lifecycle_"+k+"="+v)
	}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.err
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { c.cmd.Process.Kill() })
	return c
}

func (c *container) signal(sig os.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
}

// wait returns the exit code.
func (c *container) wait() int {
	c.t.Helper()
	done := make(chan error, 1)
	go func() { done <- c.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		c.cmd.Process.Signal(syscall.SIGQUIT)
		c.t.Fatalf("the shim does not end\n%s", c.err.String())
	}
	return c.cmd.ProcessState.ExitCode()
}

// until waits for a file that the application makes.
func (c *container) until(name string) {
	c.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(c.local, name)); err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s does not come\n%s", name, c.err.String())
		}
	}
}

func (c *container) read(name string) string {
	data, _ := os.ReadFile(filepath.Join(c.local, name))
	return string(data)
}

// call asks the management API.
func (c *container) call(method, path string) (int, string) {
	c.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(c.alloc, "tmp/retinue-t.api.sock"))
	}}}
	var resp *http.Response
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the socket may come later than the application
		req, err := http.NewRequest(method, "http://x"+path, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		if resp, err = client.Do(req); err == nil {
			break
		}
		if time.Now().After(deadline) {
			c.t.Fatal(err)
		}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

const loop = `trap 'echo TERM >>$NOMAD_TASK_DIR/log; exit 7' TERM; touch $NOMAD_TASK_DIR/up; while :; do sleep 0.05; done`

// Hooks in their order, the application's own exit code, and a state that the next container gets back.
func TestLife(t *testing.T) {
	meta := map[string]string{
		"post_start_exec": `["sh", "-c", "echo post_start >>$NOMAD_TASK_DIR/log"]`,
		"pre_drain_exec":  `["sh", "-c", "echo $RETINUE_HOOK $RETINUE_REASON >>$NOMAD_TASK_DIR/log"]`,
		"save_state_exec": `["printf", "counter 7"]`,
		"pre_stop_exec":   `["sh", "-c", "echo pre_stop >>$NOMAD_TASK_DIR/log; sleep 1000 & exit 0"]`,
	}
	c := start(t, meta, loop)
	c.until("up")
	c.until("log")
	c.signal(syscall.SIGTERM)
	if code := c.wait(); code != 7 {
		t.Errorf("exit code %d\n%s", code, c.err.String())
	}
	if log := c.read("log"); log != "post_start\npre_drain stop\npre_stop\nTERM\n" {
		t.Errorf("%q\n%s", log, c.err.String())
	}
	again := &container{t: t, alloc: c.alloc, local: t.TempDir()}
	again.start(meta, `cat $RETINUE_STATE`)
	if code := again.wait(); code != 0 || again.out.String() != "counter 7" {
		t.Errorf("%d %q\n%s", code, again.out.String(), again.err.String())
	}
}

// A hook that hangs and an application that ignores SIGTERM end within the kill timeout.
func TestWithinKillTimeout(t *testing.T) {
	c := start(t, map[string]string{"pre_stop_exec": "sleep 1000", "pre_stop_timeout": "5m"}, `trap '' TERM; touch $NOMAD_TASK_DIR/up; while :; do sleep 0.05; done`)
	c.until("up")
	begun := time.Now()
	c.signal(syscall.SIGTERM)
	if code := c.wait(); code != 128+9 {
		t.Errorf("exit code %d", code)
	}
	// The machine of the test may be slow, so only that hooks got time and that it is not for ever.
	if took := time.Since(begun); took < MinKillTimeout-reserve || took > 30*time.Second {
		t.Errorf("%s", took)
	}
}

// Orphans are reaped, signals are forwarded, and the application's own end ends the container.
func TestReapsAndForwards(t *testing.T) {
	c := start(t, nil, `trap 'touch $NOMAD_TASK_DIR/usr1' USR1; (sleep 0.1 & echo $! >$NOMAD_TASK_DIR/orphan.tmp; mv $NOMAD_TASK_DIR/orphan.tmp $NOMAD_TASK_DIR/orphan); touch $NOMAD_TASK_DIR/up; while [ ! -e $NOMAD_TASK_DIR/end ]; do sleep 0.05; done; exit 3`)
	c.until("up")
	c.until("orphan")
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat("/proc/" + strings.TrimSpace(c.read("orphan"))); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a zombie is left")
		}
	}
	c.signal(syscall.SIGUSR1)
	c.until("usr1")
	if err := os.WriteFile(filepath.Join(c.local, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := c.wait(); code != 3 {
		t.Errorf("exit code %d", code)
	}
}

// The management API inside the container: pause stops the application where it stands.
func TestManage(t *testing.T) {
	c := start(t, nil, `touch $NOMAD_TASK_DIR/up; while :; do echo x >>$NOMAD_TASK_DIR/beat; sleep 0.02; done`)
	c.until("beat")
	if status, body := c.call("POST", "/v1/pause"); status != 200 || !strings.Contains(body, "paused") {
		t.Errorf("%d %s", status, body)
	}
	before := c.read("beat")
	time.Sleep(200 * time.Millisecond) // long enough for ten beats, and no beat may come
	if after := c.read("beat"); after != before {
		t.Error("it goes on while paused")
	}
	if status, body := c.call("GET", "/v1/ready"); status != 503 {
		t.Errorf("%d %s", status, body)
	}
	if status, body := c.call("POST", "/v1/resume"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if status, body := c.call("GET", "/v1/profile?kind=threads"); status != 200 || !strings.Contains(body, "sleep") && !strings.Contains(body, "sh") {
		t.Errorf("%d %s", status, body)
	}
	if status, body := c.call("POST", "/v1/replicate"); status != 400 {
		t.Errorf("%d %s", status, body)
	}
	c.signal(syscall.SIGTERM)
	if code := c.wait(); code != 128+15 {
		t.Errorf("exit code %d", code)
	}
}

// Where the lifecycle driver runs the task, the shim is the command and nothing more: hooks would run twice.
func TestUnderTheDriver(t *testing.T) {
	t.Setenv("RETINUE_API", "/alloc/tmp/retinue-t.api.sock")
	c := start(t, map[string]string{"post_start_exec": `["sh", "-c", "touch $NOMAD_TASK_DIR/hook"]`}, `echo $PPID >$NOMAD_TASK_DIR/parent; exit 5`)
	if code := c.wait(); code != 5 {
		t.Errorf("exit code %d\n%s", code, c.err.String())
	}
	if strings.TrimSpace(c.read("parent")) != strconv.Itoa(os.Getpid()) {
		t.Errorf("parent %s of %d", c.read("parent"), os.Getpid())
	}
	if _, err := os.Stat(filepath.Join(c.local, "hook")); err == nil {
		t.Error("the hook ran")
	}
}

func TestWrong(t *testing.T) {
	c := start(t, map[string]string{"pre_stop_exce": "x"}, "exit 0")
	if code := c.wait(); code != 1 || !strings.Contains(c.err.String(), "did you mean exec?") {
		t.Errorf("%d %s", code, c.err.String())
	}
	c = start(t, map[string]string{"save_state_exec": "x", "save_state_store": "consul-kv"}, "exit 0")
	if code := c.wait(); code != 1 || !strings.Contains(c.err.String(), "not for use inside a container") {
		t.Errorf("%d %s", code, c.err.String())
	}
	c = start(t, map[string]string{"SHIM_KILL_TIMEOUT": "1s"}, "exit 0")
	if code := c.wait(); code != 1 || !strings.Contains(c.err.String(), "no time for hooks") {
		t.Errorf("%d %s", code, c.err.String())
	}
	c = start(t, map[string]string{"post_start_exec": "false"}, loop)
	if code := c.wait(); code == 0 {
		t.Errorf("a failed post_start ended with %d\n%s", code, c.err.String())
	}
}

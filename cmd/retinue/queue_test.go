package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
)

// TestMain lets a test start this program as a process of its own: with RETINUE_TEST_MAIN the test binary is retinue.
func TestMain(m *testing.M) {
	if os.Getenv("RETINUE_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// process starts retinue as a process.
func process(t *testing.T, log string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "RETINUE_TEST_MAIN=1")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func showLog(t *testing.T, log string) {
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("log:\n%s", text[max(0, len(text)-6000):])
		}
	})
}

func readme(t *testing.T, pattern string) string {
	t.Helper()
	text, err := os.ReadFile("../../coordinator/README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(pattern).FindSubmatch(text)
	if found == nil {
		t.Fatalf("the README has no %s", pattern)
	}
	return string(found[1])
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// until waits for something that comes soon.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within two minutes", what)
		}
	}
}

// TestReadmeWorkers runs the three workers of the README and the verbs, with real processes.
func TestReadmeWorkers(t *testing.T) {
	for _, mode := range []string{"exec", "watch", "http"} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			log, addr := filepath.Join(dir, "log"), "unix://"+filepath.Join(dir, "c.sock")
			showLog(t, log)
			args := []string{"coordinator", "--queue", "words", "--broker", "memory:", "--mode", mode, "--work", filepath.Join(dir, "wq"), "--done", filepath.Join(dir, "done"), "--listen", addr}
			switch mode {
			case "exec":
				worker := filepath.Join(dir, "worker")
				write(t, worker, readme(t, "(?s)```sh\n(#!/bin/sh\n# worker: exec.*?)```"), 0o700)
				args = append(args, "--", worker)
			case "watch":
				python, err := exec.LookPath("python3")
				if err != nil {
					t.Skip("skip: no python3")
				}
				worker := filepath.Join(dir, "worker.py")
				write(t, worker, readme(t, "(?s)```python\n(# worker: watch.*?)```"), 0o600)
				work := filepath.Join(dir, "wq")
				for _, sub := range []string{"ready", "run"} {
					if err := os.MkdirAll(filepath.Join(work, sub), 0o700); err != nil {
						t.Fatal(err)
					}
				}
				start(t, exec.Command(python, worker, work))
			case "http":
				worker := filepath.Join(dir, "main.go")
				write(t, worker, readme(t, "(?s)```go\n(// worker: http.*?)```"), 0o600)
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				host := l.Addr().String()
				l.Close()
				bin := filepath.Join(dir, "worker")
				if out, err := exec.Command("go", "build", "-o", bin, worker).CombinedOutput(); err != nil {
					t.Fatalf("%s", out)
				}
				start(t, exec.Command(bin, host))
				args = append(args, "--url", "http://"+host+"/")
			}
			process(t, log, args...)
			until(t, "the coordinator listens", func() bool { code, _, _ := call("queue", "stats", "--addr", addr); return code == exitOK })
			payload := filepath.Join(dir, "payload")
			write(t, payload, "hello", 0o600)
			if code, out, errs := call("queue", "put", payload, "--id", "one", "--wait", "1m", "--addr", addr); code != exitOK || !strings.Contains(out, "one  done") || !strings.Contains(out, "HELLO") {
				t.Fatalf("put: %d %s %s", code, out, errs)
			}
			if mode == "exec" {
				deadVerbs(t, dir, addr)
			}
		})
	}
}

func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
}

// deadVerbs goes through the verbs with an item that cannot be done.
func deadVerbs(t *testing.T, dir, addr string) {
	bad, good := filepath.Join(dir, "bad"), filepath.Join(dir, "good")
	write(t, bad, "unreadable", 0o600)
	write(t, good, "readable after all", 0o600)
	write(t, filepath.Join(dir, "bulk"), "{\"body\":\"x\"}\n\n{\"id\":\"b2\",\"body\":\"y\"}\n", 0o600)
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"put " + bad + " --id two --wait 1m", exitFailed, "two  dead  refused exit code 65"},
		{"dead ls", exitOK, "exit code 65"},
		{"dead show two", exitOK, "| cannot read this"},
		{"dead show three", exitFailed, ""},
		{"show nobody", exitFailed, ""},
		{"dead edit two --file " + good, exitOK, "retry: 1 dead letters"},
		{"wait two --timeout 1m", exitOK, "READABLE AFTER ALL"},
		{"put --lines " + filepath.Join(dir, "bulk"), exitOK, "2 items published"},
		{"wait b2 --timeout 1m --json", exitOK, `"state": "done"`},
		{"cancel b2", exitFailed, "b2  done"},
		{"cancel never-published", exitOK, "cancelled"},
		{"pause --reason lunch", exitOK, "paused (lunch)"},
		{"ls", exitOK, "ITEM"},
		{"resume", exitOK, "running"},
		{"drain", exitOK, "drained"},
		{"dead purge --all", exitOK, "purge: 0 dead letters"},
		{"dead purge nobody", exitFailed, ""},
		{"dead retry", exitUsage, ""},
		{"put --lines --wait 3s", exitUsage, ""},
	} {
		code, out, errs := call(append(append([]string{"queue"}, strings.Fields(c.line)...), "--addr", addr)...)
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("queue %s: %d, want %d and %q:\n%s%s", c.line, code, c.code, c.want, out, errs)
		}
	}
}

// TestKilledProcesses: coordinators and workers are killed with SIGKILL again and again, over a real broker; every item is committed
// once, and the next stage gets it once.
func TestKilledProcesses(t *testing.T) {
	server, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("skip: no redis-server")
	}
	items, kills := 60, 6
	if !testing.Short() {
		items, kills = 300, 25
	}
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	showLog(t, log)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	start(t, exec.Command(server, "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--dir", dir, "--logfile", filepath.Join(dir, "redis.log")))
	broker := fmt.Sprintf("redis://127.0.0.1:%d/0", port)
	open := func(o source.Options) (source.Source, error) { return dial.Open(t.Context(), broker, o) }
	var src source.Source
	until(t, "Redis answers", func() bool { src, err = open(source.Options{Queue: "in"}); return err == nil })
	worker := filepath.Join(dir, "worker")
	write(t, worker, "#!/bin/sh\necho \"$RETINUE_ITEM $$\" >>"+filepath.Join(dir, "runs")+"\nsleep 0.0$(($$ % 10))\ncp \"$RETINUE_INPUT\" out/copy\n", 0o700)
	var outs []source.Out
	for i := range items {
		outs = append(outs, source.Out{ID: fmt.Sprintf("i%d", i), Body: fmt.Appendf(nil, "body %d", i)})
	}
	if err := src.Publish(t.Context(), outs...); err != nil {
		t.Fatal(err)
	}
	done := filepath.Join(dir, "done")
	run := func() *exec.Cmd {
		return process(t, log, "coordinator", "--queue", "in", "--broker", broker, "--lease", "1s", "--to", "out", "--attempts", "50", "--backoff", "1ms..50ms", "--work", filepath.Join(dir, "wq"), "--done", done, "--", worker)
	}
	c := run()
	for i := range kills {
		before := lines(dir)
		until(t, "some work", func() bool { return lines(dir) >= before+1 || committed(done) == items })
		if i%3 == 2 { // a worker in the middle of it
			pid := lastWorker(dir)
			_ = exec.Command("kill", "-9", pid).Run() // it may have ended
			continue
		}
		c.Process.Kill()
		c.Wait()
		c = run()
	}
	until(t, "all items are committed", func() bool { return committed(done) == items })
	until(t, "the queue is empty", func() bool {
		d, err := src.Depth(t.Context())
		return err == nil && d.Ready+max(0, d.Delayed)+max(0, d.InFlight) == 0
	})
	got := received(t, open, items)
	for i := range items {
		id := fmt.Sprintf("i%d/in/0", i)
		if got[id] != fmt.Sprintf("body %d", i) {
			t.Errorf("%s: the next stage got %q", id, got[id])
		}
	}
	t.Logf("%d items, %d kills, %d executions", items, kills, lines(dir))
}

func lines(dir string) int {
	text, _ := os.ReadFile(filepath.Join(dir, "runs")) // not there before the first run
	return strings.Count(string(text), "\n")
}

func lastWorker(dir string) string {
	text, _ := os.ReadFile(filepath.Join(dir, "runs"))
	fields := strings.Fields(string(text))
	return fields[len(fields)-1]
}

func committed(done string) int {
	found, _ := filepath.Glob(filepath.Join(done, "in", "*", "_record.json"))
	return len(found)
}

// received takes everything from the next stage's queue, and fails when something is there twice.
func received(t *testing.T, open func(source.Options) (source.Source, error), want int) map[string]string {
	t.Helper()
	next, err := open(source.Options{Queue: "out"})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close(context.Background())
	got := map[string]string{}
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		msgs, err := next.Receive(ctx, 100)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			if _, ok := got[m.ID]; ok {
				t.Errorf("%s is there twice", m.ID)
			}
			got[m.ID] = string(m.Body)
		}
		if err := next.Ack(t.Context(), msgs...); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != want {
		t.Errorf("the next stage got %d items, want %d", len(got), want)
	}
	return got
}

func TestCoordinatorUsage(t *testing.T) {
	dir := t.TempDir()
	for _, line := range []string{"coordinator --queue q", "coordinator --queue q --broker ftp://x --commit none --mode http --url http://x/", "coordinator --queue q --broker kafka://127.0.0.1 --commit none --mode http --url http://x/", "coordinator --config " + dir + "/none", "queue stats --addr nonsense"} {
		if code, _, errs := call(strings.Fields(line)...); code != exitUsage || !strings.Contains(errs, "Hint: ") {
			t.Errorf("%s: %d %s", line, code, errs)
		}
	}
}

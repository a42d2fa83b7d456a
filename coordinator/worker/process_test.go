package worker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"retinue/coordinator/item"
)

func startShell(t *testing.T, script string) *process {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	p, err := start("/bin/sh", []string{"sh", "-c", script}, t.TempDir(), nil, [3]int{fd, fd, fd})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The end of a process is noticed in both ways: by its descriptor, and by a thread on a kernel that has none.
func TestProcess(t *testing.T) {
	for _, how := range []string{"pidfd", "thread"} {
		begin := func(script string) *process {
			p := startShell(t, script)
			if how == "thread" {
				if err := p.watch(); err != nil {
					t.Fatal(err)
				}
			}
			return p
		}
		p := begin("sleep 0.1; exit 7")
		if !p.wait(time.Now().Add(time.Millisecond)) {
			t.Errorf("%s: it has ended at once", how)
		}
		for range 2 { // it stays ended
			if p.wait(time.Now().Add(time.Minute)) {
				t.Errorf("%s: it does not end", how)
			}
		}
		if status, err := p.reap(); err != nil || status.ExitStatus() != 7 {
			t.Errorf("%s: %v, %v", how, status, err)
		}
		p = begin("exec sleep 300")
		time.AfterFunc(10*time.Millisecond, p.interrupt)
		if !p.wait(time.Time{}) {
			t.Errorf("%s: it has ended by itself", how)
		}
		p.kill()
		p.wait(time.Time{})
		if status, err := p.reap(); err != nil || status.Signal() != syscall.SIGKILL {
			t.Errorf("%s: %v, %v", how, status, err)
		}
	}
}

// Many at once, short and long ones: each has its own end, and nothing is left open.
func TestManyCommands(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	w := shell(t, `read -r n; test $((n % 3)) = 0 && sleep 0.05; echo "$n said"; echo "$n" >&2; exit $((n % 2))`, nil)
	before := open()
	var all sync.WaitGroup
	for slot := range 8 {
		all.Go(func() {
			for i := range 20 {
				n := fmt.Sprint(slot*20 + i)
				v := w.Call(t.Context(), []*item.Task{task(n, n+"\n")})[0]
				switch even := i%2 == 0; {
				case even && (v.Kind != Ack || string(v.Output.Result) != n+" said\n"):
					t.Errorf("%s: %+v", n, v)
				case !even && (v.Kind != Retry || v.Stderr != n+"\n"):
					t.Errorf("%s: %+v", n, v)
				}
				w.Discard(v.Output)
			}
		})
	}
	all.Wait()
	if after := open(); after > before+2 { // the poller's own
		t.Errorf("%d open files, %d before", after, before)
	}
}

// A command dies with the coordinator that started it, and not sooner.
func TestDeathOfCoordinator(t *testing.T) {
	const folder = "RETINUE_TEST_DEATH"
	if dir := os.Getenv(folder); dir != "" { // the coordinator
		w := &Exec{Folders: Folders{Work: dir}, Command: []string{"/bin/sh", "-c", "echo $$ >pid; sleep 300 & wait"}, Codes: DefaultExitCodes()}
		if err := w.Open(); err != nil {
			t.Fatal(err)
		}
		w.Call(context.Background(), []*item.Task{task("a", "")})
		return
	}
	dir := filepath.Join(t.TempDir(), "wq")
	c := exec.Command(os.Args[0], "-test.run=^TestDeathOfCoordinator$")
	c.Env = append(os.Environ(), folder+"="+dir)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for pid == 0 {
		time.Sleep(time.Millisecond)
		data, _ := os.ReadFile(filepath.Join(dir, "run", "a.1.a", "pid"))
		_, _ = fmt.Sscan(strings.TrimSpace(string(data)), &pid)
	}
	time.Sleep(100 * time.Millisecond)
	if !alive(pid) {
		t.Error("it died before the coordinator")
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed
	for alive(pid) {
		time.Sleep(time.Millisecond)
	}
}

// A context that has ended before the wait, or ends as it begins, ends the wait.
func TestWaitForAContextThatEnds(t *testing.T) {
	p := startShell(t, "exec sleep 600")
	defer func() { p.kill(); p.wait(time.Time{}); _, _ = p.reap() }()
	for i := range 3000 {
		ctx, cancel := context.WithCancel(t.Context())
		if i%3 == 0 {
			cancel()
		} else {
			go cancel()
		}
		late := make(chan bool, 1)
		go func() { late <- p.waitFor(ctx) }()
		select {
		case is := <-late:
			if !is {
				t.Fatal("the process is said to have ended")
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("wait %d goes on after its context", i)
		}
	}
}

package driver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestHooksInTheirOrder(t *testing.T) {
	w := need(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			a := w.run(t, w.job("hooks-"+driver, driver, block()))
			a.ask(t, "POST", "/inc")
			a.ask(t, "POST", "/inflight/2")
			if _, _, err := w.Nomad.Jobs().Deregister("hooks-"+driver, false, nil); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, 60*time.Second, "the drain begins", func(context.Context) error {
				if h := a.history(t); !strings.Contains(h, "drain begins") {
					return fmt.Errorf("history:\n%s", h)
				}
				return nil
			})
			// It waits: what comes after the drain must not be there while something is in flight.
			if h := a.history(t); strings.Contains(h, "save_state") || strings.Contains(h, "signal") {
				t.Fatalf("it does not wait for the end of the requests:\n%s", h)
			}
			a.ask(t, "POST", "/inflight/0")
			a.stopped(t)
			const want = `started
exec post_start as HOOK
http pre-drain as pre_drain
drain begins with 2 in flight
save_state 1
exec pre_stop as HOOK
signal terminated`
			got := inOrder(a.history(t))
			for _, hook := range []string{"post_start", "pre_stop"} { // the image has no program env, so its hooks are not told their name
				expected := " as " + hook
				if driver == devcluster.DriverDocker {
					expected = " as "
				}
				got = strings.Replace(got, "exec "+hook+expected, "exec "+hook+" as HOOK", 1)
			}
			if driver != devcluster.DriverDocker {
				got = strings.Replace(got, "signal interrupt", "signal terminated", 1) // the default of exec
			}
			if got != want {
				t.Errorf("history:\n%s\nwant:\n%s", got, want)
			}
			events := a.events(t)
			for _, word := range []string{"post_start", "pre_drain", "drain", "save_state 1 bytes", "pre_stop"} {
				if !strings.Contains(events, word) {
					t.Errorf("no event tells of %q:\n%s", word, events)
				}
			}
		})
	}
}

func TestNodeDrainMovesTheState(t *testing.T) {
	w := need(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			id := "moves-" + driver
			a := w.run(t, w.job(id, driver, block()))
			for range 7 {
				a.ask(t, "POST", "/inc")
			}
			if _, err := w.Nomad.Nodes().UpdateDrain(a.nodeID, &nomad.DrainSpec{Deadline: time.Minute}, false, nil); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if _, err := w.Nomad.Nodes().UpdateDrain(a.nodeID, nil, true, nil); err != nil {
					t.Error(err)
				}
			}()
			b := w.next(t, id, a.id)
			if b.node == a.node {
				t.Fatalf("it runs on %s again", b.node)
			}
			if got := b.ask(t, "GET", "/count"); got != "7" {
				t.Errorf("the count is %s after the move, 7 before", got)
			}
		})
	}
}

func TestPauseAndResume(t *testing.T) {
	w := need(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			a := w.run(t, w.job("pause-"+driver, driver, block()))
			a.ask(t, "GET", "/count") // it listens
			phase := func() string {
				var task struct {
					Lifecycle struct{ Phase string }
				}
				if err := json.Unmarshal([]byte(a.exec(t, "@retinue", "GET", "/v1/task")), &task); err != nil {
					t.Fatal(err)
				}
				return task.Lifecycle.Phase
			}
			signal := func(word string) {
				w.Command(t, harness.NomadBinary(t), "alloc", "signal", "-s", word, a.id, "app")
			}
			beat := func() string {
				raw, err := os.ReadFile(filepath.Join(a.dir, "alloc", "beat"))
				if err != nil {
					t.Fatal(err)
				}
				return string(raw)
			}
			signal("pause")
			if p := phase(); p != "paused" {
				t.Fatalf("phase %s after pause", p)
			}
			// Frozen is frozen: after any time the file is what it was. A second is many of its beats.
			before := beat()
			time.Sleep(time.Second)
			if after := beat(); after != before {
				t.Errorf("it goes on while it is paused: %s, then %s", before, after)
			}
			signal("resume")
			if p := phase(); p != "running" {
				t.Fatalf("phase %s after resume", p)
			}
			if got := a.ask(t, "POST", "/inc"); got != "1" {
				t.Errorf("after resume it answers %q", got)
			}
			signal("pause")
			if _, _, err := w.Nomad.Jobs().Deregister("pause-"+driver, false, nil); err != nil {
				t.Fatal(err)
			}
			a.stopped(t)
			if h := a.history(t); !strings.Contains(h, "http pause as pause") || !strings.Contains(h, "http resume as resume") || !strings.Contains(h, "exec pre_stop") || !strings.Contains(h, "\nsignal ") {
				t.Errorf("history:\n%s", h)
			}
		})
	}
}

func TestFailedPostStartIsSeen(t *testing.T) {
	w := need(t)
	job := w.job("failing", devcluster.DriverRawExec, map[string]any{"post_start": map[string]any{"exec": []string{"/bin/sh", "-c", "echo no schema; exit 3"}}})
	job.TaskGroups[0].ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	if _, _, err := w.Nomad.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	defer w.Nomad.Jobs().Deregister("failing", true, nil)
	harness.Eventually(t, 60*time.Second, "the allocation fails, with the reason", func(context.Context) error {
		all := w.allocs(t, "failing")
		if len(all) == 0 || all[0].ClientStatus != "failed" {
			return fmt.Errorf("allocations: %+v", all)
		}
		for _, e := range all[0].TaskStates["app"].Events {
			if strings.Contains(e.DisplayMessage, "post_start: exit code 3: no schema") {
				return nil
			}
		}
		return fmt.Errorf("events: %+v", all[0].TaskStates["app"].Events)
	})
}

// Who freezes a task behind the driver's back, by `docker pause` or by its freezer, does not hold up its stop: it is thawed first,
// and its hooks run.
func TestStopOfATaskThatSomebodyElseFroze(t *testing.T) {
	w := need(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			id := "frozen-" + driver
			a := w.run(t, w.job(id, driver, block()))
			a.ask(t, "POST", "/inc")
			if driver == devcluster.DriverDocker {
				if out, err := exec.Command("docker", "pause", "app-"+a.id).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			} else {
				a.freezeByHand(t)
			}
			if _, _, err := w.Nomad.Jobs().Deregister(id, false, nil); err != nil {
				t.Fatal(err)
			}
			a.stopped(t)
			h := a.history(t)
			for _, line := range []string{"http pre-drain", "save_state 1", "exec pre_stop", "signal "} {
				if strings.Count("\n"+h, "\n"+line) != 1 {
					t.Errorf("not once in the history: %q\n%s", line, h)
				}
			}
			if e := a.events(t); !strings.Contains(e, "somebody else had frozen it") || strings.Contains(e, "SIGKILL") || strings.Contains(e, "failed") {
				t.Errorf("events:\n%s", e)
			}
		})
	}
}

// freezeByHand writes to the freezer of the task's control group, of either version.
func (a *alloc) freezeByHand(t *testing.T) {
	t.Helper()
	for pattern, word := range map[string]string{
		"/sys/fs/cgroup/freezer/nomad/" + a.id + ".app/freezer.state":           "FROZEN",
		"/sys/fs/cgroup/nomad.slice/*/" + a.id + ".app.scope/cgroup.freeze":     "1",
		"/sys/fs/cgroup/nomad.slice/*/" + a.id + ".app.scope/app/cgroup.freeze": "1",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			if err := os.WriteFile(found[0], []byte(word), 0); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the task has no freezer")
}

// B17: while a driver starts a task Nomad asks it for nothing else, no stop and no signal. So a stop waits for the start: until
// ready has succeeded, its timeout is over, or the process ends.
func TestStopOfATaskThatIsNotReady(t *testing.T) {
	w := need(t)
	waits := func(t *testing.T, id, timeout string) *alloc {
		t.Helper()
		job := w.job(id, devcluster.DriverRawExec, map[string]any{"ready": map[string]any{"exec": []string{"/bin/false"}, "timeout": timeout}, "pre_stop": map[string]any{"sleep": "1ms"}})
		if _, _, err := w.Nomad.Jobs().Register(job, nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Nomad.Jobs().Deregister(id, true, nil) })
		var a *alloc
		harness.Eventually(t, 60*time.Second, "its process runs", func(context.Context) error {
			if a = w.find(t, id); a == nil {
				return errors.New("there is no allocation")
			}
			if h := a.history(t); !strings.Contains(h, "started") {
				return fmt.Errorf("history: %q", h)
			}
			return nil
		})
		if s := a.info(t).TaskStates["app"]; s != nil && s.State != "pending" { // nil: the client has not told yet
			t.Fatalf("the start has ended: %+v", s)
		}
		if _, _, err := w.Nomad.Jobs().Deregister(id, false, nil); err != nil {
			t.Fatal(err)
		}
		return a
	}
	ended := func(t *testing.T, a *alloc) {
		t.Helper()
		harness.Eventually(t, 60*time.Second, "the allocation ends", func(context.Context) error {
			if s := a.info(t); s.ClientStatus != "complete" && s.ClientStatus != "failed" {
				return fmt.Errorf("it is %s", s.ClientStatus)
			}
			return nil
		})
		if n := a.restarts(t); n != 0 {
			t.Errorf("%d restarts of a job that is stopped", n)
		}
	}
	t.Run("its timeout", func(t *testing.T) {
		a := waits(t, "never-ready", "5s")
		ended(t, a)
		if e := a.events(t); !strings.Contains(e, "not done within 5s") {
			t.Errorf("events:\n%s", e)
		}
		if h := a.history(t); !strings.Contains(h, "\nsignal ") {
			t.Errorf("it was not asked to end:\n%s", h)
		}
	})
	t.Run("its process ends", func(t *testing.T) {
		a := waits(t, "ends-before-ready", "1h")
		if err := syscall.Kill(a.pid(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ended(t, a)
	})
}

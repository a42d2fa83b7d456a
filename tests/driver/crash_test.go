package driver_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/internal/nomadkit"
	"retinue/tests/harness"
)

// onClient2 places a job on the client whose agent no test kills: there the plugin's
// processes are children of the agent. One that was taken over is nobody's child.
func onClient2(job *nomad.Job) *nomad.Job {
	return job.Constrain(nomad.NewConstraint("${node.unique.name}", "=", "client-2"))
}

// kill ends a process of the plugin, and returns which it was.
func (w *world) kill(t *testing.T, node, program, driver string) int {
	t.Helper()
	pid := w.pluginProcess(t, node, program, driver)
	if pid <= 0 { // 0 would be this test's own process group
		t.Fatalf("no %s of %s on %s", program, driver, node)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return pid
}

// pluginProcess finds a process of the plugin on a node by its arguments: the agent's own
// child, or the child of that. 0: there is none.
func (w *world) pluginProcess(t *testing.T, node, program, driver string) int {
	t.Helper()
	agent, err := w.Agent("nomad-" + node)
	if err != nil {
		t.Fatal(err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		raw, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case program == "retinue-driver" && len(args) == 5 && filepath.Base(args[0]) == "retinue-"+driver && parent(pid) == agent.PID,
			program == "retinue-inner" && len(args) == 2 && filepath.Base(args[0]) == program && args[1] == driver && parent(parent(pid)) == agent.PID:
			return pid
		}
	}
	return 0
}

// parent is 0 for a process that is gone.
func parent(pid int) int {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return n
}

// recovered waits until the driver answers for the task again.
func (a *alloc) recovered(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 90*time.Second, "the driver answers for the task again", func(context.Context) error {
		code, err := nomadkit.AskDriver(context.Background(), a.w.Nomad, a.info(t), "app", []string{"@retinue", "GET", "/v1/task"}, new(strings.Builder), new(strings.Builder))
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("exit code %d", code)
		}
		return nil
	})
}

// survived stops the job and looks whether the task was the same one all the time and its
// hooks have run once.
func (a *alloc) survived(t *testing.T, job string) {
	t.Helper()
	if got := a.ask(t, "POST", "/inc"); got != "2" {
		t.Errorf("the application counts %s, it is not the one of before", got)
	}
	if _, _, err := a.w.Nomad.Jobs().Deregister(job, false, nil); err != nil {
		t.Fatal(err)
	}
	a.stopped(t)
	if n := a.restarts(t); n != 0 {
		t.Errorf("%d restarts", n)
	}
	h := a.history(t)
	for _, line := range []string{"started", "exec post_start", "http pre-drain", "save_state 2", "exec pre_stop", "signal "} {
		if strings.Count("\n"+h, "\n"+line) != 1 {
			t.Errorf("not once in the history: %q\n%s", line, h)
		}
	}
}

func TestPluginAndInnerKilled(t *testing.T) {
	w := need(t)
	for _, driver := range drivers {
		for _, program := range []string{"retinue-driver", "retinue-inner"} {
			t.Run(driver+"/"+program, func(t *testing.T) {
				id := "killed-" + driver + "-" + program
				a := w.run(t, onClient2(w.job(id, driver, block())))
				a.ask(t, "POST", "/inc")
				pid := w.kill(t, a.node, program, driver)
				harness.Eventually(t, 60*time.Second, "there are new processes", func(context.Context) error {
					for _, p := range []string{"retinue-driver", "retinue-inner"} {
						if now := w.pluginProcess(t, a.node, p, driver); now == 0 || now == pid {
							return errors.New(p + " is not there yet")
						}
					}
					return nil
				})
				a.recovered(t)
				a.survived(t, id)
			})
		}
	}
}

// TestAgentKilledAndAdoption plays three lives of an agent over the same tasks: with the
// drivers that are built in, with the plugin, and built in again. Where it can be the agent is
// killed between them, so that nothing is handed over in order.
func TestAgentKilledAndAdoption(t *testing.T) {
	w := need(t)
	type running struct {
		*alloc
		id string
	}
	client := w.dress(t)
	start := func(name string, lifecycle map[string]any) []running {
		t.Helper()
		var out []running
		for _, driver := range drivers {
			id := name + "-" + driver
			job := w.job(id, driver, lifecycle)
			job.Constrain(nomad.NewConstraint("${node.unique.name}", "=", "client-1"))
			// A driver that is built in does not tell the application where it may listen.
			job.TaskGroups[0].Tasks[0].Env = map[string]string{"RETINUE_SOCK": "${NOMAD_ALLOC_DIR}/tmp/retinue-app.sock"}
			a := w.run(t, job)
			a.ask(t, "POST", "/inc")
			out = append(out, running{a, id})
		}
		return out
	}
	inTheSameLife := func(all []running, want string) {
		t.Helper()
		for _, r := range all {
			harness.Eventually(t, 90*time.Second, r.id+" runs", func(context.Context) error {
				if s := r.info(t).TaskStates["app"]; s == nil || s.State != "running" {
					return errors.New("it does not")
				}
				return nil
			})
			if got := r.ask(t, "POST", "/inc"); got != want {
				t.Errorf("%s counts %s, want %s: it is not the process of before", r.id, got, want)
			}
		}
	}

	client.stop(t, false)
	tasks := start("adopted", nil)
	client.kill(t, true)
	inTheSameLife(tasks, "2")
	for _, r := range tasks {
		r.recovered(t)
	}
	hooked := start("hooked", block())
	client.kill(t, true) // the plugin's processes of before are still there, and taken over
	for _, r := range hooked {
		r.recovered(t)
		r.exec(t, r.program(strings.TrimPrefix(r.id, "hooked-")), "note", "after") // what kills tasks of the built-in exec: hashicorp/nomad#27815
	}
	inTheSameLife(tasks, "3")
	inTheSameLife(hooked, "2")
	for _, r := range hooked {
		if _, _, err := w.Nomad.Jobs().Deregister(r.id, false, nil); err != nil {
			t.Fatal(err)
		}
		r.stopped(t)
		if h := r.history(t); !strings.Contains(h, "exec pre_stop") || !strings.Contains(h, "save_state 2") {
			t.Errorf("%s lost its hooks when the agent was killed:\n%s", r.id, h)
		}
	}
	client.stop(t, false)
	inTheSameLife(tasks, "4")
	for _, r := range tasks {
		if n := r.restarts(t); n != 0 {
			t.Errorf("%s: %d restarts", r.id, n)
		}
	}
}

func TestHookThatHangsHoldsNothingUp(t *testing.T) {
	w := need(t)
	hooks := map[string]any{"stop_budget": "8s", "pre_stop": map[string]any{"exec": []string{"/bin/sleep", "3600"}, "timeout": "1h"}}
	a := w.run(t, w.job("hangs", devcluster.DriverRawExec, hooks))
	begun := time.Now()
	if _, _, err := w.Nomad.Jobs().Deregister("hangs", false, nil); err != nil {
		t.Fatal(err)
	}
	a.stopped(t)
	if took := time.Since(begun); took > 60*time.Second {
		t.Errorf("the stop took %s with a budget of 8 s", took)
	}
	if e := a.events(t); !strings.Contains(e, "pre_stop failed") {
		t.Errorf("events:\n%s", e)
	}
}

// TestPauseContainerDoesNotLeak: after a crash of the plugin the agent gives the network of
// an allocation back to a process that is gone, with any external docker driver.
func TestPauseContainerDoesNotLeak(t *testing.T) {
	w := need(t)
	if w.Plan().NetworkMode() != devcluster.NetworkBridge {
		t.Skip("SKIP bridge networking")
	}
	job := w.job("bridged", devcluster.DriverDocker, nil)
	job.TaskGroups[0].Networks = []*nomad.NetworkResource{{Mode: "bridge"}}
	a := w.run(t, onClient2(job))
	a.ask(t, "POST", "/inc")
	pause := func() string {
		out, err := exec.Command("docker", "ps", "-aq", "--filter", "name=nomad_init_"+a.id).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if pause() == "" {
		t.Fatal("there is no pause container: this test tests nothing")
	}
	w.kill(t, a.node, "retinue-driver", devcluster.DriverDocker)
	a.recovered(t)
	if _, _, err := w.Nomad.Jobs().Deregister("bridged", true, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 120*time.Second, "the pause container goes", func(context.Context) error {
		if err := w.Nomad.System().GarbageCollect(); err != nil { // removes the folder of the allocation
			return err
		}
		if id := pause(); id != "" {
			_, err := os.Stat(a.dir)
			return fmt.Errorf("container %s is there; folder of the allocation: %v", id, err)
		}
		return nil
	})
}

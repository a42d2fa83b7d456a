package driver_test

import (
	"context"
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

// engine is a Docker engine of a test's own, which can be killed.
type engine struct {
	*harness.Process
	dir string
}

const engineImage = "counter:test"

// startEngine runs a dockerd beside the machine's, and gives it an image that has nothing but the counter. It has a network namespace
// of its own: an engine that is told to have no bridge removes the bridge of the one that is there.
func startEngine(t *testing.T) *engine {
	t.Helper()
	path, err := exec.LookPath("dockerd")
	if err != nil {
		t.Fatal(err)
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{dir: harness.Dir(t, "engine")}
	e.config(t, false)
	e.Process = harness.Start(t, harness.Spec{Name: "dockerd", Path: unshare, Args: []string{"--net", "--", path,
		"--config-file", filepath.Join(e.dir, "daemon.json"), "--host", e.host(),
		"--data-root", filepath.Join(e.dir, "data"), "--exec-root", filepath.Join(e.dir, "exec"), "--pidfile", filepath.Join(e.dir, "pid"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-masq=false",
	}})
	t.Cleanup(func() {
		// It may be down, with containers that go on.
		if containers, err := filepath.Glob(filepath.Join(e.dir, "data", "containers", "*")); err == nil {
			for _, c := range containers {
				e.end(t, filepath.Base(c))
			}
		}
		e.Stop(20 * time.Second)
	})
	e.answers(t)
	layer := filepath.Join(e.dir, "counter.tar")
	if out, err := exec.Command("tar", "-C", filepath.Dir(counterProgram.Get(t)), "-cf", layer, "counter").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e.docker(t, "import", "--change", `CMD ["/counter"]`, layer, engineImage)
	return e
}

// end kills the processes of a container, and its shim.
func (e *engine) end(t *testing.T, container string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/freezer/docker", container, "cgroup.procs"))
	if err != nil {
		return // it has ended
	}
	for _, pid := range strings.Fields(string(raw)) {
		var n int
		if _, err := fmt.Sscan(pid, &n); err == nil && n > 1 {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}

func (e *engine) host() string { return "unix://" + filepath.Join(e.dir, "sock") }

// config says whether containers go on when the engine does not.
func (e *engine) config(t *testing.T, liveRestore bool) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, "daemon.json"), fmt.Appendf(nil, `{"live-restore": %t}`, liveRestore), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (e *engine) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", append([]string{"--host", e.host()}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (e *engine) answers(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 60*time.Second, "the engine answers", func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, "docker", "--host", e.host(), "version").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// restart ends the engine by a signal, and starts it again after a while.
func (e *engine) restart(t *testing.T, sig syscall.Signal, away time.Duration) {
	t.Helper()
	e.Signal(sig)
	_ = e.WaitExit(60 * time.Second)
	time.Sleep(away)
	os.Remove(filepath.Join(e.dir, "pid")) // one that was killed leaves it, and its number may be another process's by then
	e.Run()
	e.answers(t)
}

// engines brings a cluster of one client up whose agent has several docker drivers, by their names, each with an engine and with
// or without the reaper of dangling containers.
func engines(t *testing.T, registered map[string]string) *world {
	t.Helper()
	w := &world{Cluster: harness.RunCluster(t, devcluster.Config{Clients: 1, DriverPlugin: "on", Docker: "off"})}
	agent, err := w.Agent("nomad-client-1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.Plan().AgentDir(agent.Name), "config.hcl")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(raw), `"driver.denylist"      = "docker"`, "", 1)
	for name, config := range registered {
		link := filepath.Join(w.Dir(), "bin", "plugins", "retinue-"+name)
		if err := os.Symlink(filepath.Join(w.Dir(), "bin", "retinue-driver"), link); err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("\nplugin %q {\n  args = [\"-as\", %q, %q, \"docker\"]\n  config {\n%s\n  }\n}\n", "retinue-"+name, name, w.Plan().InnerProgram(), config)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := agent.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	return w
}

// onEngine is a job that runs the counter in a container of an engine, with hooks.
func (w *world) onEngine(id, driver string) *nomad.Job {
	task := nomad.NewTask("app", driver).SetConfig("image", engineImage).SetConfig("network_mode", "none")
	task.SetConfig("lifecycle", []map[string]any{{
		"save_state": map[string]any{"http": "GET /retinue/v1/state"},
		"pre_stop":   map[string]any{"exec": []string{"/counter", "note", "pre_stop"}},
	}})
	task.Require(&nomad.Resources{CPU: new(20), MemoryMB: new(64)})
	task.KillTimeout = new(5 * time.Second)
	group := nomad.NewTaskGroup("g", 1)
	group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: new(150)}
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: new(20), Interval: new(time.Hour), Delay: new(time.Second), Mode: new("fail")}
	group.AddTask(task)
	job := nomad.NewServiceJob(id, id, "global", 50)
	job.Datacenters = []string{"*"}
	return job.AddTaskGroup(group)
}

// reaper is the part of a docker driver's configuration that removes dangling containers, as soon as Nomad lets it: a minute after
// their creation, and its own start.
func reaper(on bool) string {
	return fmt.Sprintf("gc {\n image = false\n dangling_containers {\n enabled = %t\n period = \"1s\"\n creation_grace = \"1m\"\n }\n }", on)
}

// counters is how many containers of the counter run on the engine.
func (e *engine) counters(t *testing.T) int {
	t.Helper()
	return len(strings.Fields(e.docker(t, "ps", "-q", "--filter", "ancestor="+engineImage)))
}

// A Docker engine that is restarted, in order or by SIGKILL. With live-restore the container goes on, and so does the task, with
// its hooks: Nomad's docker driver takes it for ended when its connection breaks. Without, the restart policy starts it again when
// the engine is back: a start that finds no engine is an error for good to Nomad's docker driver.
func TestEngineRestarts(t *testing.T) {
	harness.Need(t, harness.Root, harness.Docker, plugin(t))
	t.Parallel()
	e := startEngine(t)
	w := engines(t, map[string]string{"docker": fmt.Sprintf("endpoint = %q\n%s", e.host(), reaper(false))})
	for _, c := range []struct {
		name        string
		liveRestore bool
		sig         syscall.Signal
	}{
		{"SIGTERM", false, syscall.SIGTERM},
		{"SIGKILL", false, syscall.SIGKILL},
		{"live-restore-SIGTERM", true, syscall.SIGTERM},
		{"live-restore-SIGKILL", true, syscall.SIGKILL},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.config(t, c.liveRestore)
			e.Signal(syscall.SIGHUP) // it reads its configuration
			// Two tasks: what one needs of the driver must not be the other's end.
			var both []*alloc
			for _, n := range []string{"1", "2"} {
				a := w.run(t, w.onEngine("engine-"+strings.ToLower(c.name)+"-"+n, devcluster.DriverDocker))
				a.ask(t, "POST", "/inc")
				both = append(both, a)
			}
			before := w.pluginProcess(t, "client-1", "retinue-driver", devcluster.DriverDocker)
			e.restart(t, c.sig, 3*time.Second) // the restart policy tries in between
			starts, restarts := 2, uint64(1)
			if c.liveRestore {
				starts, restarts = 1, 0
			}
			if c.liveRestore {
				harness.Eventually(t, 60*time.Second, "the driver is started anew", func(context.Context) error {
					if now := w.pluginProcess(t, "client-1", "retinue-driver", devcluster.DriverDocker); now == 0 || now == before {
						return fmt.Errorf("it is %d, before %d", now, before)
					}
					return nil
				})
			}
			for _, a := range both {
				harness.Eventually(t, 90*time.Second, "the task runs", func(context.Context) error {
					s := a.info(t).TaskStates["app"]
					if n := strings.Count(a.history(t), "started"); s.State != "running" || n != starts || s.Restarts < restarts {
						return fmt.Errorf("it is %s, has started %d times, and was restarted %d times:\n%s", s.State, n, s.Restarts, a.events(t))
					}
					return nil
				})
				a.recovered(t)
				want := "1" // a new process: its group has no disk that moves, and a crash saves nothing
				if c.liveRestore {
					want = "2"
				}
				if got := a.ask(t, "POST", "/inc"); got != want {
					t.Errorf("it counts %s, want %s", got, want)
				}
				if n := a.restarts(t); c.liveRestore && n != 0 {
					t.Errorf("%d restarts of a container that has gone on", n)
				}
			}
			if n := e.counters(t); n != len(both) {
				t.Errorf("%d containers run:\n%s", n, e.docker(t, "ps", "-a"))
			}
			for _, a := range both {
				if _, _, err := w.Nomad.Jobs().Deregister(a.info(t).JobID, false, nil); err != nil {
					t.Fatal(err)
				}
				a.stopped(t)
				if h := a.history(t); !strings.Contains(h, "save_state ") || !strings.Contains(h, "exec pre_stop") || !strings.Contains(h, "\nsignal ") {
					t.Errorf("history:\n%s", h)
				}
			}
			if n := e.counters(t); n != 0 {
				t.Errorf("%d containers run after the stop", n)
			}
		})
	}
}

// B1: two docker drivers on one engine remove each other's containers. Under the built-in name an agent has one; under another
// name it has two, and the one with a reaper removes the other's container; where all have none, as the log advises, each keeps
// its own.
func TestTwoDockerDriversOnOneEngine(t *testing.T) {
	harness.Need(t, harness.Root, harness.Docker, plugin(t))
	t.Parallel()
	reaped, kept := startEngine(t), startEngine(t)
	on := func(e *engine, reaps bool) string { return fmt.Sprintf("endpoint = %q\n%s", e.host(), reaper(reaps)) }
	w := engines(t, map[string]string{"docker": on(reaped, true), "victim": on(reaped, false), "third": on(kept, false), "fourth": on(kept, false)})
	allocs := map[string]*alloc{}
	for _, driver := range []string{"docker", "victim", "third", "fourth"} {
		job := w.onEngine("b1-"+driver, driver)
		job.TaskGroups[0].RestartPolicy = &nomad.RestartPolicy{Attempts: new(0), Mode: new("fail")}
		job.TaskGroups[0].ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
		allocs[driver] = w.run(t, job)
	}
	created := time.Now()
	agent, err := w.Agent("nomad-client-1")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(agent.LogFile)
	if err != nil || strings.Count(string(log), "removes these containers as dangling") < 3 {
		t.Errorf("the log does not warn of the three other names (%v)", err)
	}
	harness.Eventually(t, 3*time.Minute, "the container of the other name is removed", func(context.Context) error {
		if s := allocs["victim"].info(t).ClientStatus; s != "failed" {
			return fmt.Errorf("it is %s", s)
		}
		return nil
	})
	if e := allocs["victim"].events(t); !strings.Contains(e, "137") || strings.Contains(e, "pre_stop") {
		t.Errorf("its events:\n%s", e)
	}
	// Those of the others were created before, so a reaper would have removed them too.
	time.Sleep(max(0, time.Until(created.Add(65*time.Second))))
	for _, driver := range []string{"docker", "third", "fourth"} {
		a := allocs[driver]
		if s := a.info(t).TaskStates["app"]; s.State != "running" || s.Restarts != 0 {
			t.Errorf("the task of %s is %s, %d restarts:\n%s", driver, s.State, s.Restarts, a.events(t))
		}
	}
	if n, m := reaped.counters(t), kept.counters(t); n != 1 || m != 2 {
		t.Errorf("%d containers run on the engine with a reaper, %d on the one without", n, m)
	}
}

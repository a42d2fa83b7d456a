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
	"retinue/internal/nomadkit"
	"retinue/tests/drivercluster"
	"retinue/tests/harness"
)

// The conformance list of plugins/README.md: what a driver in the place of a built-in one must not break.

// B2: the tasks of one bridge-mode group may run on different drivers.
func TestMixedGroup(t *testing.T) {
	w := need(t)
	if w.Plan().NetworkMode() != devcluster.NetworkBridge {
		t.Skip("SKIP bridge networking")
	}
	job := w.job("mixed", devcluster.DriverDocker, block())
	other := w.job("mixed", devcluster.DriverExec, nil).TaskGroups[0].Tasks[0]
	other.Name = "beside"
	job.TaskGroups[0].AddTask(other)
	job.TaskGroups[0].Networks = []*nomad.NetworkResource{{Mode: "bridge"}}
	a := w.run(t, job)
	a.ask(t, "POST", "/inc")
	harness.Eventually(t, 60*time.Second, "the task of exec runs", func(context.Context) error {
		if s := a.info(t).TaskStates["beside"]; s == nil || s.State != "running" {
			return fmt.Errorf("it does not: %+v", s)
		}
		return nil
	})
}

// B4: what Nomad refuses by the name of a driver is refused.
func TestRulesByTheNameOfADriver(t *testing.T) {
	w := need(t)
	job := w.job("as-root", devcluster.DriverExec, nil)
	job.TaskGroups[0].Tasks[0].User = "root"
	w.refused(t, job, "running as uid 0 is disallowed", "user")
	if _, err := w.Nomad.Namespaces().Register(&nomad.Namespace{Name: "narrow", Capabilities: &nomad.NamespaceCapabilities{DisabledTaskDrivers: []string{devcluster.DriverRawExec}}}, nil); err != nil {
		t.Fatal(err)
	}
	job = w.job("in-narrow", devcluster.DriverRawExec, nil)
	job.Namespace = new("narrow")
	_, _, err := w.Nomad.Jobs().Register(job, nil)
	if err == nil || !strings.Contains(err.Error(), devcluster.DriverRawExec) {
		t.Errorf("a driver that the namespace forbids: %v", err)
	}
	if _, err := w.Nomad.Namespaces().Delete("narrow", nil); err != nil {
		t.Error(err)
	}
}

// refused registers a job and waits until its task has failed, with one of the words in its events.
func (w *world) refused(t *testing.T, job *nomad.Job, words ...string) {
	t.Helper()
	job.TaskGroups[0].ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	if _, _, err := w.Nomad.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	defer w.Nomad.Jobs().Deregister(*job.ID, true, nil)
	harness.Eventually(t, 60*time.Second, *job.ID+" is refused", func(context.Context) error {
		all := w.allocs(t, *job.ID)
		if len(all) == 0 || all[0].ClientStatus != "failed" {
			return fmt.Errorf("allocations: %+v", all)
		}
		var said []string
		for _, e := range all[0].TaskStates["app"].Events {
			for _, word := range words {
				if strings.Contains(e.DisplayMessage, word) {
					return nil
				}
			}
			said = append(said, e.DisplayMessage)
		}
		return fmt.Errorf("events: %q", said)
	})
}

// B5: the attributes of a node are those of the built-in drivers, and the contract's.
func TestAttributesOfANode(t *testing.T) {
	w := need(t)
	nodes, _, err := w.Nomad.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, stub := range nodes {
		node, _, err := w.Nomad.Nodes().Info(stub.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, driver := range drivers {
			if node.Attributes["driver."+driver] != "1" || node.Attributes["driver."+driver+".lifecycle"] != "1" {
				t.Errorf("%s on %s: %q, lifecycle %q", driver, node.Name, node.Attributes["driver."+driver], node.Attributes["driver."+driver+".lifecycle"])
			}
		}
		if node.Attributes["driver.docker.version"] == "" {
			t.Errorf("%s does not tell the version of docker", node.Name)
		}
	}
}

// B13: a task of exec sees its chroot and its own processes, and not the host's.
func TestExecIsIsolated(t *testing.T) {
	w := need(t)
	a := w.run(t, w.job("isolated", devcluster.DriverExec, nil))
	a.ask(t, "GET", "/count")
	if out := a.exec(t, "/bin/ls", "/"); strings.Contains(out, "root") || !strings.Contains(out, "local") {
		t.Errorf("its root folder has:\n%s", out)
	}
	if out := a.exec(t, "/bin/ls", "/proc"); strings.Contains(out, fmt.Sprintf("\n%d\n", os.Getpid())) {
		t.Error("it sees this test's process")
	}
}

// B18: a process that ends in its pre_stop ends the hook.
func TestProcessEndsInAHook(t *testing.T) {
	w := need(t)
	hooks := map[string]any{"pre_stop": map[string]any{"exec": []string{"/bin/sh", "-c", "kill -9 $(cat $NOMAD_ALLOC_DIR/pid); sleep 3600"}, "timeout": "1h"}}
	a := w.run(t, w.job("ends-in-hook", devcluster.DriverRawExec, hooks))
	a.ask(t, "GET", "/count")
	if _, _, err := w.Nomad.Jobs().Deregister("ends-in-hook", false, nil); err != nil {
		t.Fatal(err)
	}
	a.stopped(t) // the hook alone would take an hour
}

// B19: an agent starts a plugin three times, and keeps one; of crashes none is left.
func TestPluginRunsOnce(t *testing.T) {
	w := need(t)
	harness.Eventually(t, 60*time.Second, "one plugin of each driver for each client", func(context.Context) error {
		all, err := drivercluster.Processes()
		if err != nil {
			return err
		}
		n := map[string]int{}
		for _, p := range all {
			if !strings.HasPrefix(p.Args[0], w.Dir()+"/") {
				continue
			}
			if len(p.Args) == 5 && strings.HasPrefix(p.Program(), "retinue-") {
				n[p.Args[2]+" decorator"]++
			}
			if len(p.Args) == 2 && p.Program() == "retinue-inner" && p.Args[1] != "docker_logger" {
				n[p.Args[1]+" inner"]++
			}
		}
		for _, driver := range drivers {
			if n[driver+" decorator"] != 2 || n[driver+" inner"] != 2 {
				return fmt.Errorf("%v", n)
			}
		}
		return nil
	})
}

// An executor that is killed ends its task; no process of it stays, and the restart policy starts the next one.
func TestExecutorKilled(t *testing.T) {
	w := need(t)
	for _, driver := range []string{devcluster.DriverRawExec, devcluster.DriverExec} {
		t.Run(driver, func(t *testing.T) {
			job := w.job("executor-"+driver, driver, block())
			job.TaskGroups[0].RestartPolicy = &nomad.RestartPolicy{Attempts: new(5), Interval: new(time.Hour), Delay: new(time.Second), Mode: new("fail")}
			a := w.run(t, job)
			a.ask(t, "POST", "/inc")
			first := a.pid(t)
			all, err := drivercluster.Processes()
			if err != nil {
				t.Fatal(err)
			}
			killed := 0
			for _, p := range all {
				if len(p.Args) == 3 && p.Args[1] == "executor" && strings.Contains(p.Args[2], a.id) {
					killed++
					if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
			if killed != 1 {
				t.Fatalf("%d executors", killed)
			}
			harness.Eventually(t, 60*time.Second, "it is started again", func(context.Context) error {
				if n := a.restarts(t); n != 1 {
					return fmt.Errorf("%d restarts", n)
				}
				if s := a.info(t).TaskStates["app"].State; s != "running" {
					return fmt.Errorf("it is %s", s)
				}
				return nil
			})
			if driver == devcluster.DriverRawExec { // its number is the host's
				harness.Eventually(t, 60*time.Second, "the first process is gone", func(context.Context) error {
					all, err := drivercluster.Processes() // a zombie is none
					for _, p := range all {
						if p.PID == first {
							err = fmt.Errorf("it is %q", p.Args)
						}
					}
					return err
				})
			}
			if got := a.ask(t, "POST", "/inc"); got != "1" {
				t.Errorf("it counts %s: another process than the new one answers", got)
			}
		})
	}
}

// pid is the application's process, as it sees it itself.
func (a *alloc) pid(t *testing.T) (pid int) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(a.dir, "alloc", "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(raw), &pid); err != nil || pid <= 0 {
		t.Fatalf("pid %q: %v", raw, err)
	}
	return pid
}

// The stores that outlive a job give its state to the next one.
func TestStoresOutliveTheJob(t *testing.T) {
	w := need(t)
	for _, store := range []string{"consul-kv", "nomad-var", "dir:" + w.Plan().StateDir()} {
		name, _, _ := strings.Cut(store, ":")
		t.Run(name, func(t *testing.T) {
			id := "store-" + name
			job := func() *nomad.Job {
				job := w.job(id, devcluster.DriverRawExec, map[string]any{"save_state": map[string]any{"http": "GET /retinue/v1/state", "store": store}})
				job.TaskGroups[0].Tasks[0].Identity = &nomad.WorkloadIdentity{Env: true, File: true}
				return job
			}
			a := w.run(t, job())
			for range 3 {
				a.ask(t, "POST", "/inc")
			}
			if _, _, err := w.Nomad.Jobs().Deregister(id, false, nil); err != nil {
				t.Fatal(err)
			}
			a.stopped(t)
			if _, _, err := w.Nomad.Jobs().Deregister(id, true, nil); err != nil { // the next job is another one to Nomad
				t.Fatal(err)
			}
			b := w.run(t, job())
			if b.id == a.id {
				t.Fatal("it is the same allocation")
			}
			if got := b.ask(t, "GET", "/count"); got != "3" {
				t.Errorf("the count is %s, 3 before", got)
			}
		})
	}
}

// What was saved from time to time is there after an end that no hook saw.
func TestPeriodicSaveOutlivesACrash(t *testing.T) {
	w := need(t)
	job := w.job("every", devcluster.DriverRawExec, map[string]any{"save_state": map[string]any{"http": "GET /retinue/v1/state", "store": "consul-kv", "every": "1s"}})
	job.TaskGroups[0].RestartPolicy = &nomad.RestartPolicy{Attempts: new(1), Interval: new(time.Hour), Delay: new(time.Second), Mode: new("fail")}
	a := w.run(t, job)
	for range 5 {
		a.ask(t, "POST", "/inc")
	}
	harness.Eventually(t, 60*time.Second, "it is saved", func(context.Context) error {
		if h := a.history(t); !strings.Contains(h, "save_state 5") {
			return fmt.Errorf("history:\n%s", h)
		}
		pair, _, err := w.Consul.KV().Get("retinue/state/default/every/g/app/0", nil)
		if err == nil && (pair == nil || !strings.HasSuffix(string(pair.Value), "\n5")) {
			err = fmt.Errorf("Consul has %+v", pair)
		}
		return err
	})
	if err := syscall.Kill(a.pid(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 60*time.Second, "it is restored", func(context.Context) error {
		if h := a.history(t); !strings.Contains(h, "restored 5") {
			return fmt.Errorf("history:\n%s", h)
		}
		return nil
	})
}

// A preempted task goes through the hooks of a stop, and a shared store gives its state to the allocation that takes its place.
func TestPreemptedStateMovesByASharedStore(t *testing.T) {
	w := need(t)
	was, _, err := w.Nomad.Operator().SchedulerGetConfiguration(nil)
	if err != nil {
		t.Fatal(err)
	}
	with := *was.SchedulerConfig
	with.PreemptionConfig.ServiceSchedulerEnabled = true
	if _, _, err := w.Nomad.Operator().SchedulerSetConfiguration(&with, nil); err != nil {
		t.Fatal(err)
	}
	defer w.Nomad.Operator().SchedulerSetConfiguration(was.SchedulerConfig, nil)
	hooks := block()
	hooks["save_state"].(map[string]any)["store"] = "consul-kv"
	job := w.job("preempted", devcluster.DriverRawExec, hooks)
	a := w.run(t, job)
	for range 4 {
		a.ask(t, "POST", "/inc")
	}
	node, _, err := w.Nomad.Nodes().Info(a.nodeID, nil)
	if err != nil {
		t.Fatal(err)
	}
	important := w.job("important", devcluster.DriverRawExec, nil)
	important.Priority = new(80)
	important.TaskGroups[0].Tasks[0].Resources.CPU = new(int(node.NodeResources.Cpu.CpuShares) - 10)
	w.run(t, important.Constrain(nomad.NewConstraint("${node.unique.id}", "=", a.nodeID)))
	b := w.next(t, "preempted", a.id)
	if h := a.history(t); !strings.Contains(h, "save_state 4") || !strings.Contains(h, "exec pre_stop") {
		t.Errorf("history of the preempted:\n%s", h)
	}
	if b.node == a.node {
		t.Errorf("it runs on %s again", b.node)
	}
	// Nomad may start it before the other one has saved: it then begins with what was saved before, which is nothing here.
	t.Logf("the count of the next one is %s", b.ask(t, "GET", "/count"))
	pair, _, err := w.Consul.KV().Get("retinue/state/default/preempted/g/app/0", nil)
	if err != nil || pair == nil || !strings.HasSuffix(string(pair.Value), "\n4") {
		t.Errorf("the store has %+v, %v", pair, err)
	}
}

// A task replicates itself, and not beyond its limit.
func TestReplicate(t *testing.T) {
	w := need(t)
	job := w.job("replicates", devcluster.DriverRawExec, map[string]any{"max_replicas": 2})
	job.TaskGroups[0].Tasks[0].Identity = &nomad.WorkloadIdentity{File: true}
	a := w.run(t, job)
	more := func() (int, string) {
		t.Helper()
		var out, errs strings.Builder
		code, err := nomadkit.AskDriver(t.Context(), w.Nomad, a.info(t), "app", []string{"@retinue", "POST", "/v1/replicate", `{"add": 1}`}, &out, &errs)
		if err != nil {
			t.Fatal(err)
		}
		return code, out.String() + errs.String()
	}
	harness.Eventually(t, 60*time.Second, "it replicates itself", func(context.Context) error { // Nomad refuses while it deploys
		if code, said := more(); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, said)
		}
		return nil
	})
	w.next(t, "replicates", a.id)
	if code, said := more(); code != 1 || !strings.Contains(said, "max_replicas") {
		t.Errorf("beyond the limit: exit code %d, %s", code, said)
	}
}

// The fragment of `retinue inject lifecycle` gives a job of one's own a lifecycle.
func TestInjectedLifecycle(t *testing.T) {
	w := need(t)
	spec := filepath.Join(harness.Dir(t, "inject"), "plain.nomad.hcl")
	text := fmt.Sprintf(`job "injected" {
  group "g" {
    task "app" {
      driver = "raw_exec"
      config {
        command = %q
        args    = ["pause"]
      }
    }
  }
}
`, harness.RetinueBinary(t))
	if err := os.WriteFile(spec, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(harness.RetinueBinary(t), "inject", "lifecycle", "--task", "app", spec).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(spec, out, 0o644); err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{"retinue_lifecycle_pre_stop": fmt.Sprintf("[%q, %q]", harness.RetinueBinary(t), "version")}
	job := w.RunSpec(t, spec, "injected", 1, vars)
	a := &alloc{w: w, id: job.Allocs()[0].ID}
	if out := a.exec(t, "@retinue", "GET", "/v1/task"); !strings.Contains(out, "pre_stop") {
		t.Errorf("its lifecycle:\n%s", out)
	}
	if _, _, err := w.Nomad.Jobs().Deregister("injected", false, nil); err != nil {
		t.Fatal(err)
	}
	a.stopped(t)
	if e := a.events(t); !strings.Contains(e, "pre_stop") {
		t.Errorf("events:\n%s", e)
	}
}

// `retinue task profile` of a JVM is its own thread dump.
func TestThreadDumpOfAJVM(t *testing.T) {
	w := need(t)
	harness.Need(t, harness.NewFeature("java", false, func() error { _, err := exec.LookPath("java"); return err }))
	job := w.job("jvm", devcluster.DriverRawExec, nil)
	task := job.TaskGroups[0].Tasks[0]
	task.Artifacts = nil
	java, err := exec.LookPath("java")
	if err != nil {
		t.Fatal(err)
	}
	task.SetConfig("command", java).SetConfig("args", []string{"-Xmx32m", "-m", "java.rmi/sun.rmi.registry.RegistryImpl", "${NOMAD_PORT_rmi}"})
	task.Require(&nomad.Resources{CPU: new(20), MemoryMB: new(256)})
	job.TaskGroups[0].Networks = []*nomad.NetworkResource{{Mode: "host", DynamicPorts: []nomad.Port{{Label: "rmi"}}}}
	a := w.run(t, job)
	harness.Eventually(t, 60*time.Second, "it dumps its threads", func(context.Context) error {
		cmd := exec.Command(harness.RetinueBinary(t), "task", "profile", a.id[:8], "--kind", "threads")
		cmd.Env = w.EnvList()
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "thread dump of the JVM") || !strings.Contains(string(out), "java.lang.Thread.State") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// Who may not run commands in a task may not ask its driver either. With raw_exec that needs alloc-node-exec besides.
func TestRightsOfTheManagementAPI(t *testing.T) {
	harness.Need(t, harness.Root, plugin(t))
	t.Parallel()
	w := &world{Cluster: harness.RunCluster(t, devcluster.Config{Clients: 1, DriverPlugin: "on", ACL: true, Docker: "off"})}
	w.app = serveApp(t)
	a := w.run(t, w.job("guarded", devcluster.DriverRawExec, block()))
	ask := func(policy string) (string, error) {
		t.Helper()
		name := "p" + fmt.Sprint(len(policy))
		if _, err := w.Nomad.ACLPolicies().Upsert(&nomad.ACLPolicy{Name: name, Rules: policy}, nil); err != nil {
			t.Fatal(err)
		}
		token, _, err := w.Nomad.ACLTokens().Create(&nomad.ACLToken{Name: name, Type: "client", Policies: []string{name}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		client, err := w.NomadAt(w.NomadAddr())
		if err != nil {
			t.Fatal(err)
		}
		client.SetSecretID(token.SecretID)
		var out, errs strings.Builder
		_, err = nomadkit.AskDriver(t.Context(), client, a.info(t), "app", []string{"@retinue", "GET", "/v1/task"}, &out, &errs)
		return out.String() + errs.String(), err
	}
	if out, err := ask(`namespace "default" { capabilities = ["read-job", "list-jobs", "alloc-lifecycle"] }`); err == nil || !strings.Contains(err.Error(), "Permission denied") || strings.Contains(out, "phase") {
		t.Errorf("without alloc-exec: %q, %v", out, err)
	}
	if out, err := ask(`namespace "default" { capabilities = ["read-job", "alloc-exec", "alloc-node-exec"] }`); err != nil || !strings.Contains(out, "running") {
		t.Errorf("with alloc-exec: %q, %v", out, err)
	}
}

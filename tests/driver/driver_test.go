package driver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// plugin is the task-driver plugin as a feature: `make plugin` builds it, and `make e2e` does that first.
func plugin(t *testing.T) harness.Feature {
	return harness.NewFeature("driver plugin", true, func() error {
		if bin := harness.RetinueBinary(t); !devcluster.DriverPluginBeside(bin) {
			return fmt.Errorf("not beside %s: run `make plugin`, and set RETINUE_BIN to bin/retinue", bin)
		}
		return nil
	})
}

// world is a cluster of two clients whose drivers are decorated, and where their tasks
// fetch the application from.
type world struct {
	*harness.Cluster
	app string // URL
}

var shared = harness.Share(func(t harness.T) *world {
	w := &world{Cluster: harness.RunCluster(t, devcluster.Config{Clients: 2, DriverPlugin: "on"})}
	w.app = serveApp(t)
	return w
})

// need returns the world, or skips where it cannot be.
func need(t *testing.T) *world {
	t.Helper()
	harness.Need(t, harness.Root, harness.Docker, plugin(t))
	return shared.Get(t)
}

// serveApp builds the counter and serves it, for artifact blocks: as an archive,
// which keeps the mode of a program.
func serveApp(t harness.T) string {
	t.Helper()
	dir := filepath.Dir(counterProgram.Get(t))
	if out, err := exec.Command("tar", "-C", dir, "-czf", filepath.Join(dir, "counter.tar.gz"), "counter").CombinedOutput(); err != nil {
		t.Fatalf("pack the counter: %v\n%s", err, out)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return server.URL + "/counter.tar.gz"
}

// counterProgram is the path of the test application, built once.
var counterProgram = harness.Share(func(t harness.T) string {
	bin := filepath.Join(harness.Dir(t, "counter"), "counter")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./counter")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the counter: %v\n%s", err, out)
	}
	return bin
})

var drivers = []string{devcluster.DriverRawExec, devcluster.DriverExec, devcluster.DriverDocker}

// block is the lifecycle block of the test application.
func block() map[string]any {
	return map[string]any{
		"post_start": map[string]any{"exec": []string{"/local/counter", "note", "post_start"}},
		"ready":      map[string]any{"http": "GET /retinue/v1/ready"},
		"pre_drain":  map[string]any{"http": "POST /retinue/v1/pre-drain"},
		"drain":      map[string]any{"http": "GET /retinue/v1/inflight", "timeout": "60s"},
		"save_state": map[string]any{"http": "GET /retinue/v1/state"},
		"pre_stop":   map[string]any{"exec": []string{"/local/counter", "note", "pre_stop"}},
		"pause":      map[string]any{"http": "POST /retinue/v1/pause"},
		"resume":     map[string]any{"http": "POST /retinue/v1/resume"},
	}
}

// job is a job of one task that runs the counter.
func (w *world) job(id, driver string, lifecycle map[string]any) *nomad.Job {
	command := "/local/counter"
	if driver == devcluster.DriverRawExec { // sees the host's files
		command = "${NOMAD_TASK_DIR}/counter"
		for _, hook := range lifecycle {
			if h, ok := hook.(map[string]any); ok && h["exec"] != nil {
				argv := slices.Clone(h["exec"].([]string))
				argv[0] = strings.Replace(argv[0], "/local/counter", command, 1)
				h["exec"] = argv
			}
		}
	}
	task := nomad.NewTask("app", driver).SetConfig("command", command)
	if driver == devcluster.DriverDocker {
		task.SetConfig("image", devcluster.Image()).SetConfig("entrypoint", []string{})
	}
	if lifecycle != nil {
		task.SetConfig("lifecycle", []map[string]any{lifecycle})
	}
	task.Artifacts = []*nomad.TaskArtifact{{GetterSource: new(w.app), RelativeDest: new("local/")}}
	task.Require(&nomad.Resources{CPU: new(20), MemoryMB: new(64)})
	task.KillTimeout = new(5 * time.Second)
	group := nomad.NewTaskGroup("g", 1)
	group.EphemeralDisk = &nomad.EphemeralDisk{Sticky: new(true), Migrate: new(true), SizeMB: new(150)}
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: new(0), Mode: new("fail")}
	group.AddTask(task)
	job := nomad.NewServiceJob(id, id, "global", 50)
	job.Datacenters = []string{"*"}
	return job.AddTaskGroup(group)
}

// run registers a job and waits until its allocation runs.
func (w *world) run(t *testing.T, job *nomad.Job) *alloc {
	t.Helper()
	if _, _, err := w.Nomad.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.Command(t, harness.NomadBinary(t), "job", "status", "-all-allocs", *job.ID))
			for _, stub := range w.allocs(t, *job.ID) {
				t.Log(w.Command(t, harness.NomadBinary(t), "alloc", "status", stub.ID))
			}
		}
		if _, _, err := w.Nomad.Jobs().Deregister(*job.ID, true, nil); err != nil {
			t.Error(err)
		}
	})
	return w.next(t, *job.ID, "")
}

func (w *world) allocs(t *testing.T, job string) []*nomad.AllocationListStub {
	stubs, _, err := w.Nomad.Jobs().Allocations(job, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	return stubs
}

// next waits until an allocation of the job runs that is not the given one.
func (w *world) next(t *testing.T, job, not string) *alloc {
	t.Helper()
	var found *alloc
	harness.Eventually(t, 90*time.Second, job+" runs", func(context.Context) error {
		for _, stub := range w.allocs(t, job) {
			if stub.ID == not || stub.ClientStatus != "running" || stub.TaskStates["app"] == nil || stub.TaskStates["app"].State != "running" {
				continue
			}
			found = w.alloc(t, stub)
			return nil
		}
		return errors.New("not yet")
	})
	return found
}

// find returns the allocation of a job, in whatever state it is; nil when there is none yet.
func (w *world) find(t *testing.T, job string) *alloc {
	t.Helper()
	for _, stub := range w.allocs(t, job) {
		return w.alloc(t, stub)
	}
	return nil
}

func (w *world) alloc(t *testing.T, stub *nomad.AllocationListStub) *alloc {
	t.Helper()
	for _, node := range w.Plan().Nodes {
		if node.Name == stub.NodeName {
			return &alloc{w: w, id: stub.ID, node: stub.NodeName, nodeID: stub.NodeID, dir: filepath.Join(w.Plan().AllocDir(node), stub.ID)}
		}
	}
	t.Fatalf("no node %s in the plan of the cluster", stub.NodeName)
	return nil
}

// alloc is an allocation of the counter.
type alloc struct {
	w                     *world
	id, node, nodeID, dir string
}

// ask makes a request to the application on its socket.
func (a *alloc) ask(t *testing.T, method, path string) string {
	t.Helper()
	return a.askSocket(t, "retinue-app.sock", method, path)
}

// askSocket makes a request on one of the sockets of the allocation.
func (a *alloc) askSocket(t *testing.T, name, method, path string) string {
	t.Helper()
	sock := filepath.Join(a.dir, "alloc", "tmp", name)
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}}}
	var body []byte
	harness.Eventually(t, 60*time.Second, method+" "+path, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, method, "http://app"+path, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	})
	return string(body)
}

// history is what the application and its hooks wrote.
func (a *alloc) history(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(a.dir, "alloc", "history"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// inOrder is a history with the start of the application first: post_start runs when there is a process, which may not have come to
// the writing of its first line by then.
func inOrder(history string) string {
	var rest []string
	for line := range strings.SplitSeq(history, "\n") {
		if line != "started" {
			rest = append(rest, line)
		}
	}
	if strings.Count("\n"+history+"\n", "\nstarted\n") != 1 {
		return history
	}
	return "started\n" + strings.Join(rest, "\n")
}

// program is the path of the counter, as the task sees it.
func (a *alloc) program(driver string) string {
	if driver == devcluster.DriverRawExec {
		return filepath.Join(a.dir, "app", "local", "counter")
	}
	return "/local/counter"
}

// exec is `nomad alloc exec`.
func (a *alloc) exec(t *testing.T, args ...string) string {
	t.Helper()
	return a.w.Command(t, harness.NomadBinary(t), append([]string{"alloc", "exec", "-t=false", "-i=false", "-task", "app", a.id}, args...)...)
}

func (a *alloc) info(t *testing.T) *nomad.Allocation {
	t.Helper()
	info, _, err := a.w.Nomad.Allocations().Info(a.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// events are the messages of the task's events.
func (a *alloc) events(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, e := range a.info(t).TaskStates["app"].Events {
		fmt.Fprintf(&b, "%s: %s\n", e.Type, e.DisplayMessage)
	}
	return b.String()
}

// stopped waits until the allocation has ended on its client.
func (a *alloc) stopped(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 90*time.Second, "the allocation ends", func(context.Context) error {
		if s := a.info(t).ClientStatus; s != "complete" {
			return fmt.Errorf("it is %s", s)
		}
		return nil
	})
}

// restarts is how often the task was started anew.
func (a *alloc) restarts(t *testing.T) uint64 {
	t.Helper()
	return a.info(t).TaskStates["app"].Restarts
}

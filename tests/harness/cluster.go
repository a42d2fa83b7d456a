package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
)

// Cluster is a dev cluster of the project that belongs to a test.
type Cluster struct {
	*devcluster.Cluster
	Nomad  *nomadapi.Client
	Consul *consulapi.Client

	t T
}

// RunCluster brings a dev cluster up, on ports and addresses of its own.
func RunCluster(t T, config devcluster.Config) *Cluster {
	t.Helper()
	config.Dir = filepath.Join(Dir(t, "dev"), "c") // short: Unix sockets lie deep below it
	config.PortOffset = devcluster.AutoPorts
	config.DriverPlugin = cmp.Or(config.DriverPlugin, "off") // of those tests alone that are about it
	config.NomadBin, config.ConsulBin, config.RetinueBin = NomadBinary(t), ConsulBinary(t), RetinueBinary(t)
	var steps []string
	up, err := devcluster.Up(context.Background(), config, func(s devcluster.Step) {
		steps = append(steps, fmt.Sprintf("%6.1fs %s", s.After.Seconds(), s.Text))
	})
	if err != nil {
		t.Fatalf("dev cluster: %v\n%s", err, strings.Join(steps, "\n"))
	}
	t.Cleanup(func() {
		if err := up.Down(context.Background(), nil); err != nil {
			t.Errorf("take the dev cluster down: %v", err)
		}
	})
	c := &Cluster{Cluster: up, t: t}
	for _, agent := range up.Agents() {
		attachLog(t, func() string {
			return fmt.Sprintf("--- last 12 lines of %s ---\n%s", agent.Name, Tail(agent.LogFile, 12))
		})
	}
	if c.Nomad, err = up.Nomad(); err != nil {
		t.Fatalf("%v", err)
	}
	if c.Consul, err = up.Consul(); err != nil {
		t.Fatalf("%v", err)
	}
	return c
}

// sweepClusters takes down the dev clusters of a run that is gone.
func sweepClusters(dir string) {
	folders, _ := filepath.Glob(filepath.Join(dir, "dev*", "c"))
	for _, folder := range folders {
		_ = devcluster.Down(context.Background(), folder, nil)
	}
}

// EnvList is the environment of `eval $(retinue dev env)`, over the test's own.
func (c *Cluster) EnvList() []string {
	env := os.Environ()
	for _, v := range c.Env() {
		env = append(env, v.Name+"="+v.Value)
	}
	return env
}

// Command runs a program in the cluster's environment and returns its output.
func (c *Cluster) Command(t T, path string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = c.EnvList()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Action runs an action of a job and returns what it prints. It is run again while that is nothing: Nomad may lose the output of a command
// that ends at once.
func (c *Cluster) Action(t T, job string, args ...string) (out string) {
	t.Helper()
	Eventually(t, 30*time.Second, "an action of "+job+" prints something", func(context.Context) error {
		if out = c.Command(t, NomadBinary(t), append([]string{"job", "action", "-job", job}, args...)...); strings.TrimSpace(out) == "" {
			return errors.New("no output")
		}
		return nil
	})
	return out
}

// Job is a job that runs on a cluster.
type Job struct {
	ID string

	c *Cluster
	t T
}

// Alloc is an allocation that has run for a test, with the ways into it.
type Alloc struct {
	*nomadapi.AllocationListStub
	// App is the address of the application's port "http".
	App string
	// Elector talks to the elector through its socket in the allocation folder.
	Elector *ElectorClient

	c *Cluster
}

// Log is what a task has written so far.
func (a *Alloc) Log(t T, task string) string {
	t.Helper()
	files, err := filepath.Glob(a.c.allocPath(a.AllocationListStub, "alloc", "logs", task+".std*.*"))
	if err != nil {
		t.Fatalf("%v", err)
	}
	var all strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("%v", err)
		}
		all.Write(data)
	}
	return all.String()
}

// RunJob does `nomad job run` of a pattern's jobspec in the cluster's
// environment, waits until count allocations run, and purges the job in the end.
func (c *Cluster) RunJob(t T, pattern, id string, count int, vars map[string]string) *Job {
	t.Helper()
	counted := map[string]string{"count": fmt.Sprint(count)}
	for name, value := range vars {
		counted[name] = value
	}
	return c.RunAllocs(t, pattern, id, count, counted)
}

// RunAllocs is RunJob for a jobspec whose number of allocations follows from other variables than count.
func (c *Cluster) RunAllocs(t T, pattern, id string, count int, vars map[string]string) *Job {
	t.Helper()
	named := map[string]string{"job_name": id}
	for name, value := range vars {
		named[name] = value
	}
	return c.RunSpec(t, filepath.Join(RepoRoot(t), "jobspecs", pattern, pattern+".nomad.hcl"), id, count, named)
}

// RunSpec is RunAllocs for any file with a jobspec, whose job has that ID.
func (c *Cluster) RunSpec(t T, spec, id string, count int, vars map[string]string) *Job {
	t.Helper()
	args := []string{"job", "run", "-detach"}
	for name, value := range vars {
		args = append(args, "-var", name+"="+value)
	}
	c.Command(t, NomadBinary(t), append(args, spec)...)
	j := &Job{ID: id, c: c, t: t}
	t.Cleanup(func() {
		if err := c.purge(id); err != nil {
			t.Errorf("purge job %s: %v", id, err)
		}
	})
	attachLog(t, j.state) // after the purge, so that it is called before
	Eventually(t, 90*time.Second, fmt.Sprintf("%d allocations of %s run", count, id), func(context.Context) error {
		allocs, err := j.running()
		if err == nil && len(allocs) != count {
			err = fmt.Errorf("%d run", len(allocs))
		}
		return err
	})
	return j
}

// purge stops a job and removes it. A job that is removed while a plan for it is on its way ends the server with a panic (Nomad 1.11.3;
// hashicorp/nomad#27739 repairs it), so the plan that stops it comes first: Nomad makes one after the other for a job.
func (c *Cluster) purge(id string) error {
	eval, _, err := c.Nomad.Jobs().Deregister(id, false, nil)
	if err != nil {
		return err
	}
	for last := time.Now().Add(10 * time.Second); eval != "" && time.Now().Before(last); time.Sleep(20 * time.Millisecond) {
		info, _, err := c.Nomad.Evaluations().Info(eval, nil)
		if err != nil || info.Status != nomadapi.EvalStatusPending {
			break
		}
	}
	_, _, err = c.Nomad.Jobs().Deregister(id, true, nil)
	return err
}

// running lists the allocations whose tasks all run.
func (j *Job) running() ([]*nomadapi.AllocationListStub, error) {
	stubs, _, err := j.c.Nomad.Jobs().Allocations(j.ID, false, nil)
	if err != nil {
		return nil, err
	}
	var up []*nomadapi.AllocationListStub
	for _, stub := range stubs {
		ready := stub.ClientStatus == nomadapi.AllocClientStatusRunning && len(stub.TaskStates) > 0
		for _, task := range stub.TaskStates {
			ready = ready && task.State == "running"
		}
		if ready {
			up = append(up, stub)
		}
	}
	sort.Slice(up, func(a, b int) bool { return up[a].ID < up[b].ID })
	return up, nil
}

// Allocs returns the running allocations, in a fixed order.
func (j *Job) Allocs() []*Alloc {
	j.t.Helper()
	stubs, err := j.running()
	if err != nil {
		j.t.Fatalf("%v", err)
	}
	var out []*Alloc
	for _, stub := range stubs {
		info, _, err := j.c.Nomad.Allocations().Info(stub.ID, nil)
		if err != nil {
			j.t.Fatalf("%v", err)
		}
		a := &Alloc{AllocationListStub: stub, c: j.c}
		for _, port := range info.AllocatedResources.Shared.Ports {
			if port.Label == "http" {
				a.App = fmt.Sprintf("%s:%d", port.HostIP, port.Value)
			}
		}
		a.Elector = NewElectorClient("unix://" + j.c.allocPath(stub, "alloc", "tmp", "elector.sock"))
		out = append(out, a)
	}
	return out
}

// allocPath is a file of an allocation, as the machine sees it.
func (c *Cluster) allocPath(stub *nomadapi.AllocationListStub, parts ...string) string {
	c.t.Helper()
	plan := c.Plan()
	for _, node := range plan.Nodes {
		if node.Name == stub.NodeName {
			return filepath.Join(append([]string{plan.AllocDir(node), stub.ID}, parts...)...)
		}
	}
	c.t.Fatalf("no node %s in the plan of the cluster", stub.NodeName)
	return ""
}

// Kill sends SIGKILL to a task, as a crash would end it: Nomad restarts it.
func (j *Job) Kill(a *Alloc, task string) {
	j.t.Helper()
	j.Signal(a, task, syscall.SIGKILL)
}

// Signal sends a signal to a task.
func (j *Job) Signal(a *Alloc, task string, sig syscall.Signal) {
	j.t.Helper()
	names := map[syscall.Signal]string{syscall.SIGKILL: "SIGKILL", syscall.SIGSTOP: "SIGSTOP", syscall.SIGCONT: "SIGCONT", syscall.SIGTERM: "SIGTERM"}
	err := j.c.Nomad.Allocations().Signal(&nomadapi.Allocation{ID: a.ID}, nil, task, names[sig])
	if err != nil && !(sig == syscall.SIGKILL && strings.Contains(err.Error(), "error reading from server: EOF")) { // the executor has ended with the task before it could answer
		j.t.Fatalf("%s to %s of %s: %v", names[sig], task, a.ID[:8], err)
	}
}

// state says what became of the job's tasks, for the output of a failed test.
func (j *Job) state() string {
	var b strings.Builder
	fmt.Fprintf(&b, "--- job %s ---\n", j.ID)
	stubs, _, err := j.c.Nomad.Jobs().Allocations(j.ID, false, nil)
	if err != nil {
		return b.String() + err.Error()
	}
	for _, stub := range stubs {
		fmt.Fprintf(&b, "%s on %s: %s\n", stub.ID[:8], stub.NodeName, stub.ClientStatus)
		for name, task := range stub.TaskStates {
			for _, e := range task.Events {
				fmt.Fprintf(&b, "  %s: %s: %s\n", name, e.Type, e.DisplayMessage)
			}
			for _, stream := range []string{"stdout", "stderr"} {
				log := j.c.allocPath(stub, "alloc", "logs", name+"."+stream+".0")
				if text := Tail(log, 15); text != "" {
					fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(text, "\n", "\n  "))
				}
			}
		}
	}
	return b.String()
}

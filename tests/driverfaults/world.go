package main

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
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/internal/lifecycle/manage"
	"retinue/internal/nomadkit"
	"retinue/tests/drivercluster"
)

// The clients. Salvos hit the first, the drains move tasks between both.
const (
	target = "client-1"
	other  = "client-2"
)

const taskName = "app"

// settings are one campaign.
type settings struct {
	Seed    uint64
	Salvos  int
	Drains  int
	Drivers []string      // nil: all that there are
	Points  []point       // nil: all
	Faults  []Fault       // in turn; nil: all
	Limit   time.Duration // no salvo and no drain begins after that
	Dir     string        // new, short, removed by the caller

	Retinue string // program, with the plugin beside it
	Nomad   string // programs; "": found
	Consul  string
	Subject string // program
	Log     func(format string, args ...any)
}

// world is a campaign: the cluster, and the processes of the plugin on the client that is hit.
type world struct {
	settings
	cluster *drivercluster.Cluster
	drivers []string
	plugins map[string][2]int // of the target: decorator and inner process of a driver
	dead    map[int]bool      // those that were killed: the kernel may show them for a while
}

// up brings the cluster up. The subject is a file of every exec task's chroot.
func up(ctx context.Context, s settings) (*world, error) {
	w := &world{settings: s, plugins: map[string][2]int{}, dead: map[int]bool{}}
	if w.Points == nil {
		w.Points = points
	}
	if w.Faults == nil {
		w.Faults = faults()
	}
	var err error
	config := devcluster.Config{Dir: filepath.Join(s.Dir, "c"), Clients: 2, RetinueBin: s.Retinue, NomadBin: s.Nomad, ConsulBin: s.Consul}
	if w.cluster, err = drivercluster.Up(ctx, config, s.Log); err != nil {
		return nil, err
	}
	if w.drivers = s.Drivers; w.drivers == nil {
		w.drivers = w.cluster.Drivers()
	}
	for _, client := range []string{target, other} {
		file := filepath.Join(w.cluster.Plan().AgentDir("nomad-"+client), "config.hcl")
		text, err := os.ReadFile(file)
		if err == nil {
			const chroot = "  chroot_env = {\n"
			text := strings.Replace(string(text), chroot, chroot+fmt.Sprintf("    %q = %q\n", s.Subject, inChroot), 1)
			err = os.WriteFile(file, []byte(text), 0o600)
		}
		if err != nil {
			return nil, errors.Join(err, w.cluster.Close())
		}
	}
	if err := w.cluster.Dress(ctx, map[string]bool{target: true, other: true}); err != nil {
		return nil, errors.Join(err, w.cluster.Close())
	}
	return w, w.learn(ctx)
}

const inChroot = "/usr/local/bin/subject"

// job is a job of one subject. Its restart policy tries for as long as a salvo lasts.
func (w *world) job(id, driver string, p point) *nomad.Job {
	task := nomad.NewTask(taskName, driver)
	switch driver {
	case devcluster.DriverRawExec:
		task.SetConfig("command", w.Subject)
	case devcluster.DriverExec:
		task.SetConfig("command", inChroot)
	case devcluster.DriverDocker:
		task.SetConfig("image", w.cluster.JobVars()["retinue_image"]).SetConfig("entrypoint", []string{}).SetConfig("command", inChroot)
		task.SetConfig("volumes", []string{w.Subject + ":" + inChroot}).SetConfig("network_mode", "host")
	}
	block := map[string]any{"ready": map[string]any{"http": "GET /hook/ready", "timeout": "60s"}}
	for _, hook := range []string{"post_start", "pause", "resume", "pre_drain", "drain", "save_state", "pre_stop"} {
		block[hook] = map[string]any{"http": "GET /hook/" + hook, "timeout": "60s"}
	}
	if p.name == "restoring" {
		block["save_state"].(map[string]any)["store"] = "consul-kv"
		block["restore_state"] = map[string]any{"timeout": "60s"}
	}
	task.SetConfig("lifecycle", []map[string]any{block})
	task.Env = map[string]string{"SUBJECT_HOLD": p.hold}
	task.Require(&nomad.Resources{CPU: new(20), MemoryMB: new(32)})
	task.KillTimeout, task.KillSignal = new(20*time.Second), "SIGTERM"
	group := nomad.NewTaskGroup("g", 1)
	group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: new(110)}
	group.RestartPolicy = &nomad.RestartPolicy{Attempts: new(100), Interval: new(time.Hour), Delay: new(500 * time.Millisecond), Mode: new("fail")}
	group.ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	group.AddTask(task)
	job := nomad.NewServiceJob(id, id, "global", 50)
	job.Datacenters = []string{"*"}
	return job.AddTaskGroup(group).Constrain(nomad.NewConstraint("${node.unique.name}", "=", target))
}

// alloc is the only allocation of a job.
func (w *world) alloc(id string) (*nomad.AllocationListStub, error) {
	all, _, err := w.cluster.Nomad.Jobs().Allocations(id, true, nil)
	if err != nil {
		return nil, err
	}
	if len(all) != 1 {
		return nil, fmt.Errorf("%s has %d allocations", id, len(all))
	}
	return all[0], nil
}

// phase is what the driver has written down of a task; "" when there is nothing yet.
func phase(allocDir string) string {
	for _, name := range []string{"app/private/retinue-lifecycle.json", "app/retinue-lifecycle.json"} {
		data, err := os.ReadFile(filepath.Join(allocDir, name))
		var saved struct {
			Phase string `json:"phase"`
		}
		if err == nil && json.Unmarshal(data, &saved) == nil {
			return saved.Phase
		}
	}
	return ""
}

// ask sends a request to the management API of a task.
func (w *world) ask(ctx context.Context, stub *nomad.AllocationListStub, method, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out, errs strings.Builder
	alloc := &nomad.Allocation{ID: stub.ID, NodeID: stub.NodeID, Namespace: stub.Namespace}
	code, err := nomadkit.AskDriver(ctx, w.cluster.Nomad, alloc, taskName, []string{manage.Prefix, method, path}, &out, &errs)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
	return err
}

// learn notes the processes of the plugin on the target. Those that the agent has taken over are nobody's children: they are
// known from before. After many crashes Nomad takes up to two minutes to start a plugin again.
func (w *world) learn(ctx context.Context) error {
	return drivercluster.Eventually(ctx, 4*time.Minute, "the plugin runs", func() error {
		all, err := drivercluster.Processes()
		if err != nil {
			return err
		}
		agent, err := w.cluster.Agent("nomad-" + target)
		if err != nil {
			return err
		}
		below := drivercluster.Below(all, agent.PID)
		for _, driver := range w.drivers {
			if decorator, inner, ok := drivercluster.Plugin(below, driver); ok && !w.dead[decorator.PID] && !w.dead[inner.PID] {
				w.plugins[driver] = [2]int{decorator.PID, inner.PID}
				continue
			}
			known := w.plugins[driver]
			if w.dead[known[0]] || w.dead[known[1]] || !runs(all, known[0], "retinue-"+driver) || !runs(all, known[1], "retinue-inner") {
				return fmt.Errorf("no plugin of %s", driver)
			}
		}
		return nil
	})
}

func runs(all []drivercluster.Process, pid int, program string) bool {
	for _, p := range all {
		if p.PID == pid {
			return p.Program() == program
		}
	}
	return false
}

// strike kills what the salvo is about, and returns how many processes that were.
func (w *world) strike(s salvo, allocs []string) (int, error) {
	switch s.fault {
	case killAgent:
		agent, err := w.cluster.Agent("nomad-" + target)
		if err != nil {
			return 0, err
		}
		return 1, agent.Kill(syscall.SIGKILL)
	case killHelper:
		return w.killHelpers(allocs)
	}
	for i, driver := range s.order {
		if i > 0 {
			time.Sleep(s.gap)
		}
		pid := w.plugins[driver][0]
		if s.fault == killInner {
			pid = w.plugins[driver][1]
		}
		if pid <= 0 { // 0 would be our own process group
			return i, fmt.Errorf("no process of %s is known", driver)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return i, fmt.Errorf("%s of %s: %w", s.fault, driver, err)
		}
		w.dead[w.plugins[driver][0]], w.dead[w.plugins[driver][1]] = true, true
	}
	return len(s.order), nil
}

// killHelpers kills the executors of the allocations, and the shims of their containers.
func (w *world) killHelpers(allocs []string) (n int, err error) {
	all, err := drivercluster.Processes()
	if err != nil {
		return 0, err
	}
	containers := map[string]bool{}
	for _, alloc := range allocs {
		ids, err := containersOf(alloc)
		if err != nil {
			return n, err
		}
		for _, id := range ids {
			containers[id] = true
		}
	}
	for _, p := range all {
		mine := false
		for i, arg := range p.Args {
			switch {
			case len(p.Args) > 1 && p.Args[1] == "executor" && i > 1:
				for _, alloc := range allocs {
					mine = mine || strings.Contains(arg, alloc)
				}
			case strings.HasPrefix(p.Program(), "containerd-shim") && i > 0 && p.Args[i-1] == "-id":
				mine = mine || containers[arg]
			}
		}
		if !mine {
			continue
		}
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err == nil {
			n++
		}
	}
	return n, nil
}

// containersOf are the containers of an allocation, those that have ended too.
func containersOf(alloc string) ([]string, error) {
	out, err := exec.Command("docker", "ps", "-aq", "--no-trunc", "--filter", "label=com.hashicorp.nomad.alloc_id="+alloc).Output()
	if err != nil {
		return nil, fmt.Errorf("docker ps: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// repair starts the agent again where it was killed, and waits for the plugin.
func (w *world) repair(ctx context.Context, s salvo) error {
	if s.fault == killAgent {
		agent, err := w.cluster.Agent("nomad-" + target)
		if err != nil {
			return err
		}
		if err := agent.Restart(ctx); err != nil {
			return err
		}
	}
	return w.learn(ctx)
}

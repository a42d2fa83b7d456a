package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/demo"
	"retinue/internal/lifecycle/manage"
	"retinue/internal/nomadkit"
	"retinue/jobspecs"
)

// Job is the job of the demonstration; blocker is the one that preempts it.
const (
	Job     = "lifecycle"
	task    = "server"
	blocker = "lifecycle-important"
)

// Demo is one run of the demonstration on a cluster with at least two nodes.
type Demo struct {
	Nomad   *nomad.Client
	Consul  *consul.Client
	Vars    map[string]string // variables of the jobspec that this cluster needs, as HCL expressions
	NomadUI string
	// KillAgent ends the Nomad agent of a client node by SIGKILL, and StartAgent starts it again over its data.
	KillAgent, StartAgent func(ctx context.Context, node string) error
	Timeline              *demo.Timeline
}

// play is a Demo under way.
type play struct {
	Demo
	load  *load
	alloc *nomad.AllocationListStub // the server's
}

// Run plays the demonstration and records its checks. An error means that it could not be played to its end.
func (d Demo) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &play{Demo: d}
	if err := p.start(ctx); err != nil {
		return err
	}
	if err := p.underLoad(ctx, "user", p.calm, p.save, p.pause, p.calm, p.loseAgent, p.calm, p.drain, p.calm); err != nil {
		return err
	}
	if err := p.judge(ctx); err != nil {
		return err
	}
	if err := p.underLoad(ctx, "late-user", p.calm, p.preempt, p.calm); err != nil {
		return err
	}
	acked, failed, _ := p.load.look()
	p.Timeline.Check(failed == 0 && acked > 0, "no request failed in the preemption", "%d of %d", failed, acked)
	return nil
}

// underLoad plays acts while users count.
func (p *play) underLoad(ctx context.Context, name string, acts ...func(context.Context) error) error {
	counting, stop := context.WithCancel(ctx)
	defer stop()
	p.load = &load{consul: p.Consul, name: name}
	p.load.begin(counting)
	p.Timeline.Event("%d users count; the counter is in the server's memory and nowhere else", users)
	for _, act := range acts {
		if err := act(ctx); err != nil {
			return err
		}
	}
	stop()
	p.load.done.Wait()
	return nil
}

// start replaces the job of an earlier run and waits until the server runs.
func (p *play) start(ctx context.Context) error {
	source, err := jobspecs.Pattern(Job)
	if err != nil {
		return err
	}
	spec, err := nomadkit.Parse(ctx, p.Nomad, source, p.Vars)
	if err != nil {
		return err
	}
	for _, id := range []string{blocker, Job} {
		if err := nomadkit.Purge(ctx, p.Nomad, id); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := nomadkit.Register(ctx, p.Nomad, spec); err != nil {
		return err
	}
	p.Timeline.Event("nomad job run jobspecs/lifecycle")
	if p.alloc, err = p.next(ctx, ""); err != nil {
		return err
	}
	var d manage.Description
	if err := p.ask(ctx, "GET", "/v1/task", &d); err != nil {
		return fmt.Errorf("the lifecycle driver does not run the server: %w", err)
	}
	p.Timeline.Event("the server runs on %s after %.1f s; it said READY=1, phase %s", p.alloc.NodeName, time.Since(began).Seconds(), d.Lifecycle.Phase)
	p.Timeline.Note("look at it               retinue task show %s", p.alloc.ID[:8])
	p.Timeline.Note("the job in the Nomad UI  %s/ui/jobs/%s", p.NomadUI, Job)
	return nil
}

// next waits for an allocation of the server that runs and is not the one before.
func (p *play) next(ctx context.Context, before string) (*nomad.AllocationListStub, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		up, err := nomadkit.WaitRunning(ctx, p.Nomad, Job, 1)
		if err != nil {
			return nil, err
		}
		for _, a := range up {
			if a.ID != before {
				return a, nil
			}
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("the server does not come up anew: %w", err)
		}
	}
}

// ask sends a request to the management API, as `nomad alloc exec ALLOC @retinue` does.
func (p *play) ask(ctx context.Context, method, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	alloc := &nomad.Allocation{ID: p.alloc.ID, NodeID: p.alloc.NodeID, Namespace: p.alloc.Namespace}
	code, err := nomadkit.AskDriver(ctx, p.Nomad, alloc, task, []string{manage.Prefix, method, path}, &out, &errs)
	if err == nil && code != 0 {
		err = errors.New(strings.TrimSpace(out.String() + errs.String()))
	}
	if err == nil {
		err = json.Unmarshal(out.Bytes(), v)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// calm lets the users count for a while.
func (p *play) calm(ctx context.Context) error {
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	acked, _, _ := p.load.look()
	p.Timeline.Event("%d increments acknowledged", acked)
	return nil
}

func (p *play) save(ctx context.Context) error {
	var done manage.Done
	if err := p.ask(ctx, "POST", "/v1/save", &done); err != nil {
		return err
	}
	p.Timeline.Event("retinue task save: %s", done.Detail)
	return nil
}

// pause freezes the server under its users.
func (p *play) pause(ctx context.Context) error {
	var done manage.Done
	if err := p.ask(ctx, "POST", "/v1/pause", &done); err != nil {
		return err
	}
	p.Timeline.Event("retinue task pause: %s after %d ms", done.Phase, done.TookMS)
	// What was on its way to a user when the server froze has arrived by then.
	if err := sleep(ctx, oneTry); err != nil {
		return err
	}
	before, _, _ := p.load.look()
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	after, _, _ := p.load.look()
	if err := p.ask(ctx, "POST", "/v1/resume", &done); err != nil {
		return err
	}
	p.Timeline.Event("retinue task resume: %s after %d ms", done.Phase, done.TookMS)
	p.Timeline.Check(before == after, "a paused server does nothing", "%d increments in 3 s", after-before)
	return nil
}

// loseAgent kills the agent of the server's node. The server does not need one to go on, and the next one takes it over with its
// hooks: the drain that follows shows it.
func (p *play) loseAgent(ctx context.Context) error {
	node := p.alloc.NodeName
	if err := p.KillAgent(ctx, node); err != nil {
		return err
	}
	p.Timeline.Event("kill -9 of the Nomad agent of %s", node)
	if err := sleep(ctx, oneTry); err != nil { // what the agent has still seen has arrived by then
		return err
	}
	before, _, _ := p.load.look()
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	after, _, longest := p.load.look()
	p.Timeline.Check(after > before, "the server serves without its agent", "%d increments in 3 s, none took longer than %d ms", after-before, longest.Milliseconds())
	began := time.Now()
	if err := p.StartAgent(ctx, node); err != nil {
		return err
	}
	d, err := p.recovered(ctx)
	if err != nil {
		return err
	}
	now, _, err := p.Nomad.Allocations().Info(p.alloc.ID, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("look the server up after the agent's restart: %w", err)
	}
	p.Timeline.Event("an agent runs again; the driver answers for the server after %.1f s, phase %s", time.Since(began).Seconds(), d.Lifecycle.Phase)
	p.Timeline.Measure("agent_recovery_ms", float64(time.Since(began).Milliseconds()))
	restarts := now.TaskStates[task].Restarts
	p.Timeline.Check(restarts == 0 && d.Lifecycle.Phase == "running", "the next agent takes the server over as it is", "phase %s, %d restarts", d.Lifecycle.Phase, restarts)
	return nil
}

// recovered waits until the driver answers for the server again.
func (p *play) recovered(ctx context.Context) (d manage.Description, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err = p.ask(ctx, "GET", "/v1/task", &d); err == nil {
			return d, nil
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			return d, fmt.Errorf("the driver does not answer for the server after the agent's restart: %w", err)
		}
	}
}

// drain takes the server's node out of service.
func (p *play) drain(ctx context.Context) error {
	p.load.look()
	from := p.alloc
	p.Timeline.Event("nomad node drain %s", from.NodeName)
	began := time.Now()
	q := (&nomad.WriteOptions{}).WithContext(ctx)
	if _, err := p.Nomad.Nodes().UpdateDrainOpts(from.NodeID, &nomad.DrainOptions{DrainSpec: &nomad.DrainSpec{Deadline: time.Minute}}, q); err != nil {
		return fmt.Errorf("drain node %s: %w", from.NodeName, err)
	}
	defer func() {
		q := (&nomad.WriteOptions{}).WithContext(context.WithoutCancel(ctx))
		if _, err := p.Nomad.Nodes().UpdateDrainOpts(from.NodeID, &nomad.DrainOptions{MarkEligible: true}, q); err != nil {
			p.Timeline.Note("node %s is still not eligible: %v", from.NodeName, err)
		}
	}()
	return p.moved(ctx, "drain", from, began)
}

// moved waits until the server runs elsewhere, and tells what its hooks did.
func (p *play) moved(ctx context.Context, why string, from *nomad.AllocationListStub, began time.Time) error {
	var err error
	if p.alloc, err = p.next(ctx, from.ID); err != nil {
		return err
	}
	took := time.Since(began)
	old, _, err := p.Nomad.Allocations().Info(from.ID, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("read the events of the allocation that was stopped: %w", err)
	}
	told := ""
	for _, e := range old.TaskStates[task].Events {
		if e.Type == "Driver" {
			p.Timeline.Note("%s", e.DisplayMessage)
			told += e.DisplayMessage + "; "
		}
	}
	var ran []string
	for _, hook := range []string{"pre_drain ", "drain in flight 0", "save_state "} {
		if strings.Contains(told, hook) {
			ran = append(ran, strings.Fields(hook)[0])
		}
	}
	// The users go on when they have found it.
	value, err := p.load.value(ctx)
	if err != nil {
		return err
	}
	p.Timeline.Event("the server runs on %s, %.1f s later, with its counter at %d", p.alloc.NodeName, took.Seconds(), value)
	p.Timeline.Measure(why+"_move_ms", float64(took.Milliseconds()))
	p.Timeline.Check(len(ran) == 3, "the hooks ran in the "+why, "%s", strings.Join(ran, ", "))
	p.Timeline.Check(p.alloc.NodeID != from.NodeID, "after the "+why+" it runs on another node", "%s, before on %s", p.alloc.NodeName, from.NodeName)
	return nil
}

// preempt runs a job of a higher priority that needs the server's node for itself.
func (p *play) preempt(ctx context.Context) error {
	p.load.look()
	restore, err := p.allowPreemption(ctx)
	if err != nil {
		return err
	}
	defer restore()
	from := p.alloc
	node, _, err := p.Nomad.Nodes().Info(from.NodeID, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("look up node %s: %w", from.NodeName, err)
	}
	free := int64(0)
	if node.NodeResources != nil {
		free = node.NodeResources.Cpu.CpuShares
	}
	if node.ReservedResources != nil {
		free -= int64(node.ReservedResources.Cpu.CpuShares)
	}
	source := fmt.Sprintf(important, blocker, from.NodeID, free-50)
	vars := map[string]string{}
	for _, name := range []string{"driver", "retinue_image", "retinue_command"} {
		if v, ok := p.Vars[name]; ok {
			vars[name] = v
		}
	}
	spec, err := nomadkit.Parse(ctx, p.Nomad, source, vars)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := nomadkit.Register(ctx, p.Nomad, spec); err != nil {
		return err
	}
	p.Timeline.Event("a job of priority 80 needs %d MHz of %s; the server has priority 50", free-50, from.NodeName)
	if err := p.moved(ctx, "preemption", from, began); err != nil {
		return err
	}
	p.Timeline.Note("Nomad gives the disk of a preempted allocation to nobody, so with the store alloc the state stays behind: this is a new counter")
	return nomadkit.Purge(ctx, p.Nomad, blocker)
}

// allowPreemption turns preemption of services on, and returns what restores the setting.
func (p *play) allowPreemption(ctx context.Context) (restore func(), err error) {
	was, _, err := p.Nomad.Operator().SchedulerGetConfiguration((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("read the scheduler's configuration: %w", err)
	}
	with := *was.SchedulerConfig
	with.PreemptionConfig.ServiceSchedulerEnabled = true
	if _, _, err := p.Nomad.Operator().SchedulerSetConfiguration(&with, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return nil, fmt.Errorf("allow preemption: %w", err)
	}
	return func() {
		q := (&nomad.WriteOptions{}).WithContext(context.WithoutCancel(ctx))
		if _, _, err := p.Nomad.Operator().SchedulerSetConfiguration(was.SchedulerConfig, q); err != nil {
			p.Timeline.Note("preemption is still allowed: %v", err)
		}
	}, nil
}

// important is the job that preempts: it waits, and needs a node's CPU.
const important = `
variable "driver" { default = "docker" }
variable "retinue_image" { default = "" }
variable "retinue_command" { default = "/usr/local/bin/retinue" }

job "%s" {
  priority = 80
  group "important" {
    constraint {
      attribute = "${node.unique.id}"
      value     = "%s"
    }
    task "wait" {
      driver = var.driver
      dynamic "config" {
        for_each = var.driver == "docker" ? [1] : []
        content {
          image   = var.retinue_image
          command = var.retinue_command
          args    = ["pause"]
        }
      }
      dynamic "config" {
        for_each = var.driver == "docker" ? [] : [1]
        content {
          command = var.retinue_command
          args    = ["pause"]
        }
      }
      resources {
        cpu    = %d
        memory = 32
      }
    }
  }
}
`

// judge compares the counter with what the users were told.
func (p *play) judge(ctx context.Context) error {
	value, err := p.load.value(ctx)
	if err != nil {
		return err
	}
	acked, failed, _ := p.load.look()
	p.Timeline.Measure("increments", float64(acked))
	p.Timeline.Check(failed == 0 && acked > 0, "no request failed", "%d of %d", failed, acked)
	p.Timeline.Check(value == acked, "no increment was lost, none counted twice", "%d acknowledged, the counter is %d", acked, value)
	return nil
}

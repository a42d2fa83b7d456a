package devcluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// startAll starts the agents that do not run, in the order in which each finds
// what it needs at once instead of retrying with long pauses, and waits until
// the cluster schedules.
func (u *upper) startAll(ctx context.Context, c *Cluster) error {
	p := c.state.Plan
	u.emit(Step{Text: fmt.Sprintf("starting the agents of %d nodes", len(p.Nodes)), Progress: true})
	c.forgetDead()
	if err := c.startKinds(ConsulServer); err != nil {
		return err
	}
	if p.ACL {
		// Before any client: a Consul client that asks for a token that is not there
		// yet remembers for 30 s that there is none.
		if err := c.makeConsulTokens(ctx); err != nil {
			return err
		}
	}
	if err := c.startKinds(NomadServer, ConsulClient); err != nil {
		return err
	}
	for _, n := range p.clients() {
		// Nomad looks for Consul when it starts and then only every 15 s.
		if err := c.waitAnswers(ctx, agentName(ConsulClient, n)); err != nil {
			return err
		}
	}
	if err := c.waitNomadServers(ctx); err != nil {
		return err
	}
	if err := c.startKinds(NomadClient); err != nil {
		return err
	}
	if err := c.waitConsul(ctx); err != nil {
		return err
	}
	u.say("Consul: %d of %d servers, a leader, %d of %d clients", len(p.servers()), len(p.servers()), len(p.clients()), len(p.clients()))
	if p.ACL {
		if err := c.makeNomadACL(ctx); err != nil {
			return err
		}
		u.say("ACLs: default deny, workload identity from Nomad to Consul")
	}
	if err := c.waitSchedules(ctx); err != nil {
		return err
	}
	u.say("Nomad: %d of %d clients ready, the scheduler places %s tasks with %s networking on each",
		len(p.clients()), len(p.clients()), p.Driver(), p.NetworkMode())
	c.state.Ready = true
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.save()
}

// forgetDead forgets the agents that died before: whoever waits for the first ones to answer would take those that are started later
// for ones that have died since.
func (c *Cluster) forgetDead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.state.Agents, func(_ string, p procfs.Process) bool { return !c.proc.Alive(p) })
}

func (c *Cluster) startKinds(kinds ...string) error {
	for _, a := range c.Agents() {
		for _, kind := range kinds {
			if a.Kind == kind && a.PID == 0 {
				if err := c.startAgent(a); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// until calls probe until it has no error. It gives up when ctx ends, when an
// agent it needs (all, where none is named) has died, or after upLimit; the error
// then says what was still missing.
func (c *Cluster) until(ctx context.Context, what string, probe func(ctx context.Context) error, needs ...string) error {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, upLimit)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, 5*time.Second)
		err := probe(try)
		stop()
		if err == nil {
			return nil
		}
		for _, a := range c.Agents() {
			needed := len(needs) == 0 || slices.Contains(needs, a.Name)
			if needed && a.PID == 0 && a.process.PID != 0 {
				return c.state.Plan.deathOf(a)
			}
		}
		select {
		case <-parent.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(parent))
		case <-ctx.Done():
			return hint.Wrap(fmt.Errorf("wait for %s: not after %s: %w", what, upLimit, err), "`retinue dev logs` shows what the agents say; `retinue doctor` checks the machine")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// waitAnswers waits until an agent serves its HTTP API.
func (c *Cluster) waitAnswers(ctx context.Context, name string) error {
	a, err := c.Agent(name)
	if err != nil {
		return err
	}
	var probe func(context.Context) error
	switch a.Kind {
	case ConsulServer, ConsulClient:
		api, err := c.ConsulAt(a.HTTPAddr)
		if err != nil {
			return err
		}
		probe = func(ctx context.Context) error {
			_, err := api.Raw().Query("/v1/agent/self", new(any), (&consul.QueryOptions{}).WithContext(ctx))
			return err
		}
	default:
		api, err := c.NomadAt(a.HTTPAddr)
		if err != nil {
			return err
		}
		probe = func(ctx context.Context) error {
			_, err := api.Raw().Query("/v1/agent/health?type="+strings.TrimPrefix(a.Kind, "nomad-"), new(any), (&nomad.QueryOptions{}).WithContext(ctx))
			return err
		}
	}
	return c.until(ctx, name+" to answer", probe, name)
}

// waitConsul waits for a leader that every server follows and for every node in
// the catalog.
func (c *Cluster) waitConsul(ctx context.Context) error {
	p := c.state.Plan
	return c.until(ctx, "Consul's leader and members", func(ctx context.Context) error {
		q := (&consul.QueryOptions{}).WithContext(ctx)
		for _, s := range p.servers() {
			api, err := c.ConsulAt("http://" + p.on(s.Addr, portConsulHTTP).String())
			if err != nil {
				return err
			}
			if leader, err := api.Status().LeaderWithQueryOptions(q); err != nil || leader == "" {
				return errors.Join(fmt.Errorf("%s knows no leader", s.Name), err)
			}
		}
		api, err := c.Consul()
		if err != nil {
			return err
		}
		nodes, _, err := api.Catalog().Nodes(q)
		if err != nil {
			return err
		}
		known := map[string]bool{}
		for _, n := range nodes {
			known[n.Node] = true
		}
		for _, n := range p.Nodes {
			if !known[n.Name] {
				return fmt.Errorf("%s is not in the catalog", n.Name)
			}
		}
		return nil
	})
}

// waitNomadServers waits for a leader that every server follows and that has
// made its signing key. A client that registers before the key is there fails,
// and tries again only half a minute later.
func (c *Cluster) waitNomadServers(ctx context.Context) error {
	p := c.state.Plan
	return c.until(ctx, "Nomad's leader and its keys", func(ctx context.Context) error {
		q := (&nomad.QueryOptions{}).WithContext(ctx)
		for _, s := range p.servers() {
			api, err := c.NomadAt("http://" + p.on(s.Addr, portNomadHTTP).String())
			if err != nil {
				return err
			}
			var leader string
			if _, err := api.Raw().Query("/v1/status/leader", &leader, q); err != nil || leader == "" {
				return errors.Join(fmt.Errorf("%s knows no leader", s.Name), err)
			}
			var keys struct{ Keys []any }
			if _, err := api.Raw().Query("/.well-known/jwks.json", &keys, q); err != nil || len(keys.Keys) == 0 {
				return errors.Join(fmt.Errorf("%s has no signing key", s.Name), err)
			}
		}
		return nil
	})
}

// waitSchedules asks the scheduler itself: a plan of a system job that needs
// what our jobspecs need (the driver, the network mode, Consul on the node) must
// be placed on every client. That is the real scheduler over the real state, and
// costs no task.
func (c *Cluster) waitSchedules(ctx context.Context) error {
	api, err := c.Nomad()
	if err != nil {
		return err
	}
	job, want := c.probeJob(), len(c.state.Plan.clients())
	return c.until(ctx, "Nomad to place work on every client", func(ctx context.Context) error {
		if err := c.nodesReady(ctx, api); err != nil {
			return err
		}
		// Annotations say on how many nodes each group lands.
		resp, _, err := api.Jobs().Plan(job, false, (&nomad.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, failed := range resp.FailedTGAllocs {
			return fmt.Errorf("placement fails: %v %v", failed.ConstraintFiltered, failed.DimensionExhausted)
		}
		if resp.Annotations == nil || resp.Annotations.DesiredTGUpdates["probe"] == nil {
			return errors.New("the plan says nothing about placement")
		}
		if n := int(resp.Annotations.DesiredTGUpdates["probe"].Place); n != want {
			return fmt.Errorf("work is placed on %d of %d clients", n, want)
		}
		return nil
	})
}

func (c *Cluster) nodesReady(ctx context.Context, api *nomad.Client) error {
	nodes, _, err := api.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	driver, ready := c.state.Plan.Driver(), 0
	for _, n := range nodes {
		info := n.Drivers[driver]
		if n.Status == nomad.NodeStatusReady && n.SchedulingEligibility == nomad.NodeSchedulingEligible && info != nil && info.Healthy {
			ready++
		}
	}
	if want := len(c.state.Plan.clients()); ready < want {
		return fmt.Errorf("%d of %d Nomad clients are ready, eligible and have a healthy %s driver", ready, want, driver)
	}
	return nil
}

func (c *Cluster) probeJob() *nomad.Job {
	p := c.state.Plan
	task := nomad.NewTask("probe", p.Driver()).SetConfig("command", c.TaskCommand(p.Driver()))
	if p.Driver() == DriverDocker {
		task.SetConfig("image", p.image())
	}
	task.Require(&nomad.Resources{CPU: new(10), MemoryMB: new(10)})
	// A service with the provider "consul" makes Nomad demand Consul on the node.
	group := nomad.NewTaskGroup("probe", 1).AddTask(task)
	group.Networks = []*nomad.NetworkResource{{Mode: p.NetworkMode(), DynamicPorts: []nomad.Port{{Label: "http"}}}}
	group.Services = []*nomad.Service{{Name: "retinue-probe", PortLabel: "http", Provider: "consul"}}
	job := &nomad.Job{ID: new("retinue-dev-probe"), Name: new("retinue-dev-probe"), Type: new(nomad.JobTypeSystem), Datacenters: []string{"*"}}
	return job.AddTaskGroup(group)
}

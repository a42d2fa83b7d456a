package devcluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// Status is what `retinue dev status` shows.
type Status struct {
	Dir         string        `json:"dir"`
	Ready       bool          `json:"ready"` // every agent runs, both have a leader, every client is ready
	ACL         bool          `json:"acl"`
	PortOffset  int           `json:"port_offset"`
	Driver      string        `json:"driver"`
	NetworkMode string        `json:"network_mode"`
	NomadUI     string        `json:"nomad_ui"`
	ConsulUI    string        `json:"consul_ui"`
	Agents      []AgentStatus `json:"agents"`
	Jobs        []JobStatus   `json:"jobs"`
}

// AgentStatus is one agent with what the cluster says of it.
type AgentStatus struct {
	Agent
	Status string `json:"status"` // down, paused, starting, no leader, follower, leader, alive, ready, ineligible, ...
}

// JobStatus is one job that is not stopped.
type JobStatus struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Running int    `json:"running"`
}

// Status asks the agents; one that does not answer is a status, not an error.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p := c.state.Plan
	s := Status{
		Dir: p.Dir, ACL: p.ACL, PortOffset: p.PortOffset, Driver: p.Driver(), NetworkMode: p.NetworkMode(),
		NomadUI: c.NomadAddr() + "/ui/", ConsulUI: c.ConsulAddr() + "/ui/",
		Ready: true, Agents: []AgentStatus{}, Jobs: []JobStatus{},
	}
	nodes := c.nodeStates(ctx)
	for _, a := range c.Agents() {
		st := AgentStatus{Agent: a, Status: "down"}
		switch {
		case a.PID != 0 && !c.runs(a):
			st.Status = "paused"
		case a.PID != 0:
			st.Status = c.agentStatus(ctx, a, nodes)
		}
		switch st.Status {
		case "leader", "follower", "alive", "ready":
		default:
			s.Ready = false
		}
		s.Agents = append(s.Agents, st)
	}
	s.Jobs = c.jobs(ctx, s.Jobs)
	return s, nil
}

func (c *Cluster) agentStatus(ctx context.Context, a Agent, nodes map[string]string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var leader string
	switch a.Kind {
	case NomadClient:
		if st := nodes[a.Node]; st != "" {
			return st
		}
		return "starting"
	case NomadServer:
		api, err := c.NomadAt(a.HTTPAddr)
		if err != nil {
			return "starting"
		}
		if _, err := api.Raw().Query("/v1/status/leader", &leader, (&nomad.QueryOptions{}).WithContext(ctx)); err != nil {
			return "no leader"
		}
	default:
		api, err := c.ConsulAt(a.HTTPAddr)
		if err != nil {
			return "starting"
		}
		leader, err = api.Status().LeaderWithQueryOptions((&consul.QueryOptions{}).WithContext(ctx))
		if err != nil || leader == "" {
			return "no leader"
		}
		if a.Kind == ConsulClient {
			return "alive"
		}
	}
	switch {
	case leader == "":
		return "no leader"
	case strings.HasPrefix(leader, a.Addr.String()+":"):
		return "leader"
	}
	return "follower"
}

// nodeStates maps node names to what Nomad says of them.
func (c *Cluster) nodeStates(ctx context.Context) map[string]string {
	out := map[string]string{}
	api := c.anyNomad(ctx)
	if api == nil {
		return out
	}
	nodes, _, err := api.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return out
	}
	for _, n := range nodes {
		out[n.Name] = n.Status
		if n.Status == nomad.NodeStatusReady && n.SchedulingEligibility != nomad.NodeSchedulingEligible {
			out[n.Name] = n.SchedulingEligibility
		}
	}
	return out
}

func (c *Cluster) jobs(ctx context.Context, out []JobStatus) []JobStatus {
	api := c.anyNomad(ctx)
	if api == nil {
		return out
	}
	jobs, _, err := api.Jobs().ListOptions(nil, (&nomad.QueryOptions{Namespace: "*"}).WithContext(ctx))
	if err != nil {
		return out
	}
	for _, j := range jobs {
		if j.Stop {
			continue
		}
		st := JobStatus{ID: j.ID, Status: j.Status}
		if j.JobSummary != nil {
			for _, g := range j.JobSummary.Summary {
				st.Running += g.Running
			}
		}
		out = append(out, st)
	}
	return out
}

// Summary is the status in a line.
func (s Status) Summary() string {
	up := 0
	for _, a := range s.Agents {
		if a.PID != 0 {
			up++
		}
	}
	word := "not ready"
	if s.Ready {
		word = "ready"
	}
	return fmt.Sprintf("%s: %d of %d agents run, %s driver, %s networking", word, up, len(s.Agents), s.Driver, s.NetworkMode)
}

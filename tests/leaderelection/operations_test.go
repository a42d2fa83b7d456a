package leaderelection_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/elector"
	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

const replicas = 3

// lease is that of the jobs here. After the end of a session nobody has the
// lock for as long, so a leadership that moves faster was handed over and did
// not expire; and a busy machine does not sleep through it.
const lease = 6 * time.Second

// runOrders runs the jobspec as the cluster's environment says: docker in bridge
// mode where there is an engine, with the rights that its elector needs.
func runOrders(t *testing.T, id string, count int) *orders {
	t.Helper()
	return runOrdersOn(t, id, count, nil)
}

func runOrdersOn(t *testing.T, id string, count int, vars map[string]string) *orders {
	t.Helper()
	c := cluster.Get(t)
	if err := elector.Allow(c.Consul, id); err != nil {
		t.Fatal(err)
	}
	with := maps.Clone(vars)
	if with == nil {
		with = map[string]string{}
	}
	with["lease"] = lease.String()
	return &orders{Job: c.RunJob(t, "leader-election", id, count, with), t: t, cluster: c}
}

// nomad runs a command of the nomad program, as an operator would.
func (o *orders) nomad(args ...string) string {
	o.t.Helper()
	return o.cluster.Command(o.t, harness.NomadBinary(o.t), args...)
}

// complete waits until all replicas run, their deployment is over, and one of them leads.
func (o *orders) complete(after uint64) (*harness.Alloc, uint64) {
	o.t.Helper()
	o.runs(replicas)
	harness.Eventually(o.t, 2*time.Minute, "the deployment is successful", func(context.Context) error {
		d, _, err := o.cluster.Nomad.Jobs().LatestDeployment(o.ID, nil)
		if err == nil && (d == nil || d.Status != nomadapi.DeploymentStatusSuccessful) {
			err = fmt.Errorf("it is %+v", d)
		}
		return err
	})
	o.contested(replicas)
	return o.next(after, 60*time.Second)
}

func (o *orders) runs(count int) {
	o.t.Helper()
	harness.Eventually(o.t, 90*time.Second, fmt.Sprintf("%d replicas run", count), func(context.Context) error {
		if n := len(o.Allocs()); n != count {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
}

// signal sends a signal to a task, also to one that Nomad has just started and believes to be down.
func (o *orders) signal(a *harness.Alloc, task, sig string) {
	o.t.Helper()
	harness.Eventually(o.t, 60*time.Second, sig+" to "+task+" of "+a.ID[:8], func(context.Context) error {
		return o.cluster.Nomad.Allocations().Signal(&nomadapi.Allocation{ID: a.ID}, nil, task, sig)
	})
}

// ended waits until Nomad says that an allocation has stopped.
func (o *orders) ended(a *harness.Alloc) {
	o.t.Helper()
	harness.Eventually(o.t, 2*time.Minute, a.ID[:8]+" has ended", func(context.Context) error {
		info, _, err := o.cluster.Nomad.Allocations().Info(a.ID, nil)
		if err == nil && !info.ClientTerminalStatus() {
			err = fmt.Errorf("it is %s", info.ClientStatus)
		}
		return err
	})
}

// operation is something that Nomad does to a running job.
type operation struct {
	name string
	// do causes it and waits for its end.
	do func(o *orders, leader *harness.Alloc)
	// stays says that leadership may stay where it is.
	stays bool
	// most is how often leadership may move.
	most int
	// once says that the cluster's default driver is enough: it does the same on every one.
	once bool
}

func operations() []operation {
	return []operation{
		{name: "alloc-stop", most: 1, do: func(o *orders, leader *harness.Alloc) {
			o.nomad("alloc", "stop", "-detach", leader.ID)
			o.ended(leader)
		}},
		{name: "job-restart", most: replicas, stays: true, do: restart},
		{name: "node-drain", most: replicas, do: drain},
		{name: "deployment", most: replicas, once: true, do: func(o *orders, leader *harness.Alloc) {
			o.deploy("app_env={ GENERATION = \"2\" }")
			o.ended(leader)
		}},
		{name: "preemption", most: 1, do: preempt},
	}
}

// restart restarts every task of the job where it is, one allocation after the
// other. Without the wait Nomad goes on to the next allocation while the tasks of
// the last one are still starting, and for a second no replica may run at all.
func restart(o *orders, _ *harness.Alloc) {
	begin := time.Now()
	o.nomad("job", "restart", "-yes", "-batch-size=1", "-batch-wait=3s", o.ID)
	harness.Eventually(o.t, 2*time.Minute, "every task has been restarted", func(context.Context) error {
		for _, a := range o.Allocs() {
			for name, task := range a.TaskStates {
				if task.StartedAt.Before(begin) {
					return fmt.Errorf("%s of %s runs since %v", name, a.ID[:8], task.StartedAt)
				}
			}
		}
		return nil
	})
}

// drain empties the leader's node and lets it take work again.
func drain(o *orders, leader *harness.Alloc) {
	o.t.Cleanup(func() { o.nomad("node", "drain", "-disable", "-yes", leader.NodeID) })
	o.nomad("node", "drain", "-enable", "-yes", "-deadline=2m", leader.NodeID)
	o.ended(leader)
}

// deploy runs the jobspec again with a variable changed, and waits for the deployment.
func (o *orders) deploy(change string) {
	o.t.Helper()
	spec := harness.RepoRoot(o.t) + "/jobspecs/leader-election/leader-election.nomad.hcl"
	o.nomad("job", "run", "-var", "job_name="+o.ID, "-var", fmt.Sprintf("count=%d", replicas), "-var", "lease="+lease.String(), "-var", change, spec)
}

// preempt runs a job of a higher priority on the leader's node that needs all
// of the node's memory.
func preempt(o *orders, leader *harness.Alloc) {
	const name = "important"
	o.t.Cleanup(func() {
		if _, _, err := o.cluster.Nomad.Jobs().Deregister(name, true, nil); err != nil {
			o.t.Errorf("purge job %s: %v", name, err)
		}
		o.nomad("operator", "scheduler", "set-config", "-preempt-service-scheduler=false")
	})
	o.nomad("operator", "scheduler", "set-config", "-preempt-service-scheduler=true")
	node, _, err := o.cluster.Nomad.Nodes().Info(leader.NodeID, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	job := nomadapi.NewServiceJob(name, name, "global", 90)
	job.Constrain(nomadapi.NewConstraint("${node.unique.id}", "=", leader.NodeID))
	task := nomadapi.NewTask("sleep", "raw_exec").SetConfig("command", "sleep").SetConfig("args", []string{"600"}).
		Require(&nomadapi.Resources{CPU: new(100), MemoryMB: new(int(node.NodeResources.Memory.MemoryMB) - 100)})
	job.AddTaskGroup(nomadapi.NewTaskGroup(name, 1).AddTask(task))
	if _, _, err := o.cluster.Nomad.Jobs().Register(job, nil); err != nil {
		o.t.Fatal(err)
	}
	o.ended(leader)
	info, _, err := o.cluster.Nomad.Allocations().Info(leader.ID, nil)
	if err != nil || info.DesiredStatus != nomadapi.AllocDesiredStatusEvict {
		o.t.Errorf("the leader's allocation has the desired status %q (%v), want evict", info.DesiredStatus, err)
	}
}

// table collects what was measured.
type table struct {
	mu   sync.Mutex
	rows []string
}

func (b *table) add(name string, p passage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	b.rows = append(b.rows, fmt.Sprintf("| %s | %d | %s | %s | %s |", name, len(p.tenures)-1, ms(p.moved), ms(p.unlocked), ms(p.unled)))
}

func (b *table) log(t *testing.T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.rows)
	t.Logf("\n| operation | leadership moved | first move after | longest without the lock | longest with no application leading |\n|---|---|---|---|---|\n%s", strings.Join(b.rows, "\n"))
}

// What Nomad does to a job by itself or for an operator hands leadership over:
// there is never more than one leader, tokens rise, and nobody waits for a
// session to expire. On the cluster's default driver, and on raw_exec, which
// ends tasks in another way.
func TestOperations(t *testing.T) {
	var measured table
	c := cluster.Get(t)
	for _, op := range operations() {
		standard := c.Plan().Driver()
		t.Run(standard+"/"+op.name, func(t *testing.T) {
			measured.add(op.name+", "+standard, op.try(t, runOrders(t, "ops-"+op.name, replicas)))
		})
		if op.once || standard == devcluster.DriverRawExec {
			continue
		}
		t.Run("raw_exec/"+op.name, func(t *testing.T) {
			o := runOrdersOn(t, "ops-raw-"+op.name, replicas, drivers["raw_exec"].vars(c))
			measured.add(op.name+", raw_exec", op.try(t, o))
		})
	}
	measured.log(t)
}

// try does the operation under a watch, and judges how leadership passed.
func (op operation) try(t *testing.T, o *orders) passage {
	leader, token := o.complete(0)
	w := o.watch(t)
	begin := time.Now()
	op.do(o, leader)
	if op.stays {
		token--
	}
	o.complete(token)
	p := w.since(begin)
	t.Logf("done after %.1f s: leadership moved %d times, first after %v; longest without the lock %v, with no application leading %v",
		time.Since(begin).Seconds(), len(p.tenures)-1, p.moved, p.unlocked, p.unled)
	if moves := len(p.tenures) - 1; moves > op.most || moves == 0 && !op.stays {
		t.Errorf("leadership moved %d times, want at most %d", moves, op.most)
	}
	// Nomad restarts the tasks of an allocation all at once: an elector that ends before
	// its application keeps the lock for its next process, until the application is back.
	longest := lease
	if op.stays {
		longest = 2 * lease
	}
	if p.unlocked >= lease || p.unled >= longest {
		t.Errorf("nobody had the lock for %v, no application led for %v: that is not a hand-over (lease %v)", p.unlocked, p.unled, lease)
	}
	return p
}

// The end of a job is the end of its leadership, at once, and of its instances in the catalog.
func TestJobStop(t *testing.T) {
	o := runOrders(t, "ops-job-stop", replicas)
	o.complete(0)
	w := o.watch(t)
	begin := time.Now()
	o.nomad("job", "stop", "-yes", o.ID)
	harness.Eventually(t, 60*time.Second, "nobody is left in the catalog", func(context.Context) error {
		for _, service := range []string{o.ID, o.ID + "-elector"} {
			instances, _, err := o.cluster.Consul.Catalog().Service(service, "", nil)
			if err != nil || len(instances) > 0 {
				return fmt.Errorf("%d instances of %s, %v", len(instances), service, err)
			}
		}
		return nil
	})
	deregistered := time.Since(begin)
	tenures := w.since(begin).tenures
	last := tenures[len(tenures)-1]
	if last.until.IsZero() {
		t.Fatalf("the lock is held after the end of the job, by %s", last.alloc)
	}
	t.Logf("first release after %v, last after %v, nothing in the catalog after %v", tenures[0].until.Sub(begin), last.until.Sub(begin), deregistered)
	if held := last.until.Sub(begin); held >= 2*lease {
		t.Errorf("the lock was held for %v: its session may have expired", held)
	}
	pairs, _, err := o.cluster.Consul.KV().List("retinue/elections/"+o.ID+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range pairs {
		if pair.Session != "" || strings.Contains(pair.Key, "/.candidates/") {
			t.Errorf("%s is left, with session %q", pair.Key, pair.Session)
		}
	}
}

package leaderelection_test

import (
	"strings"
	"testing"
	"time"

	"retinue/tests/harness"
)

// The job's actions work through Nomad's API: an operator with rights to the
// job needs no way to Consul and none into the machine.
func TestActions(t *testing.T) {
	harness.Need(t, harness.Root, harness.Docker, harness.CNI)
	c := cluster.Get(t)
	o := runOrdersOn(t, "actions", replicas, drivers["docker"].vars(c))
	leader, token := o.complete(0)
	var follower *harness.Alloc
	for _, a := range o.Allocs() {
		if a.ID != leader.ID {
			follower = a
		}
	}
	ask := func(a *harness.Alloc, name string) string {
		return c.Action(t, o.ID, "-group", "app", "-task", "elector", "-alloc", a.ID, name)
	}
	action := func(a *harness.Alloc, name string) string { // once: it changes something
		return o.nomad("job", "action", "-job", o.ID, "-group", "app", "-task", "elector", "-alloc", a.ID, name)
	}

	status := ask(leader, "status")
	for _, want := range []string{o.ID, leader.ID[:8] + "@" + leader.NodeName, "connected", election, "leader", leader.App} {
		if !strings.Contains(status, want) {
			t.Errorf("status at the leader does not say %q:\n%s", want, status)
		}
	}
	if status := ask(follower, "status"); !strings.Contains(status, "follower") || !strings.Contains(status, leader.ID[:8]) {
		t.Errorf("status at a follower does not name the leader:\n%s", status)
	}
	if out := ask(follower, "stepdown"); !strings.Contains(out, "nothing is led here") {
		t.Errorf("stepdown at a follower: %s", out)
	}

	w := o.watch(t)
	begin := time.Now()
	asked := 0
	_, last := o.handOver(leader, token, func() {
		asked++
		if out := action(leader, "stepdown"); !strings.Contains(out, election+": leadership ended after") {
			t.Errorf("stepdown says %q", out)
		}
	})
	o.complete(last - 1)
	p := w.since(begin)
	t.Logf("stepdown: moved after %v, longest without the lock %v, with no application leading %v", p.moved, p.unlocked, p.unled)
	if len(p.tenures) != 1+asked || p.unlocked >= lease || p.unled >= lease {
		t.Errorf("leadership moved %d times; nobody had the lock for %v, no application led for %v", len(p.tenures)-1, p.unlocked, p.unled)
	}
	for _, task := range []string{"app", "elector"} {
		if n := leader.TaskStates[task].Restarts; n != 0 {
			t.Errorf("task %s was restarted %d times", task, n)
		}
	}
}

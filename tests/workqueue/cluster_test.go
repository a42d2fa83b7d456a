package workqueue_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"retinue/tests/harness"
)

// A queue with three brokers goes on when the one that leads it is killed in the middle of the work, and while one of them has no node.
func TestThreeBrokersOneDies(t *testing.T) {
	c := cluster.Get(t)
	const name, count = "three-raw-exec", 120
	c.Command(t, harness.RetinueBinary(t), "acl", "apply", "broker", "--job", name)
	vars := mergeVars(drivers["raw_exec"].vars(c), map[string]string{"brokers": "3", "count": "2", "drain_seconds": "5"})
	q := run(t, "work-queue", name, 5, vars)
	nodes := map[string]bool{}
	for _, a := range q.in("broker") {
		nodes[a.NodeID] = true
	}
	if len(nodes) != 3 {
		t.Errorf("three brokers are on %d nodes", len(nodes))
	}
	q.put("worker", 0, count/2)
	q.until(q.ID, 10)
	if st := q.stream(); st.Config.Replicas != 3 {
		t.Fatalf("the queue has %d copies", st.Config.Replicas)
	}

	// kill -9 of the broker that leads the queue; its process comes again and is one of three once more.
	victim := q.leader()
	began := time.Now()
	q.Kill(victim, "broker")
	q.until(q.ID, count/2)
	t.Logf("the leader died with %d items to do: done after %v", count/2-10, time.Since(began).Round(time.Millisecond))
	harness.Eventually(t, 30*time.Second, "all three have all", func(context.Context) error { return q.whole() })

	// The node of another one is gone, and there is no fourth: two are enough, for who publishes too.
	old := q.leader()
	began = time.Now()
	q.drain(old)
	harness.Eventually(t, 30*time.Second, "two brokers are left", func(context.Context) error {
		if n := len(q.in("broker")); n != 2 {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
	q.put("worker", count/2, count/2)
	records := q.until(q.ID, count)
	t.Logf("a node is drained: %d items put and done after %v by two brokers", count/2, time.Since(began).Round(time.Millisecond))
	if n := len(q.in("broker")); n != 2 {
		t.Errorf("%d brokers run", n)
	}
	q.check(records, count)
	for _, rec := range records {
		if len(rec.Attempts) != 0 {
			t.Errorf("%s failed first: %+v", rec.ID, rec.Attempts)
		}
	}
	if _, err := c.Nomad.Nodes().UpdateDrainOpts(old.NodeID, &nomadapi.DrainOptions{MarkEligible: true}, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "all three have all, and nothing is left", func(context.Context) error {
		if n := q.stream().State.Msgs; n != 0 {
			return fmt.Errorf("%d messages are left", n)
		}
		return q.whole()
	})
}

// Three brokers are replaced one after the other, by an update of the job, while items come in: all are done, once.
func TestThreeBrokersAreReplaced(t *testing.T) {
	harness.Need(t, drivers["docker"].needs...)
	c := cluster.Get(t)
	const name, few = "replaced-docker", 5
	c.Command(t, harness.RetinueBinary(t), "acl", "apply", "broker", "--job", name)
	vars := mergeVars(drivers["docker"].vars(c), map[string]string{"brokers": "3", "count": "2", "drain_seconds": "5"})
	q := run(t, "work-queue", name, 5, vars)
	q.put("worker", 0, few)
	records := q.until(q.ID, few)
	old := map[string]bool{}
	for _, a := range q.in("broker") {
		old[a.ID] = true
	}

	vars["broker_resources"] = "{cpu=201,memory=256}"
	args := []string{"job", "run", "-detach", "-var", "job_name=" + name}
	for key, value := range vars {
		args = append(args, "-var", key+"="+value)
	}
	c.Command(t, harness.NomadBinary(t), append(args, filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue", "work-queue.nomad.hcl"))...)
	began, count, last, longest := time.Now(), few, time.Now(), time.Duration(0)
	for status := ""; status != "successful" && time.Since(began) < 5*time.Minute; count += few {
		q.put("worker", count, few) // again and again until they are confirmed
		deployment, _, err := c.Nomad.Jobs().LatestDeployment(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if status = deployment.Status; status == "failed" || status == "cancelled" {
			t.Fatalf("the update is %s: %s", status, deployment.StatusDescription)
		}
		if n := len(q.records(q.ID)); n > len(records) {
			records, last = q.records(q.ID), time.Now()
		}
		longest = max(longest, time.Since(last))
		time.Sleep(time.Second)
	}
	records = q.until(q.ID, count)
	t.Logf("three brokers were replaced in %v, with %d items put and done meanwhile; none ended for %v at most", time.Since(began).Round(time.Second), count-few, longest.Round(time.Second))
	q.check(records, count)
	for _, a := range q.in("broker") {
		if old[a.ID] {
			t.Errorf("%s was not replaced in %v", a.Name, time.Since(began).Round(time.Second))
		}
	}
	harness.Eventually(t, 30*time.Second, "all three have all, and nothing is left", func(context.Context) error {
		if n := q.stream().State.Msgs; n != 0 {
			return fmt.Errorf("%d messages are left", n)
		}
		return q.whole()
	})
}

// stream asks any of the brokers for the queue.
func (q *queue) stream() *jetstream.StreamInfo {
	q.t.Helper()
	variable, _, err := q.c.Nomad.Variables().Read("nomad/jobs/"+q.ID, nil)
	if err != nil {
		q.t.Fatal(err)
	}
	services, _, err := q.c.Consul.Health().Service(q.ID+"-broker", "", false, nil)
	if err != nil {
		q.t.Fatal(err)
	}
	var urls []string
	for _, s := range services {
		urls = append(urls, "nats://"+s.Service.Address+":"+strconv.Itoa(s.Service.Port))
	}
	var info *jetstream.StreamInfo
	harness.Eventually(q.t, 30*time.Second, "the queue is told", func(ctx context.Context) error {
		for _, url := range urls { // one of them may stand still
			nc, err := nats.Connect(url, nats.UserInfo("retinue", variable.Items["password"]), nats.Timeout(time.Second))
			if err != nil {
				continue
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				return err
			}
			try, cancel := context.WithTimeout(ctx, 2*time.Second)
			st, err := js.Stream(try, "QUEUE_"+q.ID)
			cancel()
			if err == nil && st.CachedInfo().Cluster.Leader != "" {
				info = st.CachedInfo()
				return nil
			}
		}
		return fmt.Errorf("none of %v has it", urls)
	})
	return info
}

// leader is the allocation of the broker that leads the queue.
func (q *queue) leader() *harness.Alloc {
	q.t.Helper()
	name := q.stream().Cluster.Leader
	up := q.in("broker")
	i := slices.IndexFunc(up, func(a *harness.Alloc) bool {
		return strings.HasSuffix(a.Name, "["+strings.TrimPrefix(name, q.ID+"-")+"]")
	})
	if i < 0 {
		q.t.Fatalf("no allocation is broker %s", name)
	}
	return up[i]
}

// whole says whether all three have all.
func (q *queue) whole() error {
	peers := q.stream().Cluster.Replicas
	for _, p := range peers {
		if !p.Current || p.Offline {
			return fmt.Errorf("%s is behind: %+v", p.Name, *p)
		}
	}
	if len(peers) != 2 {
		return fmt.Errorf("%d copies", 1+len(peers))
	}
	return nil
}

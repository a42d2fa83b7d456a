// Package workqueue_test runs the work queue jobspecs on a dev cluster, as a
// person would, and breaks what runs: with ACLs on, on every driver, every item
// has exactly one right output.
package workqueue_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/internal/demo/workqueue"
	"retinue/internal/devcluster"
	"retinue/tests/brokers"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) {
	brokers.Main() // the test binary is the broker that kind kafka is
	harness.Main(m)
}

var cluster = harness.Share(func(t harness.T) *harness.Cluster {
	return harness.RunCluster(t, devcluster.Config{Servers: 1, Clients: 3, ACL: true})
})

// drivers are the ways to run a task, with what each needs of the machine.
var drivers = map[string]struct {
	needs []harness.Feature
	vars  func(c *harness.Cluster) map[string]string
}{
	"docker": {
		needs: []harness.Feature{harness.Root, harness.Docker, harness.CNI},
		vars: func(*harness.Cluster) map[string]string {
			return map[string]string{"driver": "docker", "network_mode": "bridge", "retinue_command": "/usr/local/bin/retinue"}
		},
	},
	"exec": {
		needs: []harness.Feature{harness.Root, harness.CNI},
		vars: func(*harness.Cluster) map[string]string {
			return map[string]string{"driver": "exec", "network_mode": "bridge", "retinue_command": "/usr/local/bin/retinue"}
		},
	},
	"raw_exec": {
		vars: func(c *harness.Cluster) map[string]string {
			return map[string]string{"driver": "raw_exec", "network_mode": "host", "retinue_command": c.Dir() + "/bin/retinue"}
		},
	},
}

// queue is a job under test.
type queue struct {
	*harness.Job
	t *testing.T
	c *harness.Cluster
}

// run gives a job its rights and its password, as the README says, and starts it.
func run(t *testing.T, pattern, id string, allocs int, vars map[string]string) *queue {
	t.Helper()
	return runWith(t, pattern, id, allocs, vars, map[string]string{"password": rand.Text()})
}

// runWith is run with other secrets.
func runWith(t *testing.T, pattern, id string, allocs int, vars, secrets map[string]string) *queue {
	t.Helper()
	c := cluster.Get(t)
	if err := coordinator.Allow(c.Consul, id); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Consul.KV().DeleteTree("retinue/queues/"+id+"/", nil); err != nil { // of an earlier run of the same test
		t.Fatal(err)
	}
	secret := &nomadapi.Variable{Path: "nomad/jobs/" + id, Items: secrets}
	if _, _, err := c.Nomad.Variables().Update(secret, nil); err != nil {
		t.Fatal(err)
	}
	return &queue{Job: c.RunAllocs(t, pattern, id, allocs, vars), t: t, c: c}
}

// in lists the running allocations of a group.
func (q *queue) in(group string) []*harness.Alloc {
	q.t.Helper()
	return slices.DeleteFunc(q.Allocs(), func(a *harness.Alloc) bool { return a.TaskGroup != group })
}

// retinue runs a verb beside a coordinator of a group, as soon as one answers.
func (q *queue) retinue(group, stdin string, args ...string) (out string) {
	q.t.Helper()
	harness.Eventually(q.t, time.Minute, "retinue "+strings.Join(args, " "), func(ctx context.Context) error {
		up := q.in(group)
		if len(up) == 0 {
			return fmt.Errorf("nothing of group %s runs", group)
		}
		task := "coordinator"
		if group == "scaler" {
			task = group
		}
		cmd := exec.CommandContext(ctx, harness.NomadBinary(q.t), append([]string{"alloc", "exec", "-i", "-t=false", "-task", task, up[0].ID, q.command()}, args...)...)
		cmd.Env, cmd.Stdin = q.c.EnvList(), strings.NewReader(stdin)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, stderr.String())
		}
		if out = stdout.String(); err == nil && out == "" {
			err = errors.New("no output") // nomad alloc exec may lose that of a command that ends at once; all of ours can be repeated
		}
		return err
	})
	return out
}

// command is the binary as the job's tasks see it.
func (q *queue) command() string {
	if strings.HasSuffix(q.ID, "raw-exec") {
		return q.c.Dir() + "/bin/retinue"
	}
	return "/usr/local/bin/retinue"
}

// text is the payload of item i, different for each.
func text(i int) string { return strings.Repeat(fmt.Sprintf("line %d\n", i), 1+i%50) }

func id(i int) string { return fmt.Sprintf("item-%03d", i) }

// put publishes count items, from the one with this number on.
func (q *queue) put(group string, from, count int) {
	q.t.Helper()
	var lines strings.Builder
	for i := from; i < from+count; i++ {
		data, err := json.Marshal(map[string]string{"id": id(i), "body": text(i)})
		if err != nil {
			q.t.Fatal(err)
		}
		lines.Write(append(data, '\n'))
	}
	if out := q.retinue(group, lines.String(), "queue", "put", "--lines", "-"); !strings.Contains(out, fmt.Sprint(count)) {
		q.t.Fatalf("put: %s", out)
	}
}

// records reads what the commit point has for a stage, and holds that none was written twice.
func (q *queue) records(stage string) map[string]item.Record {
	q.t.Helper()
	prefix := "retinue/queues/" + q.ID + "/commit/" + stage + "/"
	pairs, _, err := q.c.Consul.KV().List(prefix, nil)
	if err != nil {
		q.t.Fatal(err)
	}
	records := map[string]item.Record{}
	for _, pair := range pairs {
		var rec item.Record
		if err := json.Unmarshal(pair.Value, &rec); err != nil {
			q.t.Fatal(err)
		}
		if pair.CreateIndex != pair.ModifyIndex {
			q.t.Errorf("the record of %s was written again", rec.ID)
		}
		records[rec.ID] = rec
	}
	return records
}

// until waits for count records of a stage.
func (q *queue) until(stage string, count int) map[string]item.Record {
	q.t.Helper()
	began := time.Now()
	harness.Eventually(q.t, 2*time.Minute, fmt.Sprintf("%d items of %s have ended", count, stage), func(context.Context) error {
		n := len(q.records(stage))
		if n >= count {
			return nil
		}
		err := fmt.Errorf("%d have", n)
		if time.Since(began) > 100*time.Second { // it will not come: say where it hangs
			for _, group := range q.groups() {
				err = fmt.Errorf("%w\n%s: %s%s", err, group, q.retinue(group, "", "queue", "stats"), q.retinue(group, "", "queue", "ls"))
			}
		}
		return err
	})
	return q.records(stage)
}

// groups are those with a coordinator.
func (q *queue) groups() (names []string) {
	for _, a := range q.Allocs() {
		if a.TaskGroup != "broker" && a.TaskGroup != "scaler" && !slices.Contains(names, a.TaskGroup) {
			names = append(names, a.TaskGroup)
		}
	}
	return names
}

// check holds that each item is done, once, with the right summary.
func (q *queue) check(records map[string]item.Record, count int) {
	q.t.Helper()
	if len(records) != count {
		q.t.Errorf("%d records of %d items", len(records), count)
	}
	for i := range count {
		rec := records[id(i)]
		var got workqueue.Summary
		if err := json.Unmarshal(rec.Result, &got); rec.State != item.Done || err != nil {
			q.t.Errorf("%s is %q, %v: %s", id(i), rec.State, err, rec.Result)
			continue
		}
		sum := sha256.Sum256([]byte(text(i)))
		if got.SHA256 != hex.EncodeToString(sum[:]) {
			q.t.Errorf("%s: the output is another item's: %+v", id(i), got)
		}
	}
}

// drain empties a node, and gives it back at the end of the test.
func (q *queue) drain(a *harness.Alloc) {
	q.t.Helper()
	nodes := q.c.Nomad.Nodes()
	q.t.Cleanup(func() {
		if _, err := nodes.UpdateDrainOpts(a.NodeID, &nomadapi.DrainOptions{MarkEligible: true}, nil); err != nil {
			q.t.Errorf("end the drain: %v", err)
		}
	})
	if _, err := nodes.UpdateDrainOpts(a.NodeID, &nomadapi.DrainOptions{DrainSpec: &nomadapi.DrainSpec{Deadline: time.Minute}}, nil); err != nil {
		q.t.Fatalf("drain: %v", err)
	}
}

// Items go in and come out, on each driver, while worker and coordinator are killed and the broker's node is drained.
func TestWorkQueue(t *testing.T) {
	for driver, on := range drivers {
		t.Run(driver, func(t *testing.T) {
			harness.Need(t, on.needs...)
			const count = 200
			c := cluster.Get(t)
			vars := on.vars(c)
			vars["count"], vars["drain_seconds"] = "2", "10"
			q := run(t, "work-queue", "queue-"+strings.ReplaceAll(driver, "_", "-"), 3, vars)

			var one struct {
				State  string
				Result workqueue.Summary
			}
			out := q.retinue("worker", "to be or not to be\n", "queue", "put", "--id", "first", "--wait", "30s", "--json")
			if err := json.Unmarshal([]byte(out), &one); err != nil || one.State != "done" || one.Result.Words != 6 {
				t.Fatalf("%v: %s", err, out)
			}

			q.put("worker", 0, count/2)
			q.until(q.ID, 10)
			t.Log("kill -9 of a worker, and of a coordinator")
			q.Kill(q.in("worker")[0], "worker")
			q.until(q.ID, 30)
			q.Kill(q.in("worker")[0], "coordinator")
			q.until(q.ID, 50)
			t.Log("kill -9 of the broker")
			q.Kill(q.in("broker")[0], "broker")
			q.until(q.ID, 70)
			t.Log("the broker's node is drained: the messages go with it")
			q.put("worker", count/2, count/2)
			old := q.in("broker")[0]
			q.drain(old)
			harness.Eventually(t, time.Minute, "the broker has moved", func(context.Context) error {
				if now := q.in("broker"); len(now) != 1 || now[0].ID == old.ID {
					return fmt.Errorf("%d run", len(now))
				}
				return nil
			})
			records := q.until(q.ID, count+1)
			delete(records, "first")
			q.check(records, count)
			if out := q.retinue("worker", "", "queue", "dead", "ls", "--json"); strings.TrimSpace(out) != "[]" && strings.TrimSpace(out) != "null" {
				t.Errorf("there are dead letters: %s", out)
			}
			// The same item again is known, and not executed again.
			if out := q.retinue("worker", "to be or not to be\n", "queue", "put", "--id", "first", "--wait", "30s"); !strings.Contains(out, "attempt 1") || len(q.records(q.ID)) != count+1 {
				t.Errorf("repeated: %s", out)
			}
			stats := c.Action(t, q.ID, "-group", "worker", "-task", "coordinator", "-alloc", q.in("worker")[0].ID, "stats")
			if !strings.Contains(stats, q.ID) || !strings.Contains(stats, "running") {
				t.Errorf("action stats:\n%s", stats)
			}
		})
	}
}

// A stage drains with what it has in hand: an item that runs when its node is drained ends there, in its first attempt.
func TestDrainEndsWhatRuns(t *testing.T) {
	c := cluster.Get(t)
	vars := drivers["raw_exec"].vars(c)
	vars["count"], vars["slots"], vars["drain_seconds"] = "1", "1", "15"
	vars["worker_command"], vars["worker_args"] = "/bin/sh", `["-c", "sleep 3; cat"]`
	q := run(t, "work-queue", "drained-raw-exec", 2, vars)
	q.retinue("worker", "slow", "queue", "put", "--id", "slow", "-")
	harness.Eventually(t, 30*time.Second, "the item runs", func(context.Context) error {
		if out := q.retinue("worker", "", "queue", "ls"); !strings.Contains(out, "running") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	q.drain(q.in("worker")[0])
	rec := q.until(q.ID, 1)["slow"]
	if rec.State != item.Done || rec.N != 1 || string(rec.Result) != "slow" || len(rec.Attempts) != 0 {
		t.Errorf("%+v", rec)
	}
}

// Three stages of the pipeline find the most frequent words, each item once in each. Two of them scale themselves, from none and back, with
// one scaler that has the rights of a scaler.
func TestPipeline(t *testing.T) {
	c := cluster.Get(t)
	const count = 40
	allow(t, c, "scaler", "pipeline-raw-exec")
	vars := mergeVars(drivers["raw_exec"].vars(c), map[string]string{"max_count": "{ words = 2, count = 1 }", "target_drain": "2s", "scale_cooldown": "4s", "drain_seconds": "5",
		"stages": `[{ name = "words", count = 0, slots = 4, image = "", command = "", args = ["words"] }, { name = "count", count = 0, slots = 4, image = "", command = "", args = ["count"] },
			{ name = "top", count = 1, slots = 4, image = "", command = "", args = ["top"] }]`})
	q := run(t, "work-queue-pipeline", "pipeline-raw-exec", 3, vars)
	q.put("scaler", 0, count)
	q.until(q.ID+"-words", 5)
	for group, task := range map[string]string{"words": "coordinator", "count": "worker"} {
		harness.Eventually(t, time.Minute, "somebody works in "+group, func(context.Context) error {
			up := q.in(group)
			if len(up) == 0 {
				return errors.New("nobody")
			}
			q.Kill(up[0], task)
			return nil
		})
	}
	for _, stage := range []string{"words", "count", "top"} {
		if records := q.until(q.ID+"-"+stage, count); len(records) != count {
			t.Errorf("stage %s has %d records of %d items", stage, len(records), count)
		}
	}
	for i := range count {
		key := id(i) + "/" + q.ID + "-words/0/" + q.ID + "-count/0"
		rec := q.records(q.ID + "-top")[key]
		if want := fmt.Sprintf(`[{"word":"line","count":%d}]`, 1+i%50); rec.State != item.Done || strings.TrimSpace(string(rec.Result)) != want {
			t.Errorf("%s is %q: %s, want %s", key, rec.State, rec.Result, want)
		}
	}
	harness.Eventually(t, time.Minute, "nobody works in the stages that scale", func(context.Context) error {
		if words, count, top := q.in("words"), q.in("count"), q.in("top"); len(words)+len(count) != 0 || len(top) != 1 {
			return fmt.Errorf("%d, %d and %d work", len(words), len(count), len(top))
		}
		return nil
	})
	why := c.Action(t, q.ID, "-group", "scaler", "-task", "scaler", "scale")
	for _, part := range []string{q.ID + "-words  group words: ", q.ID + "-count  group count: ", "0 to 2 workers", "0 to 1 workers"} {
		if !strings.Contains(why, part) {
			t.Errorf("the action says nothing of %q:\n%s", part, why)
		}
	}
}

// A worker that speaks HTTP, on a broker of one's own.
func TestHTTPWorkerAndOwnBroker(t *testing.T) {
	harness.Need(t, harness.Program("python3", true))
	c := cluster.Get(t)
	addr := "127.0.0.1:" + freePort(t)
	harness.Start(t, harness.Spec{Name: "broker", Path: c.Dir() + "/bin/retinue-broker", Args: []string{"--data", t.TempDir(), "--listen", addr}})
	const script = `
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).upper()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    def get_request(self): return super().get_request()[0], ("", 0)
path = os.environ["RETINUE_WORKER_LISTEN"].removeprefix("unix://")
if os.path.exists(path): os.unlink(path)  # of an earlier process
Server(path, Handler).serve_forever()`
	args, err := json.Marshal([]string{"-c", script})
	if err != nil {
		t.Fatal(err)
	}
	vars := drivers["raw_exec"].vars(c)
	vars["count"], vars["mode"], vars["queue_url"], vars["worker_command"], vars["worker_args"] = "1", "http", "nats://"+addr, "python3", string(args)
	q := run(t, "work-queue", "http-raw-exec", 1, vars)
	if out := q.retinue("worker", "shout", "queue", "put", "--id", "a", "--wait", "30s"); !strings.Contains(out, "result SHOUT") {
		t.Errorf("%s", out)
	}
	q.Signal(q.in("worker")[0], "worker", syscall.SIGKILL)
	if out := q.retinue("worker", "again", "queue", "put", "--id", "b", "--wait", "40s"); !strings.Contains(out, "result AGAIN") {
		t.Errorf("after the worker's death: %s", out)
	}
}

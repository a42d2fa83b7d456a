package workqueue_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/tests/harness"
)

// One Nomad job for each item, made by a coordinator that is a Nomad job itself and has nothing but its workload identity: files are
// compressed while the coordinator is killed with children under way, a child is killed, and the node of others is lost. Each item is done once,
// no attempt is dispatched twice, and there are never more children than there may be.
func TestDispatch(t *testing.T) {
	c := cluster.Get(t)
	const slots, parent, name = 3, "dispatch-one", "dispatch-raw-exec"
	shared := t.TempDir()
	gate := filepath.Join(shared, "gate")
	d := &dispatching{t: t, c: c, parent: parent}
	d.run(shared, fmt.Sprintf("until test -e %s; do sleep 0.1; done; exec gzip -9 -n -c", gate))
	allow(t, c, "coordinator", name)
	vars := drivers["raw_exec"].vars(c)
	vars["mode"], vars["dispatch_job"], vars["work"], vars["done"] = "dispatch", parent, filepath.Join(shared, "work"), filepath.Join(shared, "done")
	config := filepath.Join(shared, "queue.hcl") // the killed child's successor is lost with its node
	if err := os.WriteFile(config, []byte("work_queue \""+name+"\" {\n  retry {\n    crash_attempts = 5\n  }\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	vars["count"], vars["slots"], vars["coordinator_env"] = "1", fmt.Sprint(slots), fmt.Sprintf(`{ RETINUE_COORDINATOR_LEASE = "3s", RETINUE_COORDINATOR_CONFIG = %q }`, config)
	q := run(t, "work-queue", name, 2, vars)

	// Children may run where neither the coordinator nor the broker is, so that their node can be lost.
	var kept, lost []string
	for _, a := range q.Allocs() {
		kept = append(kept, a.NodeID)
	}
	for id, node := range d.nodes() {
		if !slices.Contains(kept, id) {
			lost = append(lost, node)
			continue
		}
		d.eligible(id, false)
	}
	files := realFiles(t, 8)
	for i, body := range files {
		q.retinue("worker", string(body), "queue", "put", "--id", id(i), "-")
	}
	// What a coordinator leaves when it is killed runs on, and its successor begins with other items, until there are as many children as may be.
	d.until(slots, "a child in each slot")
	for _, want := range []int{2 * slots, 2 * slots} {
		t.Log("kill -9 of the coordinator")
		q.Kill(q.in("worker")[0], "coordinator")
		d.until(want, "its successor has made children")
		harness.Eventually(t, time.Minute, "it has items in hand", func(context.Context) error {
			var items []coordinator.Item
			if err := json.Unmarshal([]byte(q.retinue("worker", "", "queue", "ls", "--json")), &items); err != nil {
				return err
			}
			running := slices.DeleteFunc(items, func(it coordinator.Item) bool { return it.State != item.Running })
			if len(running) < slots {
				return fmt.Errorf("%d run", len(running))
			}
			return nil
		})
	}

	t.Log("kill -9 of a child")
	killed := d.killOne()
	d.ended(killed)

	t.Logf("loss of %v, where the children run", lost)
	before := d.living()
	for _, node := range lost {
		if err := c.LoseNode(context.Background(), node); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.ReturnNode(context.Background(), node); err != nil {
				t.Errorf("%v", err)
			}
		})
	}
	d.down(lost)
	for id := range d.nodes() {
		d.eligible(id, true)
	}
	if err := os.WriteFile(gate, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	attempts := 0
	for i, body := range files {
		var it coordinator.Item
		harness.Eventually(t, 2*time.Minute, id(i)+" is done", func(context.Context) error {
			if err := json.Unmarshal([]byte(q.retinue("worker", "", "queue", "show", id(i), "--json")), &it); err != nil || !it.State.Ended() {
				return errors.Join(err, fmt.Errorf("it is %s", it.State))
			}
			return nil
		})
		if it.State != item.Done {
			t.Errorf("%s is %s: %+v", it.ID, it.State, it.Attempts)
			continue
		}
		attempts += it.Attempt
		if got := unzip(t, filepath.Join(shared, "done", name, id(i), "stdout")); !bytes.Equal(got, body) {
			t.Errorf("%s: %d bytes came out, want those %d that went in", it.ID, len(got), len(body))
		}
	}
	// A child that was killed or lost is an attempt, and has a successor; nothing else was dispatched again.
	lostChildren := d.lost()
	if len(lostChildren) < len(before) {
		t.Errorf("%v were lost, want at least %v", lostChildren, before)
	}
	if n, want := len(d.children()), len(files)+1+len(lostChildren); n != want || attempts != want {
		t.Errorf("%d children and %d attempts for %d items, a killed child (%s) and %d lost ones", n, attempts, len(files), killed, len(lostChildren))
	}
	d.once()
	if d.most > 2*slots {
		t.Errorf("%d children at once, and %d are allowed", d.most, 2*slots)
	}
}

// dispatching is the parameterized job of a test.
type dispatching struct {
	t      *testing.T
	c      *harness.Cluster
	parent string
	most   int // living children at once, as far as they were looked at
}

// run submits the job: a shell script for each item.
func (d *dispatching) run(dir, script string) {
	d.t.Helper()
	args, err := json.Marshal([]string{"-c", script})
	if err != nil {
		d.t.Fatal(err)
	}
	spec := filepath.Join(harness.RepoRoot(d.t), "jobspecs", "work-queue-dispatch", "work-queue-dispatch.nomad.hcl")
	d.c.Command(d.t, harness.NomadBinary(d.t), "job", "run", "-detach", "-var", "job_name="+d.parent, "-var", "driver=raw_exec", "-var", "network_mode=host",
		"-var", "retinue_command="+d.c.Dir()+"/bin/retinue", "-var", "worker_command=/bin/sh", "-var", "worker_args="+string(args), "-var", "worker_resources={ cpu = 50, memory = 64 }", spec)
	d.t.Cleanup(func() {
		for _, child := range d.children() {
			if _, _, err := d.c.Nomad.Jobs().Deregister(child.ID, true, nil); err != nil {
				d.t.Errorf("purge %s: %v", child.ID, err)
			}
		}
		if _, _, err := d.c.Nomad.Jobs().Deregister(d.parent, true, nil); err != nil {
			d.t.Errorf("purge %s: %v", d.parent, err)
		}
	})
}

func (d *dispatching) children() []*nomadapi.JobListStub {
	d.t.Helper()
	stubs, _, err := d.c.Nomad.Jobs().PrefixList(d.parent + "/dispatch-")
	if err != nil {
		d.t.Fatal(err)
	}
	living := 0
	for _, stub := range stubs {
		if stub.Status != "dead" {
			living++
		}
	}
	d.most = max(d.most, living)
	return stubs
}

func (d *dispatching) living() (ids []string) {
	for _, child := range d.children() {
		if child.Status != "dead" {
			ids = append(ids, child.ID)
		}
	}
	return ids
}

// lost lists the children whose node was lost.
func (d *dispatching) lost() (ids []string) {
	d.t.Helper()
	for _, child := range d.children() {
		allocs, _, err := d.c.Nomad.Jobs().Allocations(child.ID, true, nil)
		if err != nil {
			d.t.Fatal(err)
		}
		if slices.ContainsFunc(allocs, func(a *nomadapi.AllocationListStub) bool { return a.ClientStatus == nomadapi.AllocClientStatusLost }) {
			ids = append(ids, child.ID)
		}
	}
	return ids
}

// once holds that no attempt of an item has two children.
func (d *dispatching) once() {
	d.t.Helper()
	of := map[string]string{}
	for _, child := range d.children() {
		job, _, err := d.c.Nomad.Jobs().Info(child.ID, nil)
		if err != nil {
			d.t.Fatal(err)
		}
		attempt := job.Meta["retinue_item"] + ", attempt " + job.Meta["retinue_attempt"]
		if other := of[attempt]; other != "" {
			d.t.Errorf("%s has the children %s and %s", attempt, other, child.ID)
		}
		of[attempt] = child.ID
	}
}

// until waits for so many children.
func (d *dispatching) until(count int, what string) {
	d.t.Helper()
	harness.Eventually(d.t, time.Minute, what, func(context.Context) error {
		if n := len(d.children()); n != count {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
}

// ended waits for the end of a child.
func (d *dispatching) ended(id string) {
	d.t.Helper()
	harness.Eventually(d.t, 2*time.Minute, id+" has ended", func(context.Context) error {
		if slices.Contains(d.living(), id) {
			return errors.New("it lives")
		}
		return nil
	})
}

// killOne kills the process of a child that runs.
func (d *dispatching) killOne() (id string) {
	d.t.Helper()
	harness.Eventually(d.t, time.Minute, "a child runs and is killed", func(context.Context) error {
		for _, child := range d.living() {
			allocs, _, err := d.c.Nomad.Jobs().Allocations(child, false, nil)
			if err != nil || len(allocs) == 0 || allocs[0].ClientStatus != "running" {
				continue
			}
			if err := d.c.Nomad.Allocations().Signal(&nomadapi.Allocation{ID: allocs[0].ID}, nil, "worker", "SIGKILL"); err == nil {
				id = child
				return nil
			}
		}
		return errors.New("none runs")
	})
	return id
}

// nodes maps the IDs of the nodes to their names.
func (d *dispatching) nodes() map[string]string {
	d.t.Helper()
	stubs, _, err := d.c.Nomad.Nodes().List(nil)
	if err != nil {
		d.t.Fatal(err)
	}
	names := map[string]string{}
	for _, stub := range stubs {
		names[stub.ID] = stub.Name
	}
	return names
}

// down waits until Nomad has given nodes up.
func (d *dispatching) down(names []string) {
	d.t.Helper()
	harness.Eventually(d.t, 2*time.Minute, "Nomad gives the nodes up", func(context.Context) error {
		stubs, _, err := d.c.Nomad.Nodes().List(nil)
		for _, stub := range stubs {
			if slices.Contains(names, stub.Name) && stub.Status != nomadapi.NodeStatusDown {
				err = errors.Join(err, fmt.Errorf("%s is %s", stub.Name, stub.Status))
			}
		}
		return err
	})
}

// eligible says whether a node gets new allocations.
func (d *dispatching) eligible(node string, is bool) {
	d.t.Helper()
	if _, err := d.c.Nomad.Nodes().ToggleEligibility(node, is, nil); err != nil {
		d.t.Fatal(err)
	}
	if !is {
		d.t.Cleanup(func() { d.eligible(node, true) })
	}
}

// realFiles are some text files of this project.
func realFiles(t *testing.T, count int) (files [][]byte) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(harness.RepoRoot(t), "jobspecs", "*", "*.hcl"))
	if err != nil || len(paths) < count {
		t.Fatalf("%d files, %v", len(paths), err)
	}
	for _, path := range paths[:count] {
		data, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(data), "\n") {
			t.Fatalf("%s: %d bytes, %v", path, len(data), err)
		}
		files = append(files, data)
	}
	return files
}

func unzip(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return nil
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
	return data
}

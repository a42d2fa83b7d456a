// Package scattergather_test runs the scatter/gather jobspecs on a dev cluster,
// as a person would, and breaks what runs: with ACLs on, on every driver, an
// answer is whole or says what it lacks.
package scattergather_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/gather"
	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

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

// search is a job under test, seen through its root.
type search struct {
	*harness.Job
	t    *testing.T
	c    *harness.Cluster
	root string // address
}

// answer is what a client gets.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) coverage() string { return a.header.Get("Retinue-Coverage") }

// run starts a job with the right to read its leaves, and waits until its root is ready.
func run(t *testing.T, pattern, id string, allocs int, reads []string, vars map[string]string) *search {
	t.Helper()
	c := cluster.Get(t)
	if err := gather.Allow(c.Consul, id, reads...); err != nil {
		t.Fatal(err)
	}
	s := &search{Job: c.RunAllocs(t, pattern, id, allocs, vars), t: t, c: c}
	harness.Eventually(t, 2*time.Minute, "the root of "+id+" is ready", func(context.Context) error {
		roots, _, err := c.Consul.Health().Service(id, "", true, nil)
		if err == nil && len(roots) == 0 {
			err = errors.New("no instance passes its check")
		}
		if err == nil {
			s.root = fmt.Sprintf("%s:%d", roots[0].Service.Address, roots[0].Service.Port)
		}
		return err
	})
	return s
}

func (s *search) ask(words string) answer {
	s.t.Helper()
	a, err := s.try(s.t.Context(), words)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *search) try(ctx context.Context, words string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.root+"/q?k=10&q="+strings.ReplaceAll(words, " ", "+"), nil)
	if err != nil {
		return answer{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

// until waits for an answer with this status and coverage; "" for an error, which covers nothing.
func (s *search) until(status int, coverage string) (a answer) {
	s.t.Helper()
	harness.Eventually(s.t, time.Minute, fmt.Sprintf("the root of %s answers %d with coverage %s", s.ID, status, coverage), func(ctx context.Context) (err error) {
		a, err = s.try(ctx, "job")
		if err == nil && (a.status != status || coverage != "" && a.coverage() != coverage) {
			err = fmt.Errorf("%d, coverage %s: %s", a.status, a.coverage(), a.body)
		}
		return err
	})
	return a
}

// scale sets the replicas of a shard, once a deployment under way allows it.
func (s *search) scale(group string, count int) {
	s.t.Helper()
	harness.Eventually(s.t, time.Minute, fmt.Sprintf("%s is scaled to %d", group, count), func(context.Context) error {
		_, _, err := s.c.Nomad.Jobs().Scale(s.ID, group, &count, "test", false, nil, &nomadapi.WriteOptions{})
		return err
	})
}

// in lists the running allocations of a group.
func (s *search) in(group string) []*harness.Alloc {
	s.t.Helper()
	return slices.DeleteFunc(s.Allocs(), func(a *harness.Alloc) bool { return a.TaskGroup != group })
}

// lines are the places that an answer of the demo leaf names, in a fixed order.
func lines(t *testing.T, a answer) []string {
	t.Helper()
	var hits []struct {
		File string
		Line int
	}
	if err := json.Unmarshal([]byte(a.body), &hits); a.status != http.StatusOK || err != nil {
		t.Fatalf("%d, %v: %s", a.status, err, a.body)
	}
	var places []string
	for _, h := range hits {
		places = append(places, fmt.Sprintf("%s:%d", h.File, h.Line))
	}
	slices.Sort(places)
	return places
}

// single is the demo leaf over all of its data.
func single(t *testing.T) *search {
	t.Helper()
	h := "127.0.0.1:" + freePort(t)
	harness.Start(t, harness.Spec{Name: "single-leaf", Path: harness.RetinueBinary(t), Args: []string{"demo-app", "scatter-gather"},
		Env: []string{"RETINUE_SHARD=0", "RETINUE_SHARDS=1", "RETINUE_LISTEN=" + h}})
	s := &search{t: t, root: h}
	harness.Eventually(t, 10*time.Second, "the single leaf answers", func(ctx context.Context) error {
		_, err := s.try(ctx, "job")
		return err
	})
	return s
}

// The whole life of a root on each driver: every shard found, a replica frozen, a shard lost and back.
func TestScatterGather(t *testing.T) {
	for driver, on := range drivers {
		t.Run(driver, func(t *testing.T) {
			harness.Need(t, on.needs...)
			c := cluster.Get(t)
			id := "search-" + strings.ReplaceAll(driver, "_", "-")
			vars := on.vars(c)
			vars["shards"], vars["replicas"], vars["merge"], vars["distinct_hosts"] = "3", "2", "json-array", "true"
			s := run(t, "scatter-gather", id, 7, []string{id + "-leaf"}, vars)

			a := s.until(http.StatusOK, "1")
			if shards := a.header.Get("Retinue-Shards"); !strings.HasPrefix(shards, "total=3 ok=3 ") {
				t.Errorf("Retinue-Shards: %s", shards)
			}
			for _, words := range []string{"job", "driver docker", "restart"} {
				if got, want := lines(t, s.ask(words)), lines(t, single(t).ask(words)); len(want) == 0 || !slices.Equal(got, want) {
					t.Errorf("%q: %d lines gathered, %d in one leaf", words, len(got), len(want))
				}
			}

			replicas := s.in("leaf-1")
			if len(replicas) != 2 || replicas[0].NodeName == replicas[1].NodeName {
				t.Errorf("the %d replicas of shard 1 run on %s", len(replicas), replicas[0].NodeName)
			}
			t.Log("one replica of a shard is frozen")
			s.Signal(replicas[0], "leaf", syscall.SIGSTOP)
			for range 20 {
				if a := s.ask("job"); a.status == http.StatusOK && a.coverage() != "1" {
					t.Errorf("a frozen replica takes coverage away in silence: %s", a.coverage())
				}
			}
			s.until(http.StatusOK, "1")
			s.Signal(replicas[0], "leaf", syscall.SIGCONT)

			t.Log("a shard is lost")
			partial := run(t, "scatter-gather", id+"-partial", 1, []string{id + "-leaf"}, with(vars, map[string]string{
				"leaf_service": id + "-leaf", "partial": "coverage(0.5)", "distinct_hosts": "false"}))
			partial.until(http.StatusOK, "1")
			s.scale("leaf-2", 0)
			// For a moment the leaves that have left are asked as a last resort, and the shard has failed.
			harness.Eventually(t, time.Minute, "a problem names the missing shard", func(ctx context.Context) error {
				a, err := s.try(ctx, "job")
				if err == nil && (a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, `"missing"`) || !strings.Contains(a.body, `"shard":2`)) {
					err = fmt.Errorf("%d %s", a.status, a.body)
				}
				return err
			})
			a = partial.until(http.StatusOK, "0.666666")
			if degraded := a.header.Get("Retinue-Degraded"); degraded != "missing" && degraded != "failed" || a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("a partial answer says %v", a.header)
			}
			s.scale("leaf-2", 2)
			s.until(http.StatusOK, "1")
			partial.until(http.StatusOK, "1")

			t.Log("the job's actions")
			root := s.in("root")[0]
			for action, want := range map[string]string{"leaves": "1.0", "slow": "503"} {
				out := c.Action(t, s.ID, "-group", "root", "-task", "gather", "-alloc", root.ID, action)
				if !strings.Contains(out, want) {
					t.Errorf("action %s does not show %q:\n%s", action, want, out)
				}
			}
		})
	}
}

// A deployment replaces every leaf while requests go on: no answer is wrong or partial, and none is refused, also in the moment in
// which Consul's catalog does not yet know the new leaf that Nomad already counts on.
func TestDeployment(t *testing.T) {
	c := cluster.Get(t)
	vars := drivers["raw_exec"].vars(c)
	vars["shards"], vars["replicas"], vars["roots"] = "2", "2", "1"
	s := run(t, "scatter-gather", "deployed", 5, []string{"deployed-leaf"}, vars)
	s.until(http.StatusOK, "1")
	before := s.in("leaf-0")
	ctx, stop := context.WithCancel(t.Context())
	failures := make(chan string, 1)
	asked := 0 // read when failures is closed
	go func() {
		defer close(failures)
		for ctx.Err() == nil {
			a, err := s.try(context.WithoutCancel(ctx), "job")
			if asked++; err != nil || a.status != http.StatusOK || a.coverage() != "1" {
				select {
				case failures <- fmt.Sprintf("%v: %d, coverage %s: %s", err, a.status, a.coverage(), a.body):
				default:
				}
			}
			select { // a person's pace; more would be a load test
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	args := []string{"job", "run", "-detach", "-var", "job_name=deployed", "-var", `leaf_env={RELEASE="2"}`}
	for name, value := range vars {
		args = append(args, "-var", name+"="+value)
	}
	c.Command(t, harness.NomadBinary(t), append(args, harness.RepoRoot(t)+"/jobspecs/scatter-gather/scatter-gather.nomad.hcl")...)
	harness.Eventually(t, 2*time.Minute, "every leaf is replaced", func(context.Context) error {
		d, _, err := c.Nomad.Jobs().LatestDeployment("deployed", nil)
		if err == nil && (d == nil || d.JobVersion == 0 || d.Status != "successful") {
			err = fmt.Errorf("deployment %+v", d)
		}
		return err
	})
	stop()
	for failure := range failures {
		t.Errorf("a request of the deployment's time: %s", failure)
	}
	t.Logf("%d requests", asked)
	for _, old := range before {
		if slices.ContainsFunc(s.in("leaf-0"), func(a *harness.Alloc) bool { return a.ID == old.ID }) {
			t.Errorf("the leaf %s was not replaced", old.ID[:8])
		}
	}
}

// A tree answers as its leaves do, and the coverage goes through its levels.
func TestTree(t *testing.T) {
	c := cluster.Get(t)
	vars := drivers["raw_exec"].vars(c)
	vars["branches"], vars["leaves"], vars["merge"], vars["partial"] = "2", "2", "json-array", "coverage(0.5)"
	s := run(t, "scatter-gather-tree", "tree", 7, []string{"tree-branch", "tree-leaf-0", "tree-leaf-1"}, vars)
	s.until(http.StatusOK, "1")
	if got, want := lines(t, s.ask("driver docker")), lines(t, single(t).ask("driver docker")); !slices.Equal(got, want) {
		t.Errorf("%d lines from the tree, %d from one leaf", len(got), len(want))
	}
	s.scale("leaf-1-1", 0)
	a := s.until(http.StatusOK, "0.75")
	if a.header.Get("Retinue-Degraded") != "partial" {
		t.Errorf("the root says %v", a.header)
	}
	s.scale("leaf-1-1", 1)
	s.until(http.StatusOK, "1")
}

func with(base, more map[string]string) map[string]string {
	all := map[string]string{}
	for _, vars := range []map[string]string{base, more} {
		for name, value := range vars {
			all[name] = value
		}
	}
	return all
}

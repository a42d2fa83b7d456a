// Package compose_test puts patterns around the jobs of somebody who knows
// nothing of them, with the program that users have, and runs the result on
// a cluster with ACLs on.
package compose_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/coordinator"
	"retinue/coordinator/item"
	"retinue/elector"
	"retinue/gather"
	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

var cluster = harness.Share(func(t harness.T) *harness.Cluster {
	return harness.RunCluster(t, devcluster.Config{Servers: 1, Clients: 1, ACL: true})
})

// inject runs `retinue inject` as a person would, and returns the file that it wrote.
func inject(t *testing.T, pattern, spec string, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), pattern+".nomad.hcl")
	cmd := exec.Command(harness.RetinueBinary(t), append([]string{"inject", pattern, spec}, flags...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("retinue inject: %v\n%s", err, stderr.String())
	}
	if err := os.WriteFile(out, stdout.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The user's own jobs. The program in them speaks to its helper and knows nothing of Consul.
const shop = `
variable "driver" { type = string }
variable "network_mode" { type = string }
variable "retinue_image" { type = string }
variable "retinue_command" { type = string }

job "%[1]s" {
  group "web" {
    count = 3

    network {
      mode = var.network_mode
      port "http" {
        to = var.network_mode == "bridge" ? 8080 : 0
      }
    }

    task "app" {
      driver = var.driver

      config {
%[2]s
        command = var.retinue_command
        args    = %[3]s
      }

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
`

// ways are the drivers a job of somebody may have.
var ways = map[string]struct {
	driver, network, image string
	needs                  []harness.Feature
}{
	"docker-bridge": {"docker", "bridge", "        image = var.retinue_image", []harness.Feature{harness.Root, harness.Docker, harness.CNI}},
	"raw-exec-host": {"raw_exec", "host", "", nil},
}

func TestLeaderElectionAroundAJob(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			harness.Need(t, way.needs...)
			c := cluster.Get(t)
			id := "shop-" + name
			if err := elector.Allow(c.Consul, id); err != nil {
				t.Fatal(err)
			}
			spec := inject(t, "leader-election", write(t, "shop.nomad.hcl", fmt.Sprintf(shop, id, way.image, `["demo-app", "leader-election"]`)))
			job := c.RunSpec(t, spec, id, 3, map[string]string{
				"driver": way.driver, "network_mode": way.network, "retinue_command": command(c, way.driver),
				"retinue_elector_lease": "2s", "retinue_elector_elections": `["one"]`,
			})
			first := leads(t, job, "one", "")
			job.Kill(first, "app")
			leads(t, job, "one", first.ID)
			back := exec.Command(harness.RetinueBinary(t), "uninject", spec)
			if out, err := back.Output(); err != nil || bytes.Contains(out, []byte("elector")) {
				t.Errorf("retinue uninject: %v\n%s", err, out)
			}
		})
	}
}

func command(c *harness.Cluster, driver string) string {
	if driver == "raw_exec" {
		return c.Dir() + "/bin/retinue"
	}
	return "/usr/local/bin/retinue"
}

// leads waits until one allocation, other than not, leads an election by its own elector's word.
func leads(t *testing.T, job *harness.Job, election, not string) (leader *harness.Alloc) {
	t.Helper()
	harness.Eventually(t, time.Minute, "one leads "+election, func(ctx context.Context) error {
		leader = nil
		for _, a := range job.Allocs() {
			s, err := a.Elector.State(ctx, election)
			if err != nil {
				return err
			}
			if s.Role == "leader" && a.ID != not {
				leader = a
			}
		}
		if leader == nil {
			return errors.New("nobody does")
		}
		return nil
	})
	return leader
}

func TestScatterGatherAroundAJob(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			harness.Need(t, way.needs...)
			c := cluster.Get(t)
			leaves, id := "leaves-"+name, "search-"+name
			if err := gather.Allow(c.Consul, leaves, leaves+"-leaf"); err != nil {
				t.Fatal(err)
			}
			if err := gather.Allow(c.Consul, id, leaves+"-leaf"); err != nil {
				t.Fatal(err)
			}
			vars := map[string]string{"driver": way.driver, "network_mode": way.network, "retinue_command": command(c, way.driver)}
			leafVars := map[string]string{"shards": "2", "replicas": "1", "roots": "0"}
			for k, v := range vars {
				leafVars[k] = v
			}
			c.RunAllocs(t, "scatter-gather", leaves, 2, leafVars)

			// The main task only waits: the merge is a built-in one.
			spec := inject(t, "scatter-gather", write(t, "search.nomad.hcl", strings.Replace(fmt.Sprintf(shop, id, way.image, `["pause"]`), "count = 3", "count = 1", 1)), "--group", "web", "--task", "app")
			vars["retinue_gather_service"], vars["retinue_gather_shards"], vars["retinue_gather_merge"] = leaves+"-leaf", "2", "top-k(score)"
			vars["retinue_gather_deadline"] = "2s"
			c.RunSpec(t, spec, id, 1, vars)
			harness.Eventually(t, time.Minute, "the root answers for both shards", func(ctx context.Context) error {
				roots, _, err := c.Consul.Health().Service(id, "", true, nil)
				if err != nil || len(roots) == 0 {
					return fmt.Errorf("%d roots, %w", len(roots), err)
				}
				resp, err := http.Get(fmt.Sprintf("http://%s:%d/q?q=restart", roots[0].Service.Address, roots[0].Service.Port))
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Retinue-Coverage"), "1") || !bytes.Contains(body, []byte("restart")) {
					return fmt.Errorf("%d, coverage %s, %v: %s", resp.StatusCode, resp.Header.Get("Retinue-Coverage"), err, body)
				}
				return nil
			})
		})
	}
}

// The worker is a command under `retinue worker`, which claims folders; the broker is that of another job.
func TestWorkQueueAroundAJob(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			harness.Need(t, way.needs...)
			c := cluster.Get(t)
			queue, id := "queue-"+name, "thumbs-"+name
			password := rand.Text()
			for _, job := range []string{queue, id} {
				if err := coordinator.Allow(c.Consul, job); err != nil {
					t.Fatal(err)
				}
				secret := &nomadapi.Variable{Path: "nomad/jobs/" + job, Items: map[string]string{"password": password, "aws_access_key_id": "a", "aws_secret_access_key": "b"}}
				if _, _, err := c.Nomad.Variables().Update(secret, nil); err != nil {
					t.Fatal(err)
				}
			}
			vars := map[string]string{"driver": way.driver, "network_mode": way.network, "retinue_command": command(c, way.driver)}
			brokerVars := map[string]string{"count": "0"}
			for k, v := range vars {
				brokerVars[k] = v
			}
			c.RunAllocs(t, "work-queue", queue, 1, brokerVars)
			var broker string
			harness.Eventually(t, time.Minute, "the broker is in Consul's catalog", func(context.Context) error {
				up, _, err := c.Consul.Health().Service(queue+"-broker", "", true, nil)
				if err != nil || len(up) == 0 {
					return fmt.Errorf("%d instances, %v", len(up), err)
				}
				broker = fmt.Sprintf("%s:%d", up[0].Service.Address, up[0].Service.Port)
				return nil
			})

			worker := fmt.Sprintf(`[%q, %q, %q, %q, %q]`, "worker", "--", command(c, way.driver), "demo-app", "work-queue")
			spec := inject(t, "work-queue", write(t, "thumbs.nomad.hcl", fmt.Sprintf(shop, id, way.image, worker)))
			vars["retinue_queue_mode"] = "watch"
			vars["retinue_queue_url"] = `nats://retinue:{{ with nomadVar "nomad/jobs/` + id + `" }}{{ .password }}{{ end }}@` + broker
			vars["retinue_queue_aws_credentials"], vars["retinue_queue_keep"] = "true", "7d" // without the key in the variable its tasks would wait
			vars["retinue_queue_config"] = "schedule \"nightly\" {\n  cron = \"30 3 * * *\"\n}"
			job := c.RunSpec(t, spec, id, 3, vars)
			put := exec.CommandContext(t.Context(), harness.NomadBinary(t), "alloc", "exec", "-i", "-t=false", "-task", "coordinator", job.Allocs()[0].ID, vars["retinue_command"], "queue", "put", "--lines", "-")
			var lines strings.Builder
			const items = 30
			for i := range items {
				fmt.Fprintf(&lines, "{\"id\": \"item-%d\", \"body\": \"some words %d\"}\n", i, i)
			}
			put.Stdin, put.Env = strings.NewReader(lines.String()), c.EnvList()
			if out, err := put.CombinedOutput(); err != nil {
				t.Fatalf("put: %v\n%s", err, out)
			}
			job.Kill(job.Allocs()[1], "coordinator")
			harness.Eventually(t, 90*time.Second, "every item is done, once", func(context.Context) error {
				pairs, _, err := c.Consul.KV().List("retinue/queues/"+id+"/commit/", nil)
				if err != nil {
					return err
				}
				done := 0
				for _, p := range pairs {
					var rec item.Record
					if err := json.Unmarshal(p.Value, &rec); err != nil {
						return err
					}
					if rec.State == item.Done && p.CreateIndex == p.ModifyIndex && bytes.Contains(rec.Result, []byte("sha256")) {
						done++
					}
				}
				if done != items || len(pairs) != items {
					return fmt.Errorf("%d of %d records are done", done, len(pairs))
				}
				return nil
			})
			harness.Eventually(t, time.Minute, "the coordinator has the configuration that the job gives it", func(context.Context) error { // nomad alloc exec may lose the output
				if out := c.Command(t, harness.NomadBinary(t), "alloc", "exec", "-i=false", "-t=false", "-task", "coordinator", job.Allocs()[0].ID, vars["retinue_command"], "queue", "schedule", "ls"); !strings.Contains(out, "nightly") {
					return fmt.Errorf("schedules: %q", out)
				}
				return nil
			})
		})
	}
}

package workqueue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/coordinator/item"
	"retinue/coordinator/scale"
	"retinue/tests/harness"
)

// allow gives a helper of a job its rights, as the README says.
func allow(t *testing.T, c *harness.Cluster, pattern, id string) {
	t.Helper()
	for _, where := range [][]string{nil, {"--nomad"}} {
		c.Command(t, harness.RetinueBinary(t), append([]string{"acl", "apply", pattern, "--job", id}, where...)...)
	}
}

// exec runs a command in a task of an allocation.
func (q *queue) exec(ctx context.Context, alloc, task string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, harness.NomadBinary(q.t), append([]string{"alloc", "exec", "-i=false", "-t=false", "-task", task, alloc}, args...)...)
	cmd.Env = q.c.EnvList()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.String())
	}
	if stdout.Len() == 0 {
		return "", errors.New("no output") // nomad alloc exec may lose that of a command that ends at once
	}
	return stdout.String(), nil
}

// scaling asks a scaler of the job.
func (q *queue) scaling(a *harness.Alloc) (st scale.Status) {
	q.t.Helper()
	harness.Eventually(q.t, time.Minute, "a scaler answers", func(ctx context.Context) error {
		out, err := q.exec(ctx, a.ID, "scaler", q.command(), "queue", "scale", "--json")
		var all []scale.Status
		if jsonErr := json.Unmarshal([]byte(out), &all); jsonErr != nil || len(all) == 0 { // it exits with 1 in trouble
			return errors.Join(err, jsonErr, errors.New("nothing scales"))
		}
		st = all[0]
		return nil
	})
	return st
}

// The job scales itself, with ACLs on, on each driver: nobody works, the first item comes, then many, the leading scaler is killed; all is
// done once, and nobody works again.
func TestScalesItself(t *testing.T) {
	for driver, on := range drivers {
		t.Run(driver, func(t *testing.T) {
			harness.Need(t, on.needs...)
			const count, most = 60, 4
			c := cluster.Get(t)
			name := "scaled-" + strings.ReplaceAll(driver, "_", "-")
			allow(t, c, "scaler", name)
			vars := on.vars(c)
			for key, value := range map[string]string{"count": "0", "max_count": fmt.Sprint(most), "slots": "1", "target_drain": "4s", "scale_cooldown": "6s", "scalers": "2", "drain_seconds": "5",
				"worker_resources": `{ cpu = 50, memory = 64 }`, "coordinator_resources": `{ cpu = 50, memory = 64 }`, "worker_command": "/bin/sh", "worker_args": `["-c", "sleep 1; cat"]`} {
				vars[key] = value
			}
			if driver != "raw_exec" { // an image or a chroot with nothing but retinue in it has no shell
				vars["worker_command"], vars["worker_args"] = "", `["summary"]`
			}
			q := run(t, "work-queue", name, 3, vars)
			leader := func() (leads *harness.Alloc) {
				t.Helper()
				harness.Eventually(t, time.Minute, "a scaler leads", func(context.Context) error {
					for _, a := range q.in("scaler") {
						if st := q.scaling(a); st.Leader == st.Scaler {
							leads = a
							return nil
						}
					}
					return errors.New("nobody leads")
				})
				return leads
			}
			harness.Eventually(t, time.Minute, "a scaler leads, and sees that there is nothing to do", func(context.Context) error {
				a := leader()
				if st := q.scaling(a); st.Decision == nil || st.Decision.Count != 0 || st.Trouble != "" {
					return fmt.Errorf("%+v", st)
				}
				return nil
			})
			if n := len(q.in("worker")); n != 0 {
				t.Errorf("%d workers without an item", n)
			}

			began := time.Now()
			q.put("scaler", 0, 1)
			returned := time.Now()
			harness.Eventually(t, 2*time.Minute, "the first item is done", func(context.Context) error {
				if len(q.records(q.ID)) == 0 {
					return errors.New("not yet")
				}
				return nil
			})
			for _, rec := range q.records(q.ID) {
				t.Logf("from none to the end of the first item: %.2f s after the command that published it was called, %.2f s after it returned", rec.Ended.Sub(began).Seconds(), rec.Ended.Sub(returned).Seconds())
			}

			if driver == "raw_exec" { // its items take a second each, so that there is work for many
				q.put("scaler", 1, count-1)
				harness.Eventually(t, 2*time.Minute, "as many workers as may be", func(context.Context) error {
					if n := len(q.in("worker")); n != most {
						return fmt.Errorf("%d work", n)
					}
					return nil
				})
				q.Kill(leader(), "scaler")
			} else {
				q.put("scaler", 1, count-1)
			}
			records := q.until(q.ID, count)
			for i := range count {
				if rec := records[id(i)]; rec.State != item.Done || len(rec.Attempts) != 0 {
					t.Errorf("%s is %q: %+v", id(i), rec.State, rec.Attempts)
				}
			}
			harness.Eventually(t, 2*time.Minute, "nobody works again", func(context.Context) error {
				if n := len(q.in("worker")); n != 0 {
					return fmt.Errorf("%d work", n)
				}
				return nil
			})
			a := leader()
			why := c.Action(t, q.ID, "-group", "scaler", "-task", "scaler", "-alloc", a.ID, "scale")
			for _, part := range []string{"leads", "formula   ceil(", "measured", "-> 0", "0 to 4 workers"} {
				if !strings.Contains(why, part) {
					t.Errorf("the action says nothing of %q:\n%s", part, why)
				}
			}
			status, _, err := c.Nomad.Jobs().ScaleStatus(q.ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			if events := status.TaskGroups["worker"].Events; len(events) < 2 || !strings.Contains(events[0].Message, "retinue: ") {
				t.Errorf("Nomad has the scaling events %+v", events)
			}
		})
	}
}

// The policy of a scaler is enough to see and change a count, and for nothing else.
func TestScalerRightsAreNarrow(t *testing.T) {
	c := cluster.Get(t)
	q := run(t, "work-queue", "narrow-raw-exec", 2, mergeVars(drivers["raw_exec"].vars(c), map[string]string{"count": "1"}))
	if _, err := c.Nomad.ACLPolicies().Upsert(&nomadapi.ACLPolicy{Name: "narrow-scaler", Rules: scale.NomadACL("default")}, nil); err != nil {
		t.Fatal(err)
	}
	token, _, err := c.Nomad.ACLTokens().Create(&nomadapi.ACLToken{Name: "narrow", Type: "client", Policies: []string{"narrow-scaler"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	as, err := nomadapi.NewClient(&nomadapi.Config{Address: c.Nomad.Address(), SecretID: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	two := 2
	if _, _, err := as.Jobs().ScaleStatus(q.ID, nil); err != nil {
		t.Errorf("see the count: %v", err)
	}
	harness.Eventually(t, time.Minute, "it may change the count", func(context.Context) error { // not while its first deployment is under way
		_, _, err := as.Jobs().Scale(q.ID, "worker", &two, "test", false, nil, nil)
		return err
	})
	if _, _, err := as.Jobs().Deregister(q.ID, false, nil); err == nil {
		t.Error("a scaler may stop the job")
	}
	if _, _, err := as.Jobs().Info(q.ID, nil); err == nil {
		t.Error("a scaler may read the job")
	}
	if _, _, err := as.Variables().Read("nomad/jobs/"+q.ID, nil); err == nil {
		t.Error("a scaler may read the job's secrets")
	}
}

func mergeVars(all ...map[string]string) map[string]string {
	merged := map[string]string{}
	for _, vars := range all {
		for key, value := range vars {
			merged[key] = value
		}
	}
	return merged
}

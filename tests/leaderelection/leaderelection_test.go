// Package leaderelection_test runs the leader-election jobspec on a dev
// cluster, as a person would, and breaks what runs: with ACLs on, on every
// driver, one and only one replica leads, and leadership moves when it must.
package leaderelection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/elector"
	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const election = "leader"

var cluster = harness.Share(func(t harness.T) *harness.Cluster {
	return harness.RunCluster(t, devcluster.Config{Servers: 1, Clients: 3, ACL: true})
})

// orders is a job of three replicas on one driver.
type orders struct {
	*harness.Job
	t       *testing.T
	cluster *harness.Cluster
}

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

func (o *orders) key() string { return "retinue/elections/" + o.ID + "/" + election }

// leader is who leads as anybody sees it in Consul: the lock and its record.
func (o *orders) leader() (alloc string, token uint64, err error) {
	pair, _, err := o.cluster.Consul.KV().Get(o.key(), &consulapi.QueryOptions{RequireConsistent: true})
	if err != nil {
		return "", 0, err
	}
	if pair == nil || pair.Session == "" {
		return "", 0, errors.New("the key has no lock session")
	}
	var record struct {
		Alloc string `json:"alloc"`
		Token uint64 `json:"token"`
	}
	if err := json.Unmarshal(pair.Value, &record); err != nil {
		return "", 0, err
	}
	if record.Token == 0 {
		return "", 0, errors.New("the record has no token yet")
	}
	return record.Alloc, record.Token, nil
}

// leading asks every application whether it leads.
func (o *orders) leading(ctx context.Context) (map[string]uint64, error) {
	tokens := map[string]uint64{}
	for _, a := range o.Allocs() {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+a.App+"/", nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		var status struct {
			Token uint64 `json:"token"`
		}
		err = json.NewDecoder(resp.Body).Decode(&status)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if status.Token != 0 {
			tokens[a.ID] = status.Token
		}
	}
	return tokens, nil
}

// next waits until exactly one application leads under a token above after,
// and Consul and the catalog agree with it.
func (o *orders) next(after uint64, limit time.Duration) (*harness.Alloc, uint64) {
	o.t.Helper()
	var leader string
	var token uint64
	began := time.Now()
	harness.Eventually(o.t, limit, "one application leads, and Consul says so", func(ctx context.Context) error {
		tokens, err := o.leading(ctx)
		if err != nil {
			return err
		}
		if leader, token, err = o.leader(); err != nil {
			return err
		}
		if len(tokens) != 1 || tokens[leader] != token || token <= after {
			return fmt.Errorf("the applications say %v, Consul says %s with token %d", tokens, leader, token)
		}
		return o.tagged(leader)
	})
	o.t.Logf("%s leads with token %d after %.2fs", leader[:8], token, time.Since(began).Seconds())
	for _, a := range o.Allocs() {
		if a.ID == leader {
			return a, token
		}
	}
	o.t.Fatalf("the leader %s does not run", leader)
	return nil, 0
}

// handOver makes a leader step down and returns who follows. It lets the others go first, for some milliseconds: on a busy machine they may
// miss them.
func (o *orders) handOver(leader *harness.Alloc, token uint64, stepDown func()) (*harness.Alloc, uint64) {
	o.t.Helper()
	for range 5 {
		stepDown()
		next, higher := o.next(token, 60*time.Second)
		if next.ID != leader.ID {
			return next, higher
		}
		o.contested(replicas)
		token = higher
	}
	o.t.Fatal("the application that stepped down leads again each time, with two others in the race")
	return nil, 0
}

// contested waits until that many electors are in the race, and each of them knows of all: before, a leader that steps down may
// find nobody to follow it.
func (o *orders) contested(count int) {
	o.t.Helper()
	harness.Eventually(o.t, 60*time.Second, fmt.Sprintf("%d candidates are in the race", count), func(ctx context.Context) error {
		for _, a := range o.Allocs() {
			s, err := a.Elector.State(ctx, election)
			if err == nil && len(s.Candidates) != count {
				err = fmt.Errorf("elector %s knows of %q", a.ID[:8], s.Candidates)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// tagged checks that one instance of the elector service, the leader's, carries the tag.
func (o *orders) tagged(leader string) error {
	instances, _, err := o.cluster.Consul.Catalog().Service(o.ID+"-elector", "", nil)
	if err != nil {
		return err
	}
	var tagged []string
	for _, i := range instances {
		if slices.Contains(i.ServiceTags, "leads-"+election) {
			tagged = append(tagged, i.ServiceID)
		}
	}
	if len(tagged) != 1 || len(tagged[0]) < 8 || tagged[0][:8] != leader[:8] {
		return fmt.Errorf("of %d instances %v carry the tag, the leader is %s", len(instances), tagged, leader[:8])
	}
	return nil
}

// void checks that an old token is refused: by every elector, and by a
// transaction in Consul that is fenced with the lock of its time.
func (o *orders) void(token uint64) {
	o.t.Helper()
	for _, a := range o.Allocs() {
		err := a.Elector.Verify(o.t.Context(), election, token)
		var status *harness.StatusError
		if !errors.As(err, &status) || status.Status != http.StatusConflict {
			o.t.Errorf("elector %s about the old token %d: %v, want HTTP 409", a.ID[:8], token, err)
		}
		if _, err := a.Elector.Renew(o.t.Context(), election, token); !errors.As(err, &status) || status.Status != http.StatusConflict {
			o.t.Errorf("elector %s renews the old token %d: %v, want HTTP 409", a.ID[:8], token, err)
		}
	}
}

// fencedWrite writes a key of the job in one transaction with a check that the session still has the lock.
func (o *orders) fencedWrite(session string) error {
	ok, resp, _, err := o.cluster.Consul.KV().Txn(consulapi.KVTxnOps{
		{Verb: consulapi.KVCheckSession, Key: o.key(), Session: session},
		{Verb: consulapi.KVSet, Key: "retinue-test/" + o.ID, Value: []byte("written")},
	}, nil)
	if err == nil && !ok {
		err = fmt.Errorf("refused: %v", resp.Errors[0].What)
	}
	return err
}

func (o *orders) session() string {
	o.t.Helper()
	pair, _, err := o.cluster.Consul.KV().Get(o.key(), nil)
	if err != nil || pair == nil {
		o.t.Fatalf("read %s: %v", o.key(), err)
	}
	return pair.Session
}

// The whole life of an election on each driver: found, handed over, broken.
func TestLeaderElection(t *testing.T) {
	for driver, on := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			harness.Need(t, on.needs...)
			c := cluster.Get(t)
			id := "orders-" + map[string]string{"docker": "docker", "exec": "exec", "raw_exec": "raw"}[driver]
			if err := elector.Allow(c.Consul, id); err != nil {
				t.Fatal(err)
			}
			o := &orders{Job: c.RunJob(t, "leader-election", id, 3, on.vars(c)), t: t, cluster: c}
			leader, token := o.next(0, 60*time.Second)
			session := o.session()
			if err := o.fencedWrite(session); err != nil {
				t.Errorf("a fenced write of the leader: %v", err)
			}

			t.Log("planned hand-over")
			o.contested(3)
			second, token2 := o.handOver(leader, token, func() {
				resp, err := http.Post("http://"+leader.App+"/step-down", "application/json", nil)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			})
			o.void(token)
			if err := o.fencedWrite(session); err == nil {
				t.Error("a write fenced with the old leader's lock is accepted")
			}

			t.Log("kill -9 of the leading application")
			o.Kill(second, "app")
			_, token3 := o.next(token2, 60*time.Second)
			o.void(token2)

			t.Log("kill -9 of the elector of the leader")
			third, _ := o.next(0, 60*time.Second)
			o.Kill(third, "elector")
			harness.Eventually(t, 60*time.Second, "one leads again", func(ctx context.Context) error {
				tokens, err := o.leading(ctx)
				if err != nil {
					return err
				}
				if len(tokens) != 1 {
					return fmt.Errorf("%v lead", tokens)
				}
				for _, now := range tokens {
					if now < token3 {
						t.Errorf("the token falls from %d to %d", token3, now)
					}
				}
				return nil
			})
		})
	}
}

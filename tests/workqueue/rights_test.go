package workqueue_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"retinue/coordinator"
	"retinue/coordinator/partition"
	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/tests/harness"
)

// The role of a job's coordinators is enough for its own journal, and for nothing else.
func TestRightsAreNarrow(t *testing.T) {
	c := cluster.Get(t)
	if err := coordinator.Allow(c.Consul, "rights"); err != nil {
		t.Fatal(err)
	}
	token, _, err := c.Consul.ACL().TokenCreate(&consulapi.ACLToken{Roles: []*consulapi.ACLLink{{Name: coordinator.RoleName("rights")}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	as, err := consulapi.NewClient(&consulapi.Config{Address: c.ConsulAddr(), Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	for key, allowed := range map[string]bool{
		"retinue/queues/rights/commit/rights/a":      true,
		"retinue/queues/rights-of-others/commit/x/a": false,
		"retinue/queues/commit/rights/a":             false,
		"retinue/elections/rights/leader":            false,
		"retinue/queues/another/commit/rights/a":     false,
	} {
		_, err := as.KV().Put(&consulapi.KVPair{Key: key, Value: []byte("{}")}, nil)
		if (err == nil) != allowed {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := as.KV().DeleteTree("retinue/queues/", nil); err == nil {
		t.Error("the coordinators of one job may delete the records of all")
	}
	if _, err := as.Catalog().Register(&consulapi.CatalogRegistration{Node: "x", Address: "127.0.0.1", Service: &consulapi.AgentService{Service: "rights-broker"}}, nil); err == nil {
		t.Error("the coordinators may register a broker")
	}
	if _, _, err := as.Session().CreateNoChecks(&consulapi.SessionEntry{Node: "retinue-scalers", TTL: "10s"}, nil); err == nil {
		t.Error("the coordinators may make sessions of scalers")
	}
}

// The role of a job's coordinators is enough to hold partitions of its queues, and not of those of another job.
func TestRightsOfPartitions(t *testing.T) {
	c := cluster.Get(t)
	const job = "rights-partitions"
	if err := coordinator.Allow(c.Consul, job); err != nil {
		t.Fatal(err)
	}
	token, _, err := c.Consul.ACL().TokenCreate(&consulapi.ACLToken{Roles: []*consulapi.ACLLink{{Name: coordinator.RoleName(job)}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	as, err := consulkit.New(consulkit.Config{Address: c.ConsulAddr(), Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	for of, allowed := range map[string]bool{job: true, "rights-of-others": false} {
		prefix := "retinue/queues/" + of + "/"
		h, err := partition.New(partition.Config{Client: as, Prefix: prefix, Queue: of, ID: "test", Partitions: 2, Clock: clock.Boot(), Log: hclog.NewNullLogger()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			h.Run(ctx)
		}()
		harness.Eventually(t, 30*time.Second, "what becomes of the partitions of "+of, func(context.Context) error {
			_, first := h.Held(0)
			_, second := h.Held(1)
			if held, refused := first && second, strings.Contains(h.View().Why, "Permission denied"); held != allowed || refused == allowed {
				return fmt.Errorf("%+v", h.View())
			}
			return nil
		})
		stop()
		<-ended
		pairs, _, err := c.Consul.KV().List(prefix+"partitions/", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range pairs {
			if pair.Session != "" || !allowed {
				t.Errorf("%s is there when all is over, locked by %q", pair.Key, pair.Session)
			}
		}
	}
}

// The role of a job's brokers shows them where the others are, and nothing else.
func TestBrokersSeeEachOther(t *testing.T) {
	c := cluster.Get(t)
	const job = "rights-three"
	c.Command(t, harness.RetinueBinary(t), "acl", "apply", "broker", "--job", job)
	token, _, err := c.Consul.ACL().TokenCreate(&consulapi.ACLToken{Roles: []*consulapi.ACLLink{{Name: coordinator.BrokerRole(job)}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	as, err := consulapi.NewClient(&consulapi.Config{Address: c.ConsulAddr(), Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	for service, seen := range map[string]int{job + "-brokers": 1, job + "-broker": 0, "another-brokers": 0} {
		node := "rights-" + service
		if _, err := c.Consul.Catalog().Register(&consulapi.CatalogRegistration{Node: node, Address: "127.0.0.1", Service: &consulapi.AgentService{Service: service, Port: 1}}, nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := c.Consul.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: node}, nil); err != nil {
				t.Error(err)
			}
		})
		if found, _, err := as.Health().Service(service, "", false, nil); err != nil || len(found) != seen {
			t.Errorf("%s: %d instances, %v; want %d", service, len(found), err, seen)
		}
	}
	if _, err := as.KV().Put(&consulapi.KVPair{Key: "retinue/queues/" + job + "/x"}, nil); err == nil {
		t.Error("the brokers may write records")
	}
}

// The broker lets nobody in without the password, and the worker does not know it.
func TestSecretsStayWithTheirOwners(t *testing.T) {
	c := cluster.Get(t)
	vars := drivers["raw_exec"].vars(c)
	vars["count"], vars["worker_command"], vars["worker_args"] = "1", "/bin/sh", `["-c", "env"]`
	q := run(t, "work-queue", "secrets-raw-exec", 2, vars)
	variable, _, err := c.Nomad.Variables().Read("nomad/jobs/"+q.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	password := variable.Items["password"]
	env := q.retinue("worker", "x", "queue", "put", "--id", "a", "--wait", "30s")
	if !strings.Contains(env, "RETINUE_INPUT") {
		t.Fatalf("the worker's environment: %s", env)
	}
	if strings.Contains(env, password) || strings.Contains(env, "CONSUL_HTTP_TOKEN") || strings.Contains(env, "nats://") {
		t.Error("the worker has a secret in its environment")
	}
	for _, a := range q.Allocs() {
		for _, task := range []string{"coordinator", "broker", "worker"} {
			if strings.Contains(a.Log(t, task), password) {
				t.Errorf("the password is in the log of %s", task)
			}
		}
	}
	services, _, err := c.Consul.Health().Service(q.ID+"-broker", "", false, nil)
	if err != nil || len(services) == 0 {
		t.Fatalf("no broker: %v", err)
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(services[0].Service.Address, strconv.Itoa(services[0].Service.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("CONNECT {}\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(conn); !strings.Contains(string(said), "Authorization Violation") { // and hangs up
		t.Errorf("without a password the broker says %q, %v", said, err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

package leaderelection_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/elector"
	"retinue/tests/harness"
)

// The role of a job's elector is enough to lead its elections, and for nothing else.
func TestRightsAreNarrow(t *testing.T) {
	t.Parallel()
	c := cluster.Get(t)
	if err := elector.Allow(c.Consul, "rights"); err != nil {
		t.Fatal(err)
	}
	token, _, err := c.Consul.ACL().TokenCreate(&consulapi.ACLToken{Roles: []*consulapi.ACLLink{{Name: elector.RoleName("rights")}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	as, err := consulapi.NewClient(&consulapi.Config{Address: c.ConsulAddr(), Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	session := func(node string) (string, error) {
		id, _, err := as.Session().CreateNoChecks(&consulapi.SessionEntry{Node: node, TTL: "10s"}, nil)
		return id, err
	}
	put := func(key string) error {
		_, err := as.KV().Put(&consulapi.KVPair{Key: key}, nil)
		return err
	}
	register := func(node, service string) error {
		_, err := as.Catalog().Register(&consulapi.CatalogRegistration{
			Node: node, Address: "127.0.0.1", SkipNodeUpdate: true, Service: &consulapi.AgentService{ID: service, Service: service},
		}, nil)
		return err
	}
	t.Cleanup(func() {
		_, _ = c.Consul.KV().DeleteTree("retinue/elections/rights/", nil)
		_, _ = c.Consul.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: elector.VirtualNode, ServiceID: "rights-elector"}, nil)
	})
	harness.Eventually(t, 20*time.Second, "the virtual node is there", func(context.Context) error {
		_, err := as.Catalog().Register(&consulapi.CatalogRegistration{Node: elector.VirtualNode, Address: "127.0.0.1"}, nil)
		return err
	})
	client := ""
	for _, node := range c.Plan().Nodes {
		if !node.Server {
			client = node.Name
		}
	}

	id, err := session(elector.VirtualNode)
	if err != nil {
		t.Errorf("a session of the virtual node: %v", err)
	}
	ok, _, err := as.KV().Acquire(&consulapi.KVPair{Key: "retinue/elections/rights/leader", Session: id}, nil)
	if err != nil || !ok {
		t.Errorf("the lock of its own election: %v, %v", ok, err)
	}
	if err := register(elector.VirtualNode, "rights-elector"); err != nil {
		t.Errorf("its own service: %v", err)
	}
	for what, err := range map[string]error{
		"a neighbour's election":        put("retinue/elections/rights-of-others/leader"),
		"a key outside of elections":    put("retinue/queue/rights"),
		"a service of the application":  register(elector.VirtualNode, "rights"),
		"a session of a node with jobs": second(session(client)),
	} {
		if err == nil || !strings.Contains(err.Error(), "Permission denied") && !strings.Contains(err.Error(), "403") {
			t.Errorf("%s is not denied: %v", what, err)
		}
	}
}

func second(_ string, err error) error { return err }

// A job that nobody gave the role leads nothing, and its elector says what is missing.
func TestWithoutTheRole(t *testing.T) {
	t.Parallel()
	c := cluster.Get(t)
	job := c.RunJob(t, "leader-election", "rightless", 1, drivers["raw_exec"].vars(c))
	alloc := job.Allocs()[0]
	harness.Eventually(t, 30*time.Second, "the elector says what it lacks", func(context.Context) error {
		log := alloc.Log(t, "elector")
		if !strings.Contains(log, "Permission denied") && !strings.Contains(log, "retinue acl") {
			return fmt.Errorf("its log:\n%s", log)
		}
		return nil
	})
	pairs, _, err := c.Consul.KV().List("retinue/elections/rightless/", nil)
	if err != nil || len(pairs) > 0 {
		t.Errorf("keys without rights: %v, %v", pairs, err)
	}
	state, err := alloc.Elector.State(t.Context(), election)
	if err != nil || state.Role == "leader" {
		t.Errorf("without rights the elector says %q, %v", state.Role, err)
	}
}

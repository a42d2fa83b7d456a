package scattergather_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/gather"
	"retinue/tests/harness"
)

// The role of a job's root is enough to find its leaves, and for nothing else.
func TestRightsAreNarrow(t *testing.T) {
	c := cluster.Get(t)
	register := func(service, shard string) {
		err := c.Consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{
			ID: service + "-" + shard, Name: service, Address: "127.0.0.1", Port: 1, Meta: map[string]string{"shard": shard},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Consul.Agent().ServiceDeregister(service + "-" + shard) })
	}
	register("rights-leaf", "0")
	register("rights-leaf-of-others", "0")
	if err := gather.Allow(c.Consul, "rights", "rights-leaf"); err != nil {
		t.Fatal(err)
	}
	token, _, err := c.Consul.ACL().TokenCreate(&consulapi.ACLToken{Roles: []*consulapi.ACLLink{{Name: gather.RoleName("rights")}}}, nil)
	if err != nil {
		t.Fatal(err)
	}

	for what, root := range map[string]struct {
		service, token string
		ready          bool
	}{
		"its own leaves":       {"rights-leaf", token.SecretID, true},
		"a neighbour's leaves": {"rights-leaf-of-others", token.SecretID, false},
		"without a token":      {"rights-leaf", "", false},
	} {
		listen := "127.0.0.1:" + freePort(t)
		p := harness.Start(t, harness.Spec{Name: "root", Path: harness.RetinueBinary(t), Args: []string{"gather", "--service", root.service, "--shards", "1", "--listen", listen},
			Env: []string{"CONSUL_HTTP_ADDR=" + c.ConsulAddr(), "CONSUL_HTTP_TOKEN=" + root.token}})
		harness.Eventually(t, 20*time.Second, what, func(ctx context.Context) error {
			ready, said, err := readiness(ctx, listen)
			if err != nil {
				return err
			}
			// Without rights Consul shows nothing or refuses: the root must have asked before it is judged.
			asked := strings.Contains(said, "shard") || strings.Contains(p.Log(), "Permission denied") || strings.Contains(p.Log(), "403")
			if ready != root.ready || !ready && !asked {
				return fmt.Errorf("ready: %v, %s", ready, said)
			}
			return nil
		})
	}

	as, err := consulapi.NewClient(&consulapi.Config{Address: c.ConsulAddr(), Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	_, err = as.KV().Put(&consulapi.KVPair{Key: "rights", Value: []byte("x")}, nil)
	if err == nil || !strings.Contains(err.Error(), "Permission denied") && !strings.Contains(err.Error(), "403") {
		t.Errorf("writing a key is not denied: %v", err)
	}
	_, err = as.Catalog().Register(&consulapi.CatalogRegistration{Node: "x", Address: "127.0.0.1", Service: &consulapi.AgentService{Service: "rights-leaf"}}, nil)
	if err == nil {
		t.Error("the root may register leaves")
	}
}

func readiness(ctx context.Context, listen string) (ready bool, said string, err error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+listen+"/-/readyz", nil)
	if err != nil {
		return false, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode == http.StatusOK, string(body), err
}

package leaderelection_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

// anonymous is the accessor of the token of everybody who shows none, as every DNS client.
const anonymous = "00000000-0000-0000-0000-000000000002"

// allowDNS lets everybody look up the elector's instances and nothing else, until the test is over.
func allowDNS(t *testing.T, c *harness.Cluster, app string) {
	t.Helper()
	acl := c.Consul.ACL()
	policy, _, err := acl.PolicyCreate(&consulapi.ACLPolicy{
		Name:  "dns-" + app,
		Rules: fmt.Sprintf("service %q { policy = \"read\" }\nnode \"retinue-elections\" { policy = \"read\" }", app+"-elector"),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := acl.PolicyDelete(policy.ID, nil); err != nil {
			t.Errorf("delete policy %s: %v", policy.Name, err)
		}
	})
	token, _, err := acl.TokenRead(anonymous, nil)
	if err != nil {
		t.Fatal(err)
	}
	token.Policies = append(token.Policies, &consulapi.ACLLink{ID: policy.ID})
	if _, _, err := acl.TokenUpdate(token, nil); err != nil {
		t.Fatal(err)
	}
}

// resolver asks the DNS port of the Consul agent of a client node.
func resolver(t *testing.T, c *harness.Cluster) *net.Resolver {
	t.Helper()
	const standard = 8600
	for _, agent := range c.Agents() {
		if agent.Kind == devcluster.ConsulClient {
			address := fmt.Sprintf("%s:%d", agent.Addr, standard+c.Plan().PortOffset)
			return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}}
		}
	}
	t.Fatal("the cluster has no Consul client agent")
	return nil
}

// points waits until DNS answers with one leader's address and port.
func points(t *testing.T, dns *net.Resolver, name string, leader *harness.Alloc) {
	t.Helper()
	host, port, err := net.SplitHostPort(leader.App)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	harness.Eventually(t, 60*time.Second, "DNS answers "+leader.App, func(ctx context.Context) error {
		addresses, err := dns.LookupHost(ctx, name)
		if err != nil {
			return err
		}
		_, services, err := dns.LookupSRV(ctx, "", "", name)
		if err != nil {
			return err
		}
		if !slices.Equal(addresses, []string{host}) || len(services) != 1 || fmt.Sprint(services[0].Port) != port {
			return fmt.Errorf("the answer is %v and %d services on port %d", addresses, len(services), services[0].Port)
		}
		return nil
	})
	t.Logf("DNS answers with the leader's address after %v", time.Since(began))
}

// The name of the leader in Consul's DNS is the leader's address, follows a
// hand-over, and does not exist while nobody leads.
func TestDNS(t *testing.T) {
	o := runOrders(t, "dns", replicas)
	allowDNS(t, o.cluster, o.ID)
	dns := resolver(t, o.cluster)
	name := "leads-" + election + "." + o.ID + "-elector.service.consul."
	leader, token := o.complete(0)
	points(t, dns, name, leader)

	o.signal(leader, "app", "SIGKILL")
	next, _ := o.next(token, 60*time.Second)
	points(t, dns, name, next)

	t.Log("every application is stopped where it is")
	o.runs(replicas)
	allocs := o.Allocs()
	for _, a := range allocs {
		o.signal(a, "app", "SIGSTOP")
	}
	harness.Eventually(t, 60*time.Second, "the name does not exist", func(ctx context.Context) error {
		addresses, err := dns.LookupHost(ctx, name)
		var failure *net.DNSError
		if !errors.As(err, &failure) || !failure.IsNotFound {
			return fmt.Errorf("the answer is %v, %v", addresses, err)
		}
		if _, _, err := o.leader(); err == nil || !strings.Contains(err.Error(), "no lock session") {
			return fmt.Errorf("the lock: %v", err)
		}
		return nil
	})
	for _, a := range allocs {
		o.signal(a, "app", "SIGCONT")
	}
	last, _ := o.next(token, 60*time.Second)
	points(t, dns, name, last)
}

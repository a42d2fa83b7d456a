package dial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/consulkit"
)

// serviceSuffix ends the host of an address that names a service in Consul. Consul's own DNS has the same name for it, but
// needs a resolver that knows Consul, and tells no port.
const serviceSuffix = ".service.consul"

// lookupTimeout bounds one question to the agent.
const lookupTimeout = 5 * time.Second

// serviceOf is the service that a host names; "" when it names a machine.
func serviceOf(host string) string {
	service, ok := strings.CutSuffix(host, serviceSuffix)
	if !ok {
		return ""
	}
	return service
}

// catalog connects to an instance of a service, wherever it is at the moment: each connection asks Consul anew.
type catalog struct {
	client  *consulkit.Client
	service string

	mu   sync.Mutex
	last string // where the last connection was made to
}

func newCatalog(service string) (*catalog, error) {
	client, err := consulkit.New(consulkit.Config{MaxConns: 2})
	if err != nil {
		return nil, err
	}
	return &catalog{client: client, service: service}, nil
}

// Dial implements the custom dialer of the NATS client.
func (c *catalog) Dial(network, _ string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	addrs, err := c.find(ctx)
	if err != nil {
		return nil, fmt.Errorf("find service %s in Consul: %w", c.service, err)
	}
	var failed error
	for _, addr := range addrs { // of three brokers one may be dead, and its check not know it yet
		try, cancel := context.WithTimeout(ctx, lookupTimeout/time.Duration(len(addrs)))
		conn, err := (&net.Dialer{}).DialContext(try, network, addr)
		cancel()
		if err == nil {
			c.mu.Lock()
			c.last = addr
			c.mu.Unlock()
			return conn, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, failed
}

// find returns the addresses of the instances. All are tried: a check may be later than the broker.
func (c *catalog) find(ctx context.Context) ([]string, error) {
	token, err := c.client.Token()
	if err != nil {
		return nil, err
	}
	entries, _, err := c.client.Health().Service(c.service, "", false, (&api.QueryOptions{Token: token}).WithContext(ctx))
	if err != nil {
		return nil, c.client.Advice(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return choose(entries, c.last)
}

// choose orders instances: passing ones first, and the last one last of all. Whoever asks has lost it, and one that is frozen passes checks and takes connections.
func choose(entries []*api.ServiceEntry, last string) ([]string, error) {
	var passing, others []string
	for _, e := range entries {
		host := e.Service.Address
		if host == "" {
			host = e.Node.Address
		}
		addr := net.JoinHostPort(host, strconv.Itoa(e.Service.Port))
		if e.Checks.AggregatedStatus() == api.HealthPassing {
			passing = append(passing, addr)
		} else {
			others = append(others, addr)
		}
	}
	for _, some := range [][]string{passing, others} {
		rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	}
	if passing = append(passing, others...); len(passing) == 0 {
		return nil, errors.New("it has no instance, or the token may not read it")
	}
	if at := slices.Index(passing, last); at >= 0 {
		passing = append(slices.Delete(passing, at, at+1), last)
	}
	return passing, nil
}

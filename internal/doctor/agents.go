package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-version"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/hint"
	"retinue/internal/toolchain"
)

// Target is where the agents are that the checks ask.
type Target struct {
	Consul *consul.Config
	Nomad  *nomad.Config
	Source string // "NOMAD_ADDR and CONSUL_HTTP_ADDR", "the dev cluster in ...", "the standard addresses"
	Chosen bool   // somebody chose it, so that it is a failure when nobody answers
}

// EnvTarget is what the environment points at, false when it points at nothing.
func EnvTarget() (Target, bool) {
	t := StandardTarget()
	_, n := os.LookupEnv("NOMAD_ADDR")
	_, c := os.LookupEnv("CONSUL_HTTP_ADDR")
	t.Source, t.Chosen = "the environment", true
	return t, n || c
}

// StandardTarget is where agents listen by default.
func StandardTarget() Target {
	return Target{Consul: consul.DefaultConfig(), Nomad: nomad.DefaultConfig(), Source: "the standard addresses"}
}

// dateClock remembers how far the Date of the last answer was from ours.
type dateClock struct {
	next http.RoundTripper
	mu   sync.Mutex
	skew time.Duration
	seen bool
}

func (d *dateClock) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := time.Now()
	resp, err := d.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if there, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		// Date has whole seconds: its middle, against the middle of the request.
		here := sent.Add(time.Since(sent) / 2)
		d.mu.Lock()
		d.skew, d.seen = there.Add(500*time.Millisecond).Sub(here), true
		d.mu.Unlock()
	}
	return resp, nil
}

func (d *dateClock) check(context.Context) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.seen {
		return "", errSkip
	}
	return judgeSkew(d.skew)
}

// judgeSkew knows Date's resolution of a second. Leases are measured by each
// host's own monotonic clock and do not suffer; signed identities and logs do.
func judgeSkew(skew time.Duration) (string, error) {
	detail := fmt.Sprintf("%.1f s apart", skew.Abs().Seconds())
	advice := "run a time service (chrony, systemd-timesyncd) on all hosts"
	switch {
	case skew.Abs() >= time.Minute:
		return detail, hint.Wrap(errors.New("workload identities are refused when clocks differ that much"), "%s", advice)
	case skew.Abs() >= 2*time.Second:
		return detail, warn(hint.Wrap(errors.New("the clocks differ"), "%s", advice))
	}
	return "less than 2 s apart", nil
}

// unreachable says what it means that an agent does not answer.
func (t Target) unreachable(addr string, err error) error {
	if t.Chosen {
		return hint.Wrap(fmt.Errorf("%s does not answer: %w", addr, err), "start it, or correct the address (it comes from %s)", t.Source)
	}
	return warn(hint.Wrap(fmt.Errorf("no agent at %s", addr), "`retinue dev up` starts one; NOMAD_ADDR and CONSUL_HTTP_ADDR name another"))
}

// ConsulChecks asks the Consul agent of the target.
func (t Target) ConsulChecks() []Check {
	const category = "Consul"
	cfg := *t.Consul
	clock := &dateClock{}
	client, err := consul.NewHttpClient(cfg.Transport, cfg.TLSConfig)
	if err == nil && !strings.HasPrefix(cfg.Address, "unix://") {
		clock.next = client.Transport
		client.Transport = clock
		cfg.HttpClient = client
	}
	var api *consul.Client
	if err == nil {
		api, err = consul.NewClient(&cfg)
	}
	c := consulChecks{target: t, api: api, setup: err}
	return []Check{
		{category, "agent", c.agent},
		{category, "leader", c.leader},
		{category, "ACL", c.acl},
		{category, "sessions", c.sessions},
		{category, "clock", clock.check},
	}
}

type consulChecks struct {
	target Target
	api    *consul.Client
	setup  error
}

func (c *consulChecks) agent(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", hint.Wrap(c.setup, "correct the CONSUL_* variables")
	}
	// The leader endpoint needs no token, so it tells reachable from forbidden.
	_, err := c.api.Status().LeaderWithQueryOptions((&consul.QueryOptions{}).WithContext(ctx))
	var status consul.StatusError
	if err != nil && !errors.As(err, &status) {
		err = c.target.unreachable(c.target.Consul.Address, err)
		c.setup = errSkip // nothing else can be known
		return "", err
	}
	detail := fmt.Sprintf("%s, from %s", c.target.Consul.Address, c.target.Source)
	self, err := c.self(ctx)
	if err != nil {
		return detail, warn(hint.Wrap(fmt.Errorf("does not show its configuration: %w", err), "give a token with agent:read in CONSUL_HTTP_TOKEN"))
	}
	v := self.Config.Version
	detail = "version " + v + " at " + detail
	return detail, oldEnough(v, toolchain.Consul)
}

func oldEnough(v string, t toolchain.Tool) error {
	have, err := version.NewVersion(v)
	if err != nil {
		return warn(fmt.Errorf("version %q: %w", v, err))
	}
	if have.Core().LessThan(version.Must(version.NewVersion(t.Minimum()))) {
		return hint.Wrap(fmt.Errorf("older than %s", t.Minimum()), "upgrade the agent")
	}
	return nil
}

type consulSelf struct {
	Config      struct{ Version string }
	DebugConfig struct{ SessionTTLMin string }
}

func (c *consulChecks) self(ctx context.Context) (consulSelf, error) {
	var self consulSelf
	_, err := c.api.Raw().Query("/v1/agent/self", &self, (&consul.QueryOptions{}).WithContext(ctx))
	return self, err
}

func (c *consulChecks) leader(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", errSkip
	}
	leader, err := c.api.Status().LeaderWithQueryOptions((&consul.QueryOptions{}).WithContext(ctx))
	if err == nil && leader == "" {
		err = errors.New("none")
	}
	if err != nil {
		return "", hint.Wrap(err, "the servers have no quorum: look at their logs (`retinue dev logs` on a dev cluster)")
	}
	return leader, nil
}

// acl asks Consul whether the token may do what the operator's verbs do.
func (c *consulChecks) acl(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", errSkip
	}
	q := (&consul.QueryOptions{}).WithContext(ctx)
	if _, _, err := c.api.KV().Keys("retinue/", "/", q); err != nil {
		return "", tokenError("read keys below retinue/", err, "CONSUL_HTTP_TOKEN")
	}
	if _, _, err := c.api.Catalog().Services(q); err != nil {
		return "", tokenError("list services", err, "CONSUL_HTTP_TOKEN")
	}
	token, _, err := c.api.ACL().TokenReadSelf(q)
	var status consul.StatusError
	switch {
	case errors.As(err, &status) && status.Code == http.StatusUnauthorized:
		return "ACLs are off", nil
	case err != nil:
		return "", tokenError("read itself", err, "CONSUL_HTTP_TOKEN")
	}
	detail := "the token reads what retinue writes"
	if _, _, err := c.api.ACL().PolicyList(q); err != nil {
		return detail, warn(hint.Wrap(errors.New("it may not create policies and roles"), "`retinue acl apply` and Terraform need a token with acl:write"))
	}
	if token.Description != "" {
		detail += " (" + token.Description + ")"
	}
	return detail, nil
}

func tokenError(what string, err error, variable string) error {
	return hint.Wrap(fmt.Errorf("the token may not %s: %w", what, err), "give one that may in %s (on a dev cluster: eval \"$(retinue dev env)\")", variable)
}

// sessions shows the shortest lease that an election can have.
func (c *consulChecks) sessions(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", errSkip
	}
	self, err := c.self(ctx)
	if err != nil {
		return "", errSkip
	}
	least, err := time.ParseDuration(self.DebugConfig.SessionTTLMin)
	if err != nil {
		return "", warn(fmt.Errorf("session_ttl_min %q: %w", self.DebugConfig.SessionTTLMin, err))
	}
	if least <= 0 {
		least = 10 * time.Second // Consul's default
	}
	return fmt.Sprintf("a lease can be as short as %s (session_ttl_min)", least), nil
}

// NomadChecks asks the Nomad agent of the target.
func (t Target) NomadChecks() []Check {
	const category = "Nomad"
	cfg := *t.Nomad
	clock := &dateClock{next: http.DefaultTransport.(*http.Transport).Clone()}
	client := &http.Client{Transport: clock.next}
	err := nomad.ConfigureTLS(client, cfg.TLSConfig)
	if err == nil && !strings.HasPrefix(cfg.Address, "unix://") {
		client.Transport = clock
		cfg.HttpClient = client
	}
	var api *nomad.Client
	if err == nil {
		api, err = nomad.NewClient(&cfg)
	}
	c := nomadChecks{target: t, api: api, setup: err}
	return []Check{
		{category, "agent", c.agent},
		{category, "leader", c.leader},
		{category, "ACL", c.acl},
		{category, "clients", c.clients},
		{category, "clock", clock.check},
	}
}

type nomadChecks struct {
	target Target
	api    *nomad.Client
	setup  error
}

func (c *nomadChecks) query(ctx context.Context) *nomad.QueryOptions {
	return (&nomad.QueryOptions{}).WithContext(ctx)
}

func (c *nomadChecks) agent(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", hint.Wrap(c.setup, "correct the NOMAD_* variables")
	}
	var leader string
	_, err := c.api.Raw().Query("/v1/status/leader", &leader, c.query(ctx))
	var status nomad.UnexpectedResponseError
	if err != nil && !errors.As(err, &status) {
		err = c.target.unreachable(c.target.Nomad.Address, err)
		c.setup = errSkip
		return "", err
	}
	detail := fmt.Sprintf("%s, from %s", c.target.Nomad.Address, c.target.Source)
	var self struct {
		Config struct{ Version struct{ Version string } }
	}
	if _, err := c.api.Raw().Query("/v1/agent/self", &self, c.query(ctx)); err != nil {
		return detail, warn(hint.Wrap(fmt.Errorf("does not show its configuration: %w", err), "give a token with agent:read in NOMAD_TOKEN"))
	}
	v := self.Config.Version.Version
	return "version " + v + " at " + detail, oldEnough(v, toolchain.Nomad)
}

func (c *nomadChecks) leader(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", errSkip
	}
	var leader string
	_, err := c.api.Raw().Query("/v1/status/leader", &leader, c.query(ctx))
	if err == nil && leader == "" {
		err = errors.New("none")
	}
	if err != nil {
		return "", hint.Wrap(err, "the servers have no quorum: look at their logs (`retinue dev logs` on a dev cluster)")
	}
	return leader, nil
}

// acl tries what running a pattern needs; a plan asks for the right to submit
// and changes nothing.
func (c *nomadChecks) acl(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", errSkip
	}
	if _, _, err := c.api.Jobs().List(c.query(ctx)); err != nil {
		return "", tokenError("list jobs", err, "NOMAD_TOKEN")
	}
	job := nomad.NewBatchJob("retinue-doctor", "retinue-doctor", "global", 50).AddTaskGroup(
		nomad.NewTaskGroup("doctor", 1).AddTask(nomad.NewTask("doctor", "raw_exec").SetConfig("command", "true")))
	if _, _, err := c.api.Jobs().Plan(job, false, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return "it lists jobs", warn(tokenError("submit jobs", err, "NOMAD_TOKEN"))
	}
	if _, _, err := c.api.ACLTokens().Self(c.query(ctx)); err != nil && strings.Contains(err.Error(), "ACL support disabled") {
		return "ACLs are off", nil
	}
	return "the token may list and submit jobs", nil
}

// clients counts the nodes that could run a pattern: ready, and with Consul.
func (c *nomadChecks) clients(ctx context.Context) (string, error) {
	if c.setup != nil {
		return "", errSkip
	}
	q := c.query(ctx)
	q.Params = map[string]string{"resources": "false"}
	nodes, _, err := c.api.Nodes().List(q)
	if err != nil {
		return "", tokenError("list nodes", err, "NOMAD_TOKEN")
	}
	ready, drivers, lifecycle := 0, map[string]int{}, map[string]int{}
	var bare, mixed []string
	for _, n := range nodes {
		if n.Status != nomad.NodeStatusReady || n.SchedulingEligibility != nomad.NodeSchedulingEligible {
			continue
		}
		ready++
		for name, d := range n.Drivers {
			if d.Healthy {
				drivers[name]++
			}
		}
		node, _, err := c.api.Nodes().Info(n.ID, c.query(ctx))
		if err != nil {
			continue
		}
		if node.Attributes["consul.version"] == "" {
			bare = append(bare, n.Name)
		}
		for name := range n.Drivers {
			if node.Attributes["driver."+name+".lifecycle"] != "" {
				lifecycle[name]++
			}
		}
	}
	detail := fmt.Sprintf("%d of %d ready", ready, len(nodes))
	for _, name := range []string{"docker", "exec", "raw_exec"} {
		if drivers[name] > 0 {
			detail += fmt.Sprintf(", %s on %d", name, drivers[name])
		}
		if lifecycle[name] > 0 {
			detail += fmt.Sprintf(" (%d with lifecycle)", lifecycle[name])
		}
		if lifecycle[name] > 0 && lifecycle[name] < drivers[name] {
			mixed = append(mixed, name)
		}
	}
	switch {
	case ready == 0:
		return detail, hint.Wrap(errors.New("no client can take work"), "start a client, or make one eligible: nomad node status")
	case len(bare) > 0:
		return detail, hint.Wrap(fmt.Errorf("no Consul agent beside %s", strings.Join(bare, ", ")), "run a Consul agent on each Nomad client and set its consul block")
	case len(mixed) > 0:
		return detail, warn(hint.Wrap(fmt.Errorf("not every client has retinue-driver for %s", strings.Join(mixed, ", ")),
			"install it everywhere, or constrain jobs that have a lifecycle block: ${attr.driver.%s.lifecycle} is set", mixed[0]))
	}
	return detail, nil
}

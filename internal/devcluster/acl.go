package devcluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// The auth method through which Nomad's workload identities log in at Consul;
// Nomad's default name for it.
const authMethod = "nomad-workloads"

// What Nomad's own agents do at Consul, and no more: find agents and nodes, and
// register services. Servers register only themselves; clients deregister what
// their tasks registered.
const (
	nomadServerRules = `agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
service_prefix "nomad" { policy = "write" }
`
	nomadClientRules = `agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
service_prefix "" { policy = "write" }
`
	// Every task may read; what writes gets a role of its own (see bindings).
	nomadTaskRules = `node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
key_prefix "" { policy = "read" }
`
)

// newTokens draws the secrets before anything runs, so that they can stand in
// the agents' configuration files.
func newTokens(servers, clients int) (Tokens, error) {
	t := Tokens{Agents: map[string]string{}}
	names := []string{}
	for _, n := range layOut(0, servers, clients, false) {
		names = append(names, n.Name)
	}
	var errs []error
	draw := func() string {
		id, err := newUUID()
		errs = append(errs, err)
		return id
	}
	t.Nomad, t.Consul, t.NomadServers, t.NomadClients = draw(), draw(), draw(), draw()
	for _, name := range names {
		t.Agents[name] = draw()
	}
	return t, errors.Join(errs...)
}

func newUUID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("draw a token: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-"), nil
}

// makeConsulTokens creates the agents' tokens; those that exist stay.
func (c *Cluster) makeConsulTokens(ctx context.Context) error {
	api, err := c.Consul()
	if err != nil {
		return err
	}
	acl, w := api.ACL(), (&consul.WriteOptions{}).WithContext(ctx)
	err = c.until(ctx, "Consul's ACL system", func(ctx context.Context) error {
		_, _, err := acl.TokenReadSelf((&consul.QueryOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return err
	}
	t := c.state.Tokens
	for name, rules := range map[string]string{"nomad-servers": nomadServerRules, "nomad-clients": nomadClientRules, "nomad-tasks": nomadTaskRules} {
		_, _, err := acl.PolicyCreate(&consul.ACLPolicy{Name: name, Rules: rules}, w)
		if err := unlessExists(err); err != nil {
			return fmt.Errorf("create Consul policy %s: %w", name, err)
		}
	}
	tokens := []*consul.ACLToken{
		{SecretID: t.NomadServers, Description: "Nomad servers", Policies: []*consul.ACLLink{{Name: "nomad-servers"}}},
		{SecretID: t.NomadClients, Description: "Nomad clients", Policies: []*consul.ACLLink{{Name: "nomad-clients"}}},
	}
	for _, n := range c.state.Plan.Nodes {
		tokens = append(tokens, &consul.ACLToken{
			SecretID: t.Agents[n.Name], Description: "Consul agent " + n.Name,
			NodeIdentities: []*consul.ACLNodeIdentity{{NodeName: n.Name, Datacenter: "dc1"}},
		})
	}
	for _, token := range tokens {
		_, _, err := acl.TokenCreate(token, w)
		if err := unlessExists(err); err != nil {
			return fmt.Errorf("create Consul token of %s: %w", token.Description, err)
		}
	}
	return nil
}

// makeNomadACL bootstraps Nomad's ACLs with the token that was drawn, and lets
// Nomad's workload identities log in at Consul.
func (c *Cluster) makeNomadACL(ctx context.Context) error {
	api, err := c.Nomad()
	if err != nil {
		return err
	}
	err = c.until(ctx, "Nomad's ACL system", func(ctx context.Context) error {
		if _, _, err := api.ACLTokens().Self((&nomad.QueryOptions{}).WithContext(ctx)); err == nil {
			return nil // bootstrapped by an earlier up
		}
		_, _, err := api.ACLTokens().BootstrapOpts(c.state.Tokens.Nomad, (&nomad.WriteOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return err
	}
	return c.makeBindings(ctx)
}

// makeBindings creates the auth method and its rules. A task gets the read-only
// role of its namespace, and, where somebody has created it, the narrow role
// retinue-<task>-<job>: a role that does not exist binds nothing.
func (c *Cluster) makeBindings(ctx context.Context) error {
	api, err := c.Consul()
	if err != nil {
		return err
	}
	acl, w := api.ACL(), (&consul.WriteOptions{}).WithContext(ctx)
	if found, _, err := acl.AuthMethodRead(authMethod, (&consul.QueryOptions{}).WithContext(ctx)); err == nil && found != nil {
		return nil // made by the up that made the cluster; an interrupted one is swept away whole
	}
	_, _, err = acl.RoleCreate(&consul.ACLRole{
		Name: "nomad-default-tasks", Description: "Tasks in Nomad's default namespace",
		Policies: []*consul.ACLLink{{Name: "nomad-tasks"}},
	}, w)
	if err := unlessExists(err); err != nil {
		return fmt.Errorf("create Consul role nomad-default-tasks: %w", err)
	}
	first := c.state.Plan.servers()[0]
	_, _, err = acl.AuthMethodCreate(&consul.ACLAuthMethod{
		Name: authMethod, Type: "jwt", DisplayName: authMethod, TokenLocality: "local",
		Description: "Nomad workload identities",
		Config: map[string]any{
			"JWKSURL":          "http://" + c.state.Plan.on(first.Addr, portNomadHTTP).String() + "/.well-known/jwks.json",
			"JWTSupportedAlgs": []string{"RS256", "ES256"},
			"BoundAudiences":   []string{"consul.io"},
			"ClaimMappings": map[string]string{
				"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id",
				"nomad_task": "nomad_task", "nomad_service": "nomad_service",
			},
		},
	}, w)
	if err != nil {
		return fmt.Errorf("create Consul auth method %s: %w", authMethod, err)
	}
	for _, rule := range []consul.ACLBindingRule{
		{BindType: consul.BindingRuleBindTypeService, BindName: "${value.nomad_service}", Selector: `"nomad_service" in value`},
		{BindType: consul.BindingRuleBindTypeRole, BindName: "nomad-${value.nomad_namespace}-tasks", Selector: `"nomad_service" not in value`},
		{BindType: consul.BindingRuleBindTypeRole, BindName: "retinue-${value.nomad_task}-${value.nomad_job_id}", Selector: `"nomad_service" not in value`},
	} {
		rule.AuthMethod = authMethod
		if _, _, err := acl.BindingRuleCreate(&rule, w); err != nil {
			return fmt.Errorf("create Consul binding rule %s: %w", rule.BindName, err)
		}
	}
	return nil
}

// unlessExists forgives what an interrupted up has created already.
func unlessExists(err error) error {
	var status consul.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusInternalServerError || status.Code == http.StatusBadRequest) &&
		(strings.Contains(status.Body, "already exists") || strings.Contains(status.Body, "already in use") || strings.Contains(status.Body, "SecretID")) {
		return nil
	}
	return err
}

package elector

import (
	"context"
	"net"
	"strconv"

	"github.com/hashicorp/consul/api"
)

// leadsTag is the prefix of the tags that say what an instance leads: leads-<election>.<app>-elector.service.consul in DNS.
const leadsTag = "leads-"

// serviceRecord is the elector's instance as people see it.
func serviceRecord(cfg Config) ServiceRecord {
	s := ServiceRecord{Name: cfg.App + "-elector", ID: instanceID(cfg.App, cfg.ID), Meta: map[string]string{"retinue": "elector", "kv": kvRoot + cfg.App + "/"}}
	if cfg.Alloc != "" {
		s.Meta["alloc"] = cfg.Alloc
	}
	for k, v := range cfg.Meta {
		s.Meta[k] = v
	}
	if host, port, err := net.SplitHostPort(cfg.Address); err == nil {
		s.Host = host
		s.Port, _ = strconv.Atoi(port)
	}
	return s
}

// instanceID names an instance among those of all applications, which are on the same node.
func instanceID(app, elector string) string { return elector + ":" + app }

// register puts the virtual node, the instance and its check into the catalog. The check is of type "session": Consul itself turns
// it passing when a session of that name is made, and critical in the same Raft entry that ends it. (The transaction endpoint would
// drop the session's name, so this is a registration.)
func (s *ConsulStore) register(ctx context.Context, session string) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	svc := s.service
	_, err = s.client.Catalog().Register(&api.CatalogRegistration{
		Node:     VirtualNode,
		Address:  "127.0.0.1",
		NodeMeta: map[string]string{"external-node": "true", "external-probe": "false", "retinue": "sessions and leaders of elections; no agent runs here"},
		Service:  &api.AgentService{ID: svc.ID, Service: svc.Name, Tags: []string{}, Address: svc.Host, Port: svc.Port, Meta: svc.Meta},
		Check: &api.AgentCheck{
			Node: VirtualNode, CheckID: checkID(svc), Name: "Session of the elector", Status: api.HealthCritical, ServiceID: svc.ID,
			ServiceName: svc.Name, Type: "session", Definition: api.HealthCheckDefinition{SessionName: session},
			Notes: "Passing while this elector's Consul session lives. Tags leads-<election> say what it leads.",
		},
	}, opts)
	return err
}

func checkID(svc ServiceRecord) string { return "session:" + svc.Name + ":" + svc.ID }

func (s *ConsulStore) deregister(ctx context.Context) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	_, err = s.client.Catalog().Deregister(&api.CatalogDeregistration{Node: VirtualNode, ServiceID: s.service.ID}, opts)
	return err
}

// tags is the operation that sets what this elector leads.
func (s *ConsulStore) tags(leads []string) *api.TxnOp {
	svc := s.service
	tags := make([]string, len(leads))
	for i, name := range leads {
		tags[i] = leadsTag + name
	}
	return &api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: VirtualNode,
		Service: api.AgentService{ID: svc.ID, Service: svc.Name, Tags: tags, Address: svc.Host, Port: svc.Port, Meta: svc.Meta}}}
}

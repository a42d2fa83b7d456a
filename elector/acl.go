package elector

import (
	"fmt"

	consul "github.com/hashicorp/consul/api"

	"retinue/internal/consulkit"
)

// VirtualNode is the catalog node that carries the sessions and the instances of all electors.
const VirtualNode = "retinue-elections"

// Policy returns the Consul ACL rules that the elector of an application
// needs: its own keys, its own service, and the virtual node of the electors
// (on whose sessions nothing else depends). Reading is in Nomad's default policy.
func Policy(app string) string {
	return fmt.Sprintf(`# The elector of %[1]q: its locks, its instances in the catalog, its session.
key_prefix "retinue/elections/%[1]s/" {
  policy = "write"
}

service "%[1]s-elector" {
  policy = "write"
}

node %[2]q {
  policy = "write"
}

session %[2]q {
  policy = "write"
}
`, app, VirtualNode)
}

// RoleName is the Consul role that the binding rule
// "retinue-${value.nomad_task}-${value.nomad_job_id}" gives to the task
// "elector" of a job. A role that does not exist gives nothing.
func RoleName(job string) string { return "retinue-elector-" + job }

// Allow creates or updates the policy and the role of a job's elector. The
// client's token needs acl:write.
func Allow(client *consul.Client, job string) error {
	return consulkit.Allow(client, RoleName(job), "Retinue: what the elector of job "+job+" may do", Policy(job))
}

package coordinator

import (
	"fmt"

	consul "github.com/hashicorp/consul/api"

	"retinue/coordinator/partition"
	"retinue/internal/consulkit"
)

// ACL returns the Consul ACL rules that the coordinators of a job need: the records of its journal, who holds which partition, the sessions
// for it, and where its broker is.
func ACL(job string) string {
	return fmt.Sprintf(`# The coordinators of %[1]q: their commit records, and which of them holds which partition.
key_prefix %[2]q {
  policy = "write"
}

# Their sessions live on a node of their own, which has no agent.
session %[3]q {
  policy = "write"
}

node %[3]q {
  policy = "write"
}

# Where the job's own broker is; an instance whose node cannot be read is not shown.
service "%[1]s-broker" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
`, job, journals+job+"/", partition.VirtualNode)
}

// BrokerACL returns the Consul ACL rules that each of a job's three brokers needs: where the others are. A broker that is alone asks nothing.
func BrokerACL(job string) string {
	return fmt.Sprintf(`# The brokers of %[1]q: where the others are.
service "%[1]s-brokers" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
`, job)
}

// BrokerRole is the role of the task "broker" of a job.
func BrokerRole(job string) string { return "retinue-broker-" + job }

// NomadACL returns the Nomad ACL policy of coordinators in mode dispatch: they make children of a parameterized job, see which there are and how these end, and
// stop them. Nomad has no right for one job alone: it holds for the namespace.
func NomadACL(namespace string) string {
	return fmt.Sprintf(`# The coordinators of mode dispatch: make a job of each item, see which there are and how they end, stop them.
namespace %q {
  capabilities = ["dispatch-job", "list-jobs", "read-job", "deregister-job"]
}
`, namespace)
}

// RoleName is the Consul role that the binding rule
// "retinue-${value.nomad_task}-${value.nomad_job_id}" gives to the task
// "coordinator" of a job. A role that does not exist gives nothing.
func RoleName(job string) string { return "retinue-coordinator-" + job }

// Allow creates or updates the policy and the role of a job's coordinators. The client's token needs acl:write.
func Allow(client *consul.Client, job string) error {
	return consulkit.Allow(client, RoleName(job), "Retinue: what the coordinators of job "+job+" may do", ACL(job))
}

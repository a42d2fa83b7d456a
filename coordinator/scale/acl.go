package scale

import (
	"fmt"

	consul "github.com/hashicorp/consul/api"

	"retinue/internal/consulkit"
)

// ACL returns the Consul ACL rules that the scalers of a job need: the key by which they agree on one, its session, the coordinators'
// reports, and where the broker is.
func ACL(job string) string {
	return fmt.Sprintf(`# Which scaler leads, and what it says.
key_prefix "retinue/queues/%[1]s/scaler/" {
  policy = "write"
}

# What the coordinators report; the reports of dead ones are removed.
key_prefix "retinue/queues/%[1]s/load/" {
  policy = "write"
}

# Sessions live on a node of their own, which has no agent.
session %[2]q {
  policy = "write"
}

node %[2]q {
  policy = "write"
}

# Where the job's own broker is; an instance whose node cannot be read is not shown.
service "%[1]s-broker" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
`, job, VirtualNode)
}

// NomadACL returns the Nomad ACL policy of a job's scalers. Nomad has no right to scale one job: whoever may do this may scale every job
// of the namespace. A scaler names its own.
func NomadACL(namespace string) string {
	return fmt.Sprintf(`# The scalers: see the count of their job, and change it.
namespace %q {
  capabilities = ["list-jobs", "read-job-scaling", "scale-job"]
}
`, namespace)
}

// RoleName is the Consul role that the binding rule "retinue-${value.nomad_task}-${value.nomad_job_id}" gives to the task "scaler" of a
// job, and the name of the Nomad policy.
func RoleName(job string) string { return "retinue-scaler-" + job }

// Allow creates or updates the Consul policy and role of a job's scalers. The client's token needs acl:write.
func Allow(client *consul.Client, job string) error {
	return consulkit.Allow(client, RoleName(job), "Retinue: what the scalers of job "+job+" may do", ACL(job))
}

package gather

import (
	"fmt"
	"strings"

	consul "github.com/hashicorp/consul/api"

	"retinue/internal/consulkit"
)

// ACL returns the Consul ACL rules that a root needs: to read its leaves'
// services, and the nodes that they run on. It writes nothing.
func ACL(services ...string) string {
	var b strings.Builder
	for _, service := range services {
		fmt.Fprintf(&b, "service %q {\n  policy = \"read\"\n}\n\n", service)
	}
	b.WriteString("# Hedges go to another node, and an instance whose node cannot be read is not shown.\nnode_prefix \"\" {\n  policy = \"read\"\n}\n")
	return b.String()
}

// RoleName is the Consul role that the binding rule
// "retinue-${value.nomad_task}-${value.nomad_job_id}" gives to the task "gather"
// of a job. A role that does not exist gives nothing.
func RoleName(job string) string { return "retinue-gather-" + job }

// Allow creates or updates the policy and the role of a job's roots. The client's token needs acl:write.
func Allow(client *consul.Client, job string, services ...string) error {
	return consulkit.Allow(client, RoleName(job), "Retinue: what the roots of job "+job+" may do", ACL(services...))
}

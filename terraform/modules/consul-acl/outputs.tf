output "role_name" {
  description = "Name of the Consul role."
  value       = consul_acl_role.helper.name
}

output "policy_name" {
  description = "Name of the Consul policy."
  value       = consul_acl_policy.helper.name
}

output "rules" {
  description = "The rules of the policy, for review."
  value       = consul_acl_policy.helper.rules
}

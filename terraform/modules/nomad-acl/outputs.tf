output "policy_name" {
  description = "Name of the Nomad policy."
  value       = nomad_acl_policy.helper.name
}

output "rules" {
  description = "The rules of the policy, for review."
  value       = nomad_acl_policy.helper.rules_hcl
}

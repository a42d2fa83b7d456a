output "job_id" {
  description = "ID of the Nomad job."
  value       = nomad_job.this.id
}

output "service" {
  description = "Consul service of the roots at the top: where clients send their requests."
  value       = var.job_name
}

output "leaf_services" {
  description = "Consul services of the leaves, one for each branch."
  value       = [for branch in range(var.branches) : "${var.job_name}-leaf-${branch}"]
}

output "branch_service" {
  description = "Consul service of the branches. The meta of an instance says which one it is."
  value       = "${var.job_name}-branch"
}

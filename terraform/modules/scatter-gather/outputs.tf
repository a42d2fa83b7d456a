output "job_id" {
  description = "ID of the Nomad job."
  value       = nomad_job.this.id
}

output "service" {
  description = "Consul service of the roots: where clients send their requests."
  value       = var.job_name
}

output "leaf_service" {
  description = "Consul service of the leaves. The meta of an instance says its shard."
  value       = var.leaf_service != "" ? var.leaf_service : "${var.job_name}-leaf"
}

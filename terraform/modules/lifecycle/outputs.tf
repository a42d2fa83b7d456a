output "job_id" {
  description = "ID of the Nomad job."
  value       = nomad_job.this.id
}

output "service" {
  description = "Consul service of the servers."
  value       = var.job_name
}

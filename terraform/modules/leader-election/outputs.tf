output "job_id" {
  description = "ID of the Nomad job."
  value       = nomad_job.this.id
}

output "elector_service" {
  description = "Consul service of the electors. An instance carries the tag leads-<election> where it leads, so leads-<election>.<this>.service.consul is the leader."
  value       = "${var.job_name}-elector"
}

output "election_keys" {
  description = "Consul key of each election, by its name: who leads, since when, and the lock."
  value       = { for election in var.elections : election => "retinue/elections/${var.job_name}/${election}" }
}

output "application_service" {
  description = "Consul service of the replicas of the application."
  value       = var.job_name
}

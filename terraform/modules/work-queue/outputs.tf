output "job_id" {
  description = "ID of the Nomad job."
  value       = nomad_job.this.id
}

output "broker_service" {
  description = "Consul service of the job's own broker; empty where queue_url names another one."
  value       = var.queue_url == "" ? "${var.job_name}-broker" : ""
}

output "queue" {
  description = "Name of the queue."
  value       = var.job_name
}

output "job_id" {
  description = "ID of the parameterized job, which a coordinator names with --job."
  value       = nomad_job.this.id
}

output "job_id" {
  description = "ID of the Nomad job."
  value       = module.election.job_id
}

output "elector_service" {
  description = "Consul service that shows who leads."
  value       = module.election.elector_service
}

output "election_keys" {
  description = "Consul key of each election."
  value       = module.election.election_keys
}

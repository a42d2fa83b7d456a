output "job_id" {
  description = "ID of the Nomad job."
  value       = module.search.job_id
}

output "service" {
  description = "Consul service where clients find the root."
  value       = module.search.service
}

output "leaf_service" {
  description = "Consul service of the leaves."
  value       = module.search.leaf_service
}

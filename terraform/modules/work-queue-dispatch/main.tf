locals {
  # Nomad reads list, map and object values as HCL expressions. JSON is one, but
  # ${...} in its strings is for Nomad to fill in at run time, not to evaluate now.
  expressions = {
    for name, value in {
      datacenters      = jsonencode(var.datacenters)
      worker_args      = jsonencode(var.worker_args)
      worker_env       = jsonencode(var.worker_env)
      worker_artifacts = jsonencode(var.worker_artifacts)
      worker_resources = jsonencode(var.worker_resources)
      grace_seconds    = jsonencode(var.grace_seconds)
      logs             = jsonencode(var.logs)
    } : name => replace(replace(value, "$${", "$$${"), "%%{", "%%%{")
  }

  # Values of string variables are taken as they are.
  strings = {
    job_name        = var.job_name
    namespace       = var.namespace
    driver          = var.driver
    network_mode    = var.network_mode
    volume          = var.volume
    volume_type     = var.volume_type
    retinue_command = var.retinue_command
    worker_image    = var.worker_image
    worker_command  = var.worker_command
  }
}

resource "nomad_job" "this" {
  jobspec          = file("${path.module}/work-queue-dispatch.nomad.hcl")
  purge_on_destroy = var.purge_on_destroy

  hcl2 {
    vars = merge(local.expressions, local.strings)
  }
}

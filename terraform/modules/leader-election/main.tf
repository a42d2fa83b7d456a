locals {
  # Nomad reads list, map and object values as HCL expressions. JSON is one, but
  # ${...} in its strings is for Nomad to fill in at run time, not to evaluate now.
  expressions = {
    for name, value in {
      datacenters       = jsonencode(var.datacenters)
      count             = jsonencode(var.replicas)
      elections         = jsonencode(var.elections)
      elector_port      = jsonencode(var.elector_port)
      elector_resources = jsonencode(var.elector_resources)
      app_args          = jsonencode(var.app_args)
      app_env           = jsonencode(var.app_env)
      app_port          = jsonencode(var.app_port)
      app_resources     = jsonencode(var.app_resources)
    } : name => replace(replace(value, "$${", "$$${"), "%%{", "%%%{")
  }

  # Values of string variables are taken as they are.
  strings = {
    job_name         = var.job_name
    namespace        = var.namespace
    driver           = var.driver
    network_mode     = var.network_mode
    consul_http_addr = var.consul_http_addr
    consul_ui        = var.consul_ui
    retinue_image    = var.retinue_image
    retinue_command  = var.retinue_command
    lease            = var.lease
    revocation       = var.revocation
    app_image        = var.app_image
    app_command      = var.app_command
  }
}

resource "nomad_job" "this" {
  jobspec          = file("${path.module}/leader-election.nomad.hcl")
  detach           = !var.wait
  purge_on_destroy = var.purge_on_destroy

  hcl2 {
    vars = merge(local.expressions, local.strings)
  }
}

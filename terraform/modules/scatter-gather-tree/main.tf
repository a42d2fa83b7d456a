locals {
  # Nomad reads list, map and object values as HCL expressions. JSON is one, but
  # ${...} in its strings is for Nomad to fill in at run time, not to evaluate now.
  expressions = {
    for name, value in {
      datacenters      = jsonencode(var.datacenters)
      roots            = jsonencode(var.roots)
      branches         = jsonencode(var.branches)
      leaves           = jsonencode(var.leaves)
      replicas         = jsonencode(var.replicas)
      distinct_hosts   = jsonencode(var.distinct_hosts)
      gather_env       = jsonencode(var.gather_env)
      port             = jsonencode(var.port)
      gather_resources = jsonencode(var.gather_resources)
      leaf_args        = jsonencode(var.leaf_args)
      leaf_env         = jsonencode(var.leaf_env)
      leaf_artifacts   = jsonencode(var.leaf_artifacts)
      leaf_port        = jsonencode(var.leaf_port)
      leaf_resources   = jsonencode(var.leaf_resources)
      merge_args       = jsonencode(var.merge_args)
      merge_env        = jsonencode(var.merge_env)
      merge_artifacts  = jsonencode(var.merge_artifacts)
      merge_port       = jsonencode(var.merge_port)
      merge_resources  = jsonencode(var.merge_resources)
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
    deadline         = var.deadline
    partial          = var.partial
    hedge_budget     = var.hedge_budget
    leaf_image       = var.leaf_image
    leaf_command     = var.leaf_command
    leaf_health      = var.leaf_health
    merge            = var.merge
    merge_image      = var.merge_image
    merge_command    = var.merge_command
    merge_format     = var.merge_format
  }
}

resource "nomad_job" "this" {
  jobspec          = file("${path.module}/scatter-gather-tree.nomad.hcl")
  detach           = !var.wait
  purge_on_destroy = var.purge_on_destroy

  hcl2 {
    vars = merge(local.expressions, local.strings)
  }
}

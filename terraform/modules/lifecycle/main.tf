locals {
  # Nomad reads list, map and object values as HCL expressions. JSON is one, but
  # ${...} in its strings is for Nomad to fill in at run time, not to evaluate now.
  expressions = {
    for name, value in {
      datacenters  = jsonencode(var.datacenters)
      count        = jsonencode(var.replicas)
      priority     = jsonencode(var.priority)
      args         = jsonencode(var.args)
      env          = jsonencode(var.env)
      app_port     = jsonencode(var.app_port)
      post_start   = jsonencode(var.post_start)
      pre_stop     = jsonencode(var.pre_stop)
      max_replicas = jsonencode(var.max_replicas)
      disk         = jsonencode(var.disk)
      resources    = jsonencode(var.resources)
    } : name => replace(replace(value, "$${", "$$${"), "%%{", "%%%{")
  }

  # Values of string variables are taken as they are.
  strings = {
    job_name         = var.job_name
    namespace        = var.namespace
    driver           = var.driver
    network_mode     = var.network_mode
    retinue_image    = var.retinue_image
    retinue_command  = var.retinue_command
    image            = var.image
    command          = var.command
    check_path       = var.check_path
    budget           = var.budget
    kill_timeout     = var.kill_timeout
    ready            = var.ready
    start_timeout    = var.start_timeout
    pause            = var.pause
    resume           = var.resume
    pre_drain        = var.pre_drain
    drain            = var.drain
    drain_timeout    = var.drain_timeout
    save_state       = var.save_state
    state_store      = var.state_store
    state_max_size   = var.state_max_size
    state_every      = var.state_every
    app_version      = var.app_version
    pre_stop_timeout = var.pre_stop_timeout
  }
}

resource "nomad_job" "this" {
  jobspec          = file("${path.module}/lifecycle.nomad.hcl")
  detach           = !var.wait
  purge_on_destroy = var.purge_on_destroy

  hcl2 {
    vars = merge(local.expressions, local.strings)
  }
}

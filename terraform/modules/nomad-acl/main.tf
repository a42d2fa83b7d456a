locals {
  # Each pattern's helper is a task of this name, in its jobspec; a coordinator's group is that of the workers.
  task  = var.task == "" ? var.pattern : var.task
  group = var.group != "" ? var.group : var.pattern == "coordinator" ? "worker" : local.task

  rules = {
    # What the scalers of a work queue do: they see the count of their job, and change it.
    scaler = ["list-jobs", "read-job-scaling", "scale-job"]

    # What coordinators in mode dispatch do: they make a job of each item, see which
    # there are and how they end, and stop them.
    coordinator = ["dispatch-job", "list-jobs", "read-job", "deregister-job"]
  }
}

resource "nomad_acl_policy" "helper" {
  name        = "retinue-${local.task}-${var.job_name}"
  description = "The ${local.task} of the Nomad job ${var.job_name}."

  rules_hcl = <<-EOT
    namespace "${var.namespace}" {
      capabilities = [${join(", ", [for right in local.rules[var.pattern] : "\"${right}\""])}]
    }
  EOT

  job_acl {
    namespace = var.namespace
    job_id    = var.job_name
    group     = local.group
    task      = local.task
  }
}

locals {
  # Each pattern's helper is a task of this name in its jobspec.
  task = var.task == "" ? var.pattern : var.task

  # The name that a cluster-wide binding rule with the bind name
  # retinue-$${value.nomad_task}-$${value.nomad_job_id} finds.
  name = "retinue-${local.task}-${var.job_name}"

  description = "The ${local.task} of the Nomad job ${var.job_name}."

  services = length(var.services) > 0 ? var.services : ["${var.job_name}-leaf"]

  rules = {
    # What an elector of this job does in Consul, and nothing else: sessions of the
    # virtual node that all elections share, the keys of its own elections, and the
    # service that shows who leads.
    elector = <<-EOT
      session "retinue-elections" {
        policy = "write"
      }
      node "retinue-elections" {
        policy = "write"
      }
      key_prefix "retinue/elections/${var.job_name}/" {
        policy = "write"
      }
      service "${var.job_name}-elector" {
        policy = "write"
      }
    EOT

    # What a root of scatter/gather does: it reads where its leaves are.
    gather = join("", concat(
      [for service in local.services : "service \"${service}\" {\n  policy = \"read\"\n}\n"],
      ["node_prefix \"\" {\n  policy = \"read\"\n}\n"],
    ))

    # What the coordinators of a work queue do: they keep the records of their own
    # journal, agree on who holds which partition by sessions of a node that has no
    # agent, and read where their broker is.
    coordinator = <<-EOT
      key_prefix "retinue/queues/${var.job_name}/" {
        policy = "write"
      }
      session "retinue-coordinators" {
        policy = "write"
      }
      node "retinue-coordinators" {
        policy = "write"
      }
      service "${var.job_name}-broker" {
        policy = "read"
      }
      node_prefix "" {
        policy = "read"
      }
    EOT

    # What each of the three brokers of a work queue does: it reads where the others
    # are.
    broker = <<-EOT
      service "${var.job_name}-brokers" {
        policy = "read"
      }
      node_prefix "" {
        policy = "read"
      }
    EOT

    # What the scalers of a work queue do: they agree on one of them by a session, of
    # a node that has no agent, read what the coordinators report, and remove what
    # dead ones left.
    scaler = <<-EOT
      key_prefix "retinue/queues/${var.job_name}/scaler/" {
        policy = "write"
      }
      key_prefix "retinue/queues/${var.job_name}/load/" {
        policy = "write"
      }
      session "retinue-scalers" {
        policy = "write"
      }
      node "retinue-scalers" {
        policy = "write"
      }
      service "${var.job_name}-broker" {
        policy = "read"
      }
      node_prefix "" {
        policy = "read"
      }
    EOT
  }
}

resource "consul_acl_policy" "helper" {
  name        = local.name
  description = local.description
  rules       = local.rules[var.pattern]
}

resource "consul_acl_role" "helper" {
  name        = local.name
  description = local.description
  policies    = [consul_acl_policy.helper.id]
}

resource "consul_acl_binding_rule" "helper" {
  count = var.auth_method == "" ? 0 : 1

  auth_method = var.auth_method
  description = local.description
  selector    = "\"nomad_service\" not in value and value.nomad_job_id == \"${var.job_name}\" and value.nomad_task == \"${local.task}\""
  bind_type   = "role"
  bind_name   = consul_acl_role.helper.name
}

# An elector beside the main task: it asks on localhost whether it leads.
#
# `retinue inject leader-election` puts this around a job of your own.

variable "retinue_image" {
  description = "Image of Retinue's helpers, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
}

variable "retinue_command" {
  description = "The retinue binary as the tasks see it."
  type        = string
  default     = "/usr/local/bin/retinue"
}

variable "retinue_consul_http_addr" {
  description = "How Retinue's helpers reach the Consul agent of their node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
  type        = string
  default     = ""
}

variable "retinue_elector_app" {
  description = "Name of the application in Consul and prefix of its elections."
  type        = string
  default     = "$${NOMAD_JOB_NAME}"
}

variable "retinue_elector_elections" {
  description = "Names of the elections, one for each shard."
  type        = list(string)
  default     = ["leader"]
}

variable "retinue_elector_lease" {
  description = "How long a leader may act after its last confirmation."
  type        = string
  default     = "10s"
}

variable "retinue_elector_revocation" {
  description = "safe: Consul keeps a revoked lock for one lease. fast: it does not, so an operator's Invalidate relies on fencing alone."
  type        = string
  default     = "safe"
}

variable "retinue_elector_port" {
  description = "Loopback port of the elector in bridge mode."
  type        = number
  default     = 4040
}

variable "retinue_elector_resources" {
  description = "CPU shares in MHz and memory in MB of the elector."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 50, memory = 64 }
}

locals {
  retinue_elector_bridge = local.retinue_elector_network_mode != "host"
  retinue_elector_tcp    = "http://127.0.0.1:${var.retinue_elector_port}"
}

group {
  task "elector" {
    driver = local.retinue_elector_driver

    # Leaders that are asked to step down have their lease to do so.
    kill_timeout = "20s"

    lifecycle {
      hook    = "prestart"
      sidecar = true
    }

    consul {}

    dynamic "config" {
      for_each = local.retinue_elector_driver == "docker" ? [1] : []

      content {
        image        = var.retinue_image
        command      = var.retinue_command
        args         = ["elector"]
        network_mode = local.retinue_elector_bridge ? "" : "host"
      }
    }

    dynamic "config" {
      for_each = local.retinue_elector_driver == "docker" ? [] : [1]

      content {
        command = var.retinue_command
        args    = ["elector"]
      }
    }

    env {
      CONSUL_HTTP_ADDR           = var.retinue_consul_http_addr
      RETINUE_ELECTOR_APP        = var.retinue_elector_app
      RETINUE_ELECTOR_ELECTION   = join(",", var.retinue_elector_elections)
      RETINUE_ELECTOR_LEASE      = var.retinue_elector_lease
      RETINUE_ELECTOR_REVOCATION = var.retinue_elector_revocation
      RETINUE_ELECTOR_LISTEN     = join(",", concat(["unix://${NOMAD_ALLOC_DIR}/tmp/elector.sock"], local.retinue_elector_bridge ? [local.retinue_elector_tcp] : []))
      RETINUE_ELECTOR_ADDRESS    = local.retinue_elector_address
      RETINUE_ELECTOR_HOST       = "${node.unique.name}"
    }

    action "status" {
      command = var.retinue_command
      args    = ["elector", "status"]
    }

    action "stepdown" {
      command = var.retinue_command
      args    = ["elector", "stepdown"]
    }

    resources {
      cpu    = var.retinue_elector_resources.cpu
      memory = var.retinue_elector_resources.memory
    }
  }
}

main {
  # Nomad stops the leader task first: the lock is released in milliseconds.
  leader = local.retinue_elector_leader

  # RETINUE_ELECTOR_ADDR and RETINUE_ELECTIONS, whatever the form of the task's own env.
  template {
    destination = "secrets/retinue-elector.env"
    env         = true
    change_mode = "noop"
    data        = <<-EOT
      RETINUE_ELECTOR_ADDR=${local.retinue_elector_bridge ? local.retinue_elector_tcp : "unix://{{ env `NOMAD_ALLOC_DIR` }}/tmp/elector.sock"}
      RETINUE_ELECTIONS=${join(",", var.retinue_elector_elections)}
    EOT
  }
}

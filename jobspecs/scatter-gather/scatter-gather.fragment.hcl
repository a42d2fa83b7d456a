# The root of scatter/gather beside the main task, which is your merge.
#
# `retinue inject scatter-gather` puts this around a job of your own. The leaves
# are the instances of a Consul service, each with its shard in its meta.

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

variable "retinue_gather_service" {
  description = "Consul service of the leaves. Their meta says which shard they serve: meta { shard = \"0\" }."
  type        = string
}

variable "retinue_gather_shards" {
  description = "Number of shards of the data. One that nobody serves is reported as missing."
  type        = number
}

variable "retinue_gather_name" {
  description = "Name of the root's service in Consul."
  type        = string
  default     = "$${NOMAD_JOB_NAME}"
}

variable "retinue_gather_deadline" {
  description = "Time for a request that names none."
  type        = string
  default     = "500ms"
}

variable "retinue_gather_partial" {
  description = "Which partial answers are answers: fail (none), coverage(0.95), quorum(13) or best."
  type        = string
  default     = "fail"
}

variable "retinue_gather_merge" {
  description = "A built-in merge instead of the main task: concat-ndjson, json-array, sum, first or top-k(FIELD,LIMIT). Empty: the main task."
  type        = string
  default     = ""
}

variable "retinue_gather_merge_format" {
  description = "How the merge gets the leaves' answers: ndjson (as they arrive), multipart (binary bodies) or batch (one JSON array at the end)."
  type        = string
  default     = "ndjson"
}

variable "retinue_gather_merge_port" {
  description = "Loopback port of the merge in bridge mode."
  type        = number
  default     = 9000
}

variable "retinue_gather_port" {
  description = "Port of the root in bridge mode. Clients find the published one in Consul."
  type        = number
  default     = 8090
}

variable "retinue_gather_env" {
  description = "Further settings of the root by its environment, such as { RETINUE_GATHER_HEDGE_BUDGET = \"5%\" }."
  type        = map(string)
  default     = {}
}

variable "retinue_gather_resources" {
  description = "CPU shares in MHz and memory in MB of the root."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
}

locals {
  retinue_gather_bridge = local.retinue_gather_network_mode != "host"
}

network {
  port "retinue_gather" {
    to = local.retinue_gather_bridge ? var.retinue_gather_port : 0
  }
}

group {
  service {
    name = var.retinue_gather_name
    port = "retinue_gather"

    # Not /-/readyz: a root whose shard is missing says so to its clients.
    check {
      type     = "http"
      path     = "/-/healthz"
      interval = "3s"
      timeout  = "2s"
    }
  }

  task "gather" {
    driver       = local.retinue_gather_driver
    kill_timeout = "10s"

    # Stopped first, so that it answers with the merge to the end.
    leader = local.retinue_gather_leader

    consul {}

    dynamic "config" {
      for_each = local.retinue_gather_driver == "docker" ? [1] : []

      content {
        image        = var.retinue_image
        command      = var.retinue_command
        args         = ["gather"]
        network_mode = local.retinue_gather_bridge ? "" : "host"
      }
    }

    dynamic "config" {
      for_each = local.retinue_gather_driver == "docker" ? [] : [1]

      content {
        command = var.retinue_command
        args    = ["gather"]
      }
    }

    env = merge({
      CONSUL_HTTP_ADDR            = var.retinue_consul_http_addr
      RETINUE_GATHER_NAME         = var.retinue_gather_name
      RETINUE_GATHER_LISTEN       = local.retinue_gather_bridge ? "0.0.0.0:${NOMAD_PORT_retinue_gather}" : "${NOMAD_ADDR_retinue_gather}"
      RETINUE_GATHER_SERVICE      = var.retinue_gather_service
      RETINUE_GATHER_SHARDS       = "${var.retinue_gather_shards}"
      RETINUE_GATHER_MERGE        = var.retinue_gather_merge != "" ? var.retinue_gather_merge : local.retinue_gather_bridge ? "http://127.0.0.1:${var.retinue_gather_merge_port}/" : "unix://${NOMAD_ALLOC_DIR}/tmp/merge.sock"
      RETINUE_GATHER_MERGE_FORMAT = var.retinue_gather_merge_format
      RETINUE_GATHER_DEADLINE     = var.retinue_gather_deadline
      RETINUE_GATHER_PARTIAL      = var.retinue_gather_partial
    }, var.retinue_gather_env)

    action "leaves" {
      command = var.retinue_command
      args    = ["gather", "top", "--once"]
    }

    action "slow" {
      command = var.retinue_command
      args    = ["gather", "explain"]
    }

    resources {
      cpu    = var.retinue_gather_resources.cpu
      memory = var.retinue_gather_resources.memory
    }
  }
}

main {
  # Where the merge listens, RETINUE_MERGE_LISTEN, whatever the form of the task's own env.
  template {
    destination = "secrets/retinue-gather.env"
    env         = true
    change_mode = "noop"
    data        = <<-EOT
      RETINUE_MERGE_LISTEN=${local.retinue_gather_bridge ? "127.0.0.1:${var.retinue_gather_merge_port}" : "unix://{{ env `NOMAD_ALLOC_DIR` }}/tmp/merge.sock"}
    EOT
  }
}

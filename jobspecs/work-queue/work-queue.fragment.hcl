# A coordinator beside the main task, which is your worker: it gets items by HTTP or as folders.
#
# `retinue inject work-queue` puts this around a job of your own. The queue is
# on a broker that is there already.

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

variable "retinue_queue_url" {
  description = "The broker, such as redis://redis.example.com:6379, amqp://user@rabbit.example.com/ or the one of a job work-queue: nats://retinue@JOB-broker.service.consul?password_file=... . Nomad renders it as a template, so a password can stay in a Nomad variable."
  type        = string
}

variable "retinue_queue_name" {
  description = "Name of the queue."
  type        = string
  default     = "$${NOMAD_JOB_NAME}"
}

variable "retinue_queue_mode" {
  description = "How the worker gets an item: http (a request to its port or socket) or watch (it claims folders)."
  type        = string
  default     = "http"

  validation {
    condition     = contains(["watch", "http"], var.retinue_queue_mode)
    error_message = "The retinue_queue_mode must be http or watch."
  }
}

variable "retinue_queue_slots" {
  description = "Items that the worker handles at once."
  type        = number
  default     = 4
}

variable "retinue_queue_attempts" {
  description = "Attempts that may fail before an item is a dead letter."
  type        = number
  default     = 5
}

variable "retinue_queue_max_runtime" {
  description = "How long one attempt may take."
  type        = string
  default     = "1h"
}

variable "retinue_queue_drain_seconds" {
  description = "How long a stop waits for what runs; the rest goes back to the queue. Nomad's max_kill_timeout must be 10 seconds more."
  type        = number
  default     = 20
}

variable "retinue_queue_to" {
  description = "Queue of the next stage, on the same broker. Empty: none, the output stays in the item's record."
  type        = string
  default     = ""
}

variable "retinue_queue_commit" {
  description = "Where an item's end is decided: journal (in Consul), publish (needs retinue_queue_to) or none."
  type        = string
  default     = "journal"

  validation {
    condition     = contains(["journal", "publish", "none"], var.retinue_queue_commit)
    error_message = "The retinue_queue_commit must be journal, publish or none."
  }
}

variable "retinue_queue_worker_port" {
  description = "Loopback port of the worker in bridge mode, for mode http."
  type        = number
  default     = 9000
}

variable "retinue_queue_env" {
  description = "Further settings of the coordinators by their environment, such as { RETINUE_COORDINATOR_RATE = \"10/s\" }."
  type        = map(string)
  default     = {}
}

variable "retinue_queue_resources" {
  description = "CPU shares in MHz and memory in MB of a coordinator."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

locals {
  retinue_queue_bridge = local.retinue_queue_network_mode != "host"
}

group {
  # Up before the worker. It is stopped first: what runs has time to end, and the worker is there meanwhile.
  task "coordinator" {
    driver       = local.retinue_queue_driver
    leader       = local.retinue_queue_leader
    kill_timeout = "${var.retinue_queue_drain_seconds + 10}s"

    lifecycle {
      hook    = "prestart"
      sidecar = true
    }

    consul {}

    dynamic "config" {
      for_each = local.retinue_queue_driver == "docker" ? [1] : []

      content {
        image        = var.retinue_image
        command      = var.retinue_command
        args         = ["coordinator"]
        network_mode = local.retinue_queue_bridge ? "" : "host"
      }
    }

    dynamic "config" {
      for_each = local.retinue_queue_driver == "docker" ? [] : [1]

      content {
        command = var.retinue_command
        args    = ["coordinator"]
      }
    }

    env = merge({
      CONSUL_HTTP_ADDR                  = var.retinue_consul_http_addr
      RETINUE_COORDINATOR_QUEUE         = var.retinue_queue_name
      RETINUE_COORDINATOR_NODE          = "${node.unique.name}"
      RETINUE_COORDINATOR_MODE          = var.retinue_queue_mode
      RETINUE_COORDINATOR_URL           = var.retinue_queue_mode != "http" ? "" : local.retinue_queue_bridge ? "http://127.0.0.1:${var.retinue_queue_worker_port}/" : "unix://${NOMAD_ALLOC_DIR}/tmp/worker.sock"
      RETINUE_COORDINATOR_SLOTS         = "${var.retinue_queue_slots}"
      RETINUE_COORDINATOR_ATTEMPTS      = "${var.retinue_queue_attempts}"
      RETINUE_COORDINATOR_MAX_RUNTIME   = var.retinue_queue_max_runtime
      RETINUE_COORDINATOR_DRAIN_TIMEOUT = "${var.retinue_queue_drain_seconds}s"
      RETINUE_COORDINATOR_TO            = var.retinue_queue_to
      RETINUE_COORDINATOR_COMMIT        = var.retinue_queue_commit
      RETINUE_COORDINATOR_JOURNAL       = var.retinue_queue_commit == "journal" ? "consul:${NOMAD_JOB_NAME}" : ""
    }, var.retinue_queue_env)

    template {
      destination = "secrets/broker.env"
      perms       = "600"
      env         = true
      data        = "RETINUE_COORDINATOR_BROKER=${var.retinue_queue_url}"
    }

    action "stats" {
      command = var.retinue_command
      args    = ["queue", "stats"]
    }

    action "items" {
      command = var.retinue_command
      args    = ["queue", "ls"]
    }

    action "dead" {
      command = var.retinue_command
      args    = ["queue", "dead", "ls"]
    }

    action "retry-dead" {
      command = var.retinue_command
      args    = ["queue", "dead", "retry", "--all"]
    }

    resources {
      cpu    = var.retinue_queue_resources.cpu
      memory = var.retinue_queue_resources.memory
    }
  }
}

main {
  # How many items at once, and in mode http where to listen, whatever the form of the task's own env.
  template {
    destination = "secrets/retinue-coordinator.env"
    env         = true
    change_mode = "noop"
    data        = <<-EOT
      RETINUE_WORKER_SLOTS=${var.retinue_queue_slots}
      RETINUE_WORKER_LISTEN=${var.retinue_queue_mode != "http" ? "" : local.retinue_queue_bridge ? "127.0.0.1:${var.retinue_queue_worker_port}" : "unix://{{ env `NOMAD_ALLOC_DIR` }}/tmp/worker.sock"}
    EOT
  }
}

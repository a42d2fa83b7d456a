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
  description = "The broker, such as redis://redis.example.com:6379, kafka://kafka.example.com:9092, sqs://eu-central-1 or the one of a job work-queue: nats://retinue@JOB-broker.service.consul?password_file=... . Nomad renders it as a template, so a password can stay in a Nomad variable."
  type        = string

  validation {
    condition     = substr(var.retinue_queue_url, 0, 2) == "{{" || contains(["nats", "tls", "redis", "rediss", "amqp", "amqps", "stomp", "stomps", "kafka", "kafkas", "sqs"], split(":", var.retinue_queue_url)[0])
    error_message = "The retinue_queue_url must begin with nats://, tls://, redis://, rediss://, amqp://, amqps://, stomp://, stomps://, kafka://, kafkas:// or sqs://, or be a Nomad template."
  }
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

  validation {
    condition     = var.retinue_queue_slots >= 1 && floor(var.retinue_queue_slots) == var.retinue_queue_slots
    error_message = "The retinue_queue_slots must be a whole number, 1 or more."
  }
}

variable "retinue_queue_attempts" {
  description = "Attempts that may fail before an item is a dead letter."
  type        = number
  default     = 5

  validation {
    condition     = var.retinue_queue_attempts >= 1 && floor(var.retinue_queue_attempts) == var.retinue_queue_attempts
    error_message = "The retinue_queue_attempts must be a whole number, 1 or more."
  }
}

variable "retinue_queue_max_runtime" {
  description = "How long one attempt may take."
  type        = string
  default     = "1h"

  validation {
    condition     = regex_replace(var.retinue_queue_max_runtime, "^([0-9.]+(ms|s|m|h))+$", "") == ""
    error_message = "The retinue_queue_max_runtime must be a time like 30s or 1h30m."
  }
}

variable "retinue_queue_drain_seconds" {
  description = "How long a stop waits for what runs; the rest goes back to the queue. Nomad's max_kill_timeout must be 10 seconds more."
  type        = number
  default     = 20

  validation {
    condition     = var.retinue_queue_drain_seconds >= 0 && floor(var.retinue_queue_drain_seconds) == var.retinue_queue_drain_seconds
    error_message = "The retinue_queue_drain_seconds must be a whole number, 0 or more."
  }
}

variable "retinue_queue_to" {
  description = "Queue of the next stage, on the same broker. Empty: none, the output stays in the item's record."
  type        = string
  default     = ""
}

variable "retinue_queue_split" {
  description = "The messages of one item to the next stage are a group, which retinue_queue_gather of that stage or a later one makes one item again."
  type        = bool
  default     = false
}

variable "retinue_queue_gather" {
  description = "Queue that gets one item when all parts of a group are committed. Empty: none."
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

  validation {
    condition     = var.retinue_queue_worker_port >= 1 && var.retinue_queue_worker_port <= 65535 && floor(var.retinue_queue_worker_port) == var.retinue_queue_worker_port
    error_message = "The retinue_queue_worker_port must be between 1 and 65535."
  }
}

variable "retinue_queue_allow" {
  description = "Inputs by reference may lie below these addresses and folders, such as s3://pictures/in, https://files.example.com/in or a folder. Empty: an item is its input."
  type        = list(string)
  default     = []
}

variable "retinue_queue_artifacts" {
  description = "Where the files of outputs are uploaded, such as s3://pictures/out. Empty: outputs stay in records and messages."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", "s3"], split(":", var.retinue_queue_artifacts)[0])
    error_message = "The retinue_queue_artifacts must be like s3://BUCKET/PREFIX."
  }
}

variable "retinue_queue_aws_credentials" {
  description = "Give the coordinators the key of S3, and of a queue on SQS: aws_access_key_id, aws_secret_access_key and, if it is there, aws_session_token of the Nomad variable nomad/jobs/<ID of the job>."
  type        = bool
  default     = false
}

variable "retinue_queue_keep" {
  description = "How long records and outputs are kept, such as 7d. An item that comes again later is a new one. Empty: for ever."
  type        = string
  default     = ""

  validation {
    condition     = regex_replace(var.retinue_queue_keep, "^([0-9.]+d|([0-9.]+(s|m|h))+)$", "") == ""
    error_message = "The retinue_queue_keep must be a time like 7d or 36h, or empty."
  }
}

variable "retinue_queue_env" {
  description = "Further settings of the coordinators by their environment, such as { RETINUE_COORDINATOR_RATE = \"10/s\" }."
  type        = map(string)
  default     = {}
}

variable "retinue_queue_config" {
  description = "What has no variable and no flag, such as schedules: the inside of the work_queue block of the coordinators' configuration file. What variables say counts more. Nomad renders it as a template."
  type        = string
  default     = ""
}

variable "retinue_queue_resources" {
  description = "CPU shares in MHz and memory in MB of a coordinator."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

locals {
  retinue_queue_sqs = split(":", var.retinue_queue_url)[0] == "sqs"

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
      RETINUE_COORDINATOR_SPLIT         = var.retinue_queue_split ? "true" : ""
      RETINUE_COORDINATOR_GATHER        = var.retinue_queue_gather
      RETINUE_COORDINATOR_KEEP          = var.retinue_queue_keep
      RETINUE_COORDINATOR_ALLOW         = join(",", var.retinue_queue_allow)
      RETINUE_COORDINATOR_ARTIFACTS     = var.retinue_queue_artifacts
      RETINUE_COORDINATOR_CONFIG        = var.retinue_queue_config == "" ? "" : "${NOMAD_SECRETS_DIR}/queue.hcl"
      RETINUE_COORDINATOR_COMMIT        = var.retinue_queue_commit
      RETINUE_COORDINATOR_JOURNAL       = var.retinue_queue_commit == "journal" ? "consul:${NOMAD_JOB_NAME}" : ""
    }, var.retinue_queue_aws_credentials ? { AWS_SHARED_CREDENTIALS_FILE = "${NOMAD_SECRETS_DIR}/aws-credentials" } : {}, var.retinue_queue_env)

    template {
      destination = "secrets/broker.env"
      perms       = "600"
      env         = true
      data        = "RETINUE_COORDINATOR_BROKER=${var.retinue_queue_url}"
    }

    dynamic "template" {
      for_each = var.retinue_queue_aws_credentials ? [1] : []

      content {
        destination = "secrets/aws-credentials"
        perms       = "600"
        change_mode = local.retinue_queue_sqs ? "restart" : "noop" # S3's is read at each request
        data        = "{{ with nomadVar (print `nomad/jobs/` (env `NOMAD_JOB_ID`)) }}[default]\naws_access_key_id = {{ .aws_access_key_id }}\naws_secret_access_key = {{ .aws_secret_access_key }}\n{{ with .aws_session_token }}aws_session_token = {{ . }}\n{{ end }}{{ end }}"
      }
    }

    dynamic "template" {
      for_each = var.retinue_queue_config == "" ? [] : [1]

      content {
        destination = "secrets/queue.hcl"
        perms       = "600"
        data        = "work_queue \"queue\" {\n${var.retinue_queue_config}\n}\n"
      }
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

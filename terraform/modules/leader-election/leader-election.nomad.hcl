# Leader election: an elector beside every replica of your application.
#
#   nomad job run -var count=5 leader-election.nomad.hcl
#   nomad job run -var-file=my.vars.hcl leader-election.nomad.hcl
#
# The application asks the elector on localhost (RETINUE_ELECTOR_ADDR) whether
# it leads; it needs no library and knows nothing of Consul.

variable "job_name" {
  description = "ID of the job, name of the application in Consul, prefix of its elections."
  type        = string
  default     = "leader-election"

  validation {
    condition     = regex_replace(var.job_name, "^[a-z0-9][a-z0-9-]{0,51}$", "") == ""
    error_message = "The job_name must be 1 to 52 lower-case letters, digits and dashes, because it names a Consul service."
  }
}

variable "namespace" {
  description = "Nomad namespace of the job."
  type        = string
  default     = "default"
}

variable "datacenters" {
  description = "Nomad datacenters that may run the replicas."
  type        = list(string)
  default     = ["*"]
}

variable "count" {
  description = "Number of replicas, one of which leads each election."
  type        = number
  default     = 3

  validation {
    condition     = var.count >= 0 && floor(var.count) == var.count
    error_message = "The count must be a whole number, 0 or more."
  }
}

variable "driver" {
  description = "Nomad task driver of both tasks: docker, exec or raw_exec."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver must be docker, exec or raw_exec."
  }
}

variable "network_mode" {
  description = "bridge: the elector listens on loopback of the allocation's own network. host: on a Unix socket alone."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
}

variable "consul_http_addr" {
  description = "How the elector reaches the Consul agent of its node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
  type        = string
  default     = ""
}

variable "consul_ui" {
  description = "Address of the Consul UI with its datacenter, such as https://consul.example.com/ui/dc1, for the links that the Nomad UI shows. Empty: no links."
  type        = string
  default     = ""
}

variable "retinue_image" {
  description = "Image of the elector, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
}

variable "retinue_command" {
  description = "The retinue binary as the tasks see it."
  type        = string
  default     = "/usr/local/bin/retinue"
}

variable "elections" {
  description = "Names of the elections, one for each shard."
  type        = list(string)
  default     = ["leader"]

  validation {
    condition     = length(var.elections) > 0
    error_message = "The list of elections needs at least one name."
  }
}

variable "lease" {
  description = "How long a leader may act after its last confirmation. Crash failover without a certified death takes up to 2 leases, or 3 with revocation = safe."
  type        = string
  default     = "10s"
}

variable "revocation" {
  description = "safe: Consul keeps a revoked lock for one lease. fast: it does not, so an operator's Invalidate relies on fencing alone."
  type        = string
  default     = "safe"

  validation {
    condition     = contains(["safe", "fast"], var.revocation)
    error_message = "The revocation must be safe or fast."
  }
}

variable "elector_port" {
  description = "Loopback port of the elector in bridge mode."
  type        = number
  default     = 4040
}

variable "elector_resources" {
  description = "CPU shares in MHz and memory in MB of the elector."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 50, memory = 64 }
}

variable "app_image" {
  description = "Image of the application, for the docker driver. Empty: the demo application."
  type        = string
  default     = ""
}

variable "app_command" {
  description = "Command of the application. Empty: the demo application, or with app_image the image's own."
  type        = string
  default     = ""
}

variable "app_args" {
  description = "Arguments of app_command."
  type        = list(string)
  default     = []
}

variable "app_env" {
  description = "Environment of the application."
  type        = map(string)
  default     = {}
}

variable "app_port" {
  description = "Port of the application in bridge mode. In both modes it finds its port in NOMAD_PORT_http."
  type        = number
  default     = 8080
}

variable "app_resources" {
  description = "CPU shares in MHz and memory in MB of the application."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

locals {
  bridge = var.network_mode == "bridge"
  docker = var.driver == "docker"
  socket = "unix://${NOMAD_ALLOC_DIR}/tmp/elector.sock"
  tcp    = "http://127.0.0.1:${var.elector_port}"

  demo        = var.app_image == "" && var.app_command == ""
  app_image   = var.app_image != "" ? var.app_image : var.retinue_image
  app_command = local.demo ? var.retinue_command : var.app_command
  app_args    = local.demo ? ["demo-app", "leader-election"] : var.app_args
}

job "leader-election" {
  id          = var.job_name
  name        = var.job_name
  namespace   = var.namespace
  datacenters = var.datacenters

  ui {
    description = "Leader election. Each replica has an elector beside it; the instances of the Consul service `${var.job_name}-elector` carry the tag `leads-<election>` where they lead."

    dynamic "link" {
      for_each = var.consul_ui == "" ? [] : [var.consul_ui]

      content {
        label = "Who leads (Consul)"
        url   = "${link.value}/services/${var.job_name}-elector/instances"
      }
    }

    dynamic "link" {
      for_each = var.consul_ui == "" ? [] : var.elections

      content {
        label = "Lock of ${link.value}"
        url   = "${var.consul_ui}/kv/retinue/elections/${var.job_name}/${link.value}/edit"
      }
    }
  }

  # A deployment replaces one replica at a time, so that leadership moves at most once for each.
  update {
    max_parallel     = 1
    min_healthy_time = "3s"
    healthy_deadline = "2m"
  }

  group "app" {
    count = var.count

    # Replicas on one node would be lost together.
    spread {
      attribute = "${node.unique.id}"
    }

    network {
      mode = var.network_mode

      port "http" {
        to = local.bridge ? var.app_port : 0
      }
    }

    # Within one lease a restarted elector takes its leadership up again, so it must come back fast.
    restart {
      attempts = 10
      interval = "1m"
      delay    = "1s"
      mode     = "delay"
    }

    service {
      name = var.job_name
      port = "http"

      check {
        type     = "tcp"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "elector" {
      driver = var.driver

      # Leaders that are asked to step down have their lease to do so.
      kill_timeout = "20s"

      lifecycle {
        hook    = "prestart"
        sidecar = true
      }

      consul {}

      dynamic "config" {
        for_each = local.docker ? [1] : []

        content {
          image        = var.retinue_image
          command      = var.retinue_command
          args         = ["elector"]
          network_mode = local.bridge ? "" : "host"
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : [1]

        content {
          command = var.retinue_command
          args    = ["elector"]
        }
      }

      env {
        CONSUL_HTTP_ADDR           = var.consul_http_addr
        RETINUE_ELECTOR_APP        = var.job_name
        RETINUE_ELECTOR_ELECTION   = join(",", var.elections)
        RETINUE_ELECTOR_LEASE      = var.lease
        RETINUE_ELECTOR_REVOCATION = var.revocation
        RETINUE_ELECTOR_LISTEN     = local.bridge ? "${local.socket},${local.tcp}" : local.socket
        RETINUE_ELECTOR_ADDRESS    = "${NOMAD_ADDR_http}"
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
        cpu    = var.elector_resources.cpu
        memory = var.elector_resources.memory
      }
    }

    # Nomad stops the leader task first: the application's connection to the
    # elector closes, the lock is released in milliseconds, then the elector ends.
    task "app" {
      driver = var.driver
      leader = true

      dynamic "config" {
        for_each = local.docker ? [1] : []

        content {
          image        = local.app_image
          command      = local.app_command
          args         = local.app_args
          network_mode = local.bridge ? "" : "host"
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : [1]

        content {
          command = local.app_command
          args    = local.app_args
        }
      }

      env = merge(var.app_env, {
        RETINUE_ELECTOR_ADDR = local.bridge ? local.tcp : local.socket
        RETINUE_ELECTIONS    = join(",", var.elections)
      })

      resources {
        cpu    = var.app_resources.cpu
        memory = var.app_resources.memory
      }
    }
  }
}

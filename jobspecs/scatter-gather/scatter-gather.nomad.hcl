# Scatter/gather: a root that asks every shard of your data at once and gives one answer.
#
#   nomad job run -var shards=16 -var replicas=2 scatter-gather.nomad.hcl
#   nomad job run -var-file=my.vars.hcl scatter-gather.nomad.hcl
#
# You bring a leaf, which answers for one shard, and a merge, which makes one
# answer of many (or a built-in one). Both speak plain HTTP and know nothing of
# Consul, of Nomad or of each other.

variable "job_name" {
  description = "ID of the job and name of the root's service in Consul. The leaves' service is this and -leaf."
  type        = string
  default     = "scatter-gather"

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
  description = "Nomad datacenters that may run root and leaves."
  type        = list(string)
  default     = ["*"]
}

variable "roots" {
  description = "Number of roots. Each of them answers any request."
  type        = number
  default     = 1

  validation {
    condition     = var.roots >= 0 && floor(var.roots) == var.roots
    error_message = "The roots must be a whole number, 0 or more."
  }
}

variable "shards" {
  description = "Number of shards of the data. One that nobody serves is reported as missing."
  type        = number
  default     = 4

  validation {
    condition     = var.shards >= 1 && floor(var.shards) == var.shards
    error_message = "The shards must be a whole number, 1 or more."
  }
}

variable "replicas" {
  description = "Leaves for each shard, on different nodes where there are enough. With one, a slow or lost leaf cannot be made good by another."
  type        = number
  default     = 2

  validation {
    condition     = var.replicas >= 1 && floor(var.replicas) == var.replicas
    error_message = "The replicas must be a whole number, 1 or more."
  }
}

variable "distinct_hosts" {
  description = "Never place two replicas of a shard on one node, rather than only where it can be avoided."
  type        = bool
  default     = false
}

variable "driver" {
  description = "Nomad task driver of all tasks: docker, exec or raw_exec."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver must be docker, exec or raw_exec."
  }
}

variable "network_mode" {
  description = "bridge: the merge listens on loopback of the allocation's own network. host: on a Unix socket."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
}

variable "consul_http_addr" {
  description = "How the root reaches the Consul agent of its node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
  type        = string
  default     = ""
}

variable "consul_ui" {
  description = "Address of the Consul UI with its datacenter, such as https://consul.example.com/ui/dc1, for the links that the Nomad UI shows. Empty: no links."
  type        = string
  default     = ""
}

variable "retinue_image" {
  description = "Image of the root, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
}

variable "retinue_command" {
  description = "The retinue binary as the tasks see it."
  type        = string
  default     = "/usr/local/bin/retinue"
}

variable "deadline" {
  description = "Time for a request that names none."
  type        = string
  default     = "500ms"
}

variable "partial" {
  description = "Which partial answers are answers: fail (none), coverage(0.95), quorum(13) or best."
  type        = string
  default     = "fail"
}

variable "hedge_budget" {
  description = "Extra calls to leaves that are slow, as a share of all calls. 0 turns hedging off."
  type        = string
  default     = "3%"
}

variable "gather_env" {
  description = "Further settings of the root by its environment, such as { RETINUE_GATHER_DEADLINE_MAX = \"10s\" }."
  type        = map(string)
  default     = {}
}

variable "port" {
  description = "Port of the root in bridge mode. Clients find the published one in Consul."
  type        = number
  default     = 8080
}

variable "gather_resources" {
  description = "CPU shares in MHz and memory in MB of a root."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
}

variable "leaf_service" {
  description = "Consul service of leaves that another job runs: this one then runs roots alone. Empty: the leaves of this job."
  type        = string
  default     = ""
}

variable "leaf_image" {
  description = "Image of the leaf, for the docker driver. Empty: the image of the root."
  type        = string
  default     = ""
}

variable "leaf_command" {
  description = "Command of the leaf. Empty: the demo leaf, or with leaf_image the image's own."
  type        = string
  default     = ""
}

variable "leaf_args" {
  description = "Arguments of leaf_command. $${RETINUE_SHARD}, $${RETINUE_SHARDS} and $${RETINUE_LISTEN} are filled in by Nomad."
  type        = list(string)
  default     = []
}

variable "leaf_env" {
  description = "Environment of the leaf."
  type        = map(string)
  default     = {}
}

variable "leaf_artifacts" {
  description = "Addresses of files or archives that Nomad puts into the leaf's local/ folder, such as a program or its data."
  type        = list(string)
  default     = []
}

variable "leaf_port" {
  description = "Port of the leaf in bridge mode. In both modes it finds its port in NOMAD_PORT_http."
  type        = number
  default     = 8080
}

variable "leaf_health" {
  description = "Path of the leaf that answers 200 when it is ready."
  type        = string
  default     = "/health"
}

variable "leaf_resources" {
  description = "CPU shares in MHz and memory in MB of a leaf."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

variable "weights" {
  description = "How much of the data each shard has, in any unit, in the order of shards. Empty: all the same."
  type        = list(number)
  default     = []
}

variable "merge" {
  description = "Built-in merge, where there is neither merge_image nor merge_command: concat-ndjson, json-array, sum, first or top-k(FIELD,LIMIT)."
  type        = string
  default     = "top-k(score)"
}

variable "merge_image" {
  description = "Image of the merge, for the docker driver. Empty: none, or with merge_command the image of the root."
  type        = string
  default     = ""
}

variable "merge_command" {
  description = "Command of the merge. Empty: none, or with merge_image the image's own."
  type        = string
  default     = ""
}

variable "merge_args" {
  description = "Arguments of merge_command."
  type        = list(string)
  default     = []
}

variable "merge_env" {
  description = "Environment of the merge."
  type        = map(string)
  default     = {}
}

variable "merge_artifacts" {
  description = "Addresses of files or archives that Nomad puts into the merge's local/ folder."
  type        = list(string)
  default     = []
}

variable "merge_format" {
  description = "How the merge gets the leaves' answers: ndjson (as they arrive), multipart (binary bodies) or batch (one JSON array at the end)."
  type        = string
  default     = "ndjson"

  validation {
    condition     = contains(["ndjson", "multipart", "batch"], var.merge_format)
    error_message = "The merge_format must be ndjson, multipart or batch."
  }
}

variable "merge_port" {
  description = "Loopback port of the merge in bridge mode."
  type        = number
  default     = 9000
}

variable "merge_resources" {
  description = "CPU shares in MHz and memory in MB of a merge."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

locals {
  bridge = var.network_mode == "bridge"
  docker = var.driver == "docker"

  leaf_service = var.leaf_service != "" ? var.leaf_service : "${var.job_name}-leaf"
  leaf_shards  = var.leaf_service != "" ? [] : range(var.shards)
  demo         = var.leaf_image == "" && var.leaf_command == ""
  leaf_image   = var.leaf_image != "" ? var.leaf_image : var.retinue_image
  leaf_command = local.demo ? var.retinue_command : var.leaf_command
  leaf_args    = local.demo ? ["demo-app", "scatter-gather"] : var.leaf_args

  container   = var.merge_image != "" || var.merge_command != ""
  merge_image = var.merge_image != "" ? var.merge_image : var.retinue_image
  socket      = "unix://${NOMAD_ALLOC_DIR}/tmp/merge.sock"
  merge_url   = local.bridge ? "http://127.0.0.1:${var.merge_port}/" : local.socket
  merge_addr  = local.bridge ? "127.0.0.1:${var.merge_port}" : local.socket

  # In host mode every address of the machine is shared: listen on the one that Nomad publishes.
  listen = local.bridge ? "0.0.0.0:${NOMAD_PORT_http}" : "${NOMAD_ADDR_http}"
}

job "scatter-gather" {
  id          = var.job_name
  name        = var.job_name
  namespace   = var.namespace
  datacenters = var.datacenters

  ui {
    description = "Scatter/gather. The root of group `root` asks one leaf of each shard; the instances of the Consul service `${local.leaf_service}` carry their shard in their meta."

    dynamic "link" {
      for_each = var.consul_ui == "" ? [] : [var.job_name, local.leaf_service]

      content {
        label = "Service ${link.value} (Consul)"
        url   = "${var.consul_ui}/services/${link.value}/instances"
      }
    }
  }

  # Of each shard one replica is replaced at a time, and the next one when it is healthy.
  update {
    max_parallel     = 1
    min_healthy_time = "3s"
    healthy_deadline = "5m"
  }

  group "root" {
    count = var.roots

    # Consul forgets an instance before it stops, so that nobody asks it any more.
    shutdown_delay = "2s"

    spread {
      attribute = "${node.unique.id}"
    }

    network {
      mode = var.network_mode

      port "http" {
        to = local.bridge ? var.port : 0
      }
    }

    restart {
      attempts = 10
      interval = "1m"
      delay    = "1s"
      mode     = "delay"
    }

    service {
      name = var.job_name
      port = "http"

      # Not /-/readyz: a root whose shard is missing says so to its clients, and must not
      # hold up the deployment that brings the shard back.
      check {
        type     = "http"
        path     = "/-/healthz"
        interval = "3s"
        timeout  = "2s"
      }
    }

    task "gather" {
      driver       = var.driver
      leader       = true
      kill_timeout = "10s"

      consul {}

      dynamic "config" {
        for_each = local.docker ? [1] : []

        content {
          image        = var.retinue_image
          command      = var.retinue_command
          args         = ["gather"]
          network_mode = local.bridge ? "" : "host"
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : [1]

        content {
          command = var.retinue_command
          args    = ["gather"]
        }
      }

      env = merge({
        CONSUL_HTTP_ADDR            = var.consul_http_addr
        RETINUE_GATHER_NAME         = var.job_name
        RETINUE_GATHER_LISTEN       = local.listen
        RETINUE_GATHER_SERVICE      = local.leaf_service
        RETINUE_GATHER_SHARDS       = "${var.shards}"
        RETINUE_GATHER_MERGE        = local.container ? local.merge_url : var.merge
        RETINUE_GATHER_MERGE_FORMAT = var.merge_format
        RETINUE_GATHER_DEADLINE     = var.deadline
        RETINUE_GATHER_PARTIAL      = var.partial
        RETINUE_GATHER_HEDGE_BUDGET = var.hedge_budget
      }, var.gather_env)

      action "leaves" {
        command = var.retinue_command
        args    = ["gather", "top", "--once"]
      }

      action "slow" {
        command = var.retinue_command
        args    = ["gather", "explain"]
      }

      resources {
        cpu    = var.gather_resources.cpu
        memory = var.gather_resources.memory
      }
    }

    # Up before the root and through its whole life.
    dynamic "task" {
      for_each = local.container ? ["merge"] : []
      labels   = [task.value]

      content {
        driver = var.driver

        lifecycle {
          hook    = "prestart"
          sidecar = true
        }

        dynamic "artifact" {
          for_each = var.merge_artifacts

          content {
            source = artifact.value
          }
        }

        dynamic "config" {
          for_each = local.docker ? [1] : []

          content {
            image        = local.merge_image
            command      = var.merge_command
            args         = var.merge_args
            network_mode = local.bridge ? "" : "host"
          }
        }

        dynamic "config" {
          for_each = local.docker ? [] : [1]

          content {
            command = var.merge_command
            args    = var.merge_args
          }
        }

        env = merge(var.merge_env, {
          RETINUE_MERGE_LISTEN = local.merge_addr
        })

        resources {
          cpu    = var.merge_resources.cpu
          memory = var.merge_resources.memory
        }
      }
    }
  }

  # A group for each shard: its allocations are the replicas.
  dynamic "group" {
    for_each = local.leaf_shards
    iterator = shard
    labels   = ["leaf-${shard.value}"]

    content {
      count          = var.replicas
      shutdown_delay = "2s"

      # Replicas on one node would be slow together, and lost together.
      spread {
        attribute = "${node.unique.id}"
      }

      dynamic "constraint" {
        for_each = var.distinct_hosts ? [1] : []

        content {
          operator = "distinct_hosts"
          value    = "true"
        }
      }

      network {
        mode = var.network_mode

        port "http" {
          to = local.bridge ? var.leaf_port : 0
        }
      }

      restart {
        attempts = 10
        interval = "1m"
        delay    = "1s"
        mode     = "delay"
      }

      service {
        name = local.leaf_service
        port = "http"

        meta {
          shard   = "${shard.value}"
          replica = "${shard.value}.${NOMAD_ALLOC_INDEX}"
          weight  = "${length(var.weights) > shard.value ? var.weights[shard.value] : 1}"
        }

        check {
          type     = "http"
          path     = var.leaf_health
          interval = "3s"
          timeout  = "2s"
        }
      }

      task "leaf" {
        driver = var.driver

        dynamic "artifact" {
          for_each = var.leaf_artifacts

          content {
            source = artifact.value
          }
        }

        dynamic "config" {
          for_each = local.docker ? [1] : []

          content {
            image        = local.leaf_image
            command      = local.leaf_command
            args         = local.leaf_args
            network_mode = local.bridge ? "" : "host"
          }
        }

        dynamic "config" {
          for_each = local.docker ? [] : [1]

          content {
            command = local.leaf_command
            args    = local.leaf_args
          }
        }

        env = merge(var.leaf_env, {
          RETINUE_SHARD  = "${shard.value}"
          RETINUE_SHARDS = "${var.shards}"
          RETINUE_LISTEN = local.listen
        })

        resources {
          cpu    = var.leaf_resources.cpu
          memory = var.leaf_resources.memory
        }
      }
    }
  }
}

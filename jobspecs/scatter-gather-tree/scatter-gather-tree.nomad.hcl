# Scatter/gather in two levels: a root asks branches, each of which is a root too and asks its leaves.
#
#   nomad job run -var branches=10 -var leaves=10 scatter-gather-tree.nomad.hcl
#   nomad job run -var-file=my.vars.hcl scatter-gather-tree.nomad.hcl
#
# Leaf and merge are those of jobspecs/scatter-gather: a leaf cannot tell at
# which depth it is asked, and the same merge serves root and branches, because
# its answer has the form of a leaf's answer.

variable "job_name" {
  description = "ID of the job and name of the root's service in Consul. The branches' service is this and -branch, the leaves' this, -leaf- and the number of their branch."
  type        = string
  default     = "scatter-gather-tree"

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
  description = "Nomad datacenters that may run root, branches and leaves."
  type        = list(string)
  default     = ["*"]
}

variable "roots" {
  description = "Number of roots at the top. Each of them answers any request."
  type        = number
  default     = 1

  validation {
    condition     = var.roots >= 0 && floor(var.roots) == var.roots
    error_message = "The roots must be a whole number, 0 or more."
  }
}

variable "branches" {
  description = "Number of branches, which are the shards of the root."
  type        = number
  default     = 2

  validation {
    condition     = var.branches >= 1 && floor(var.branches) == var.branches
    error_message = "The branches must be a whole number, 1 or more."
  }
}

variable "leaves" {
  description = "Number of leaves of each branch, which are the branch's shards."
  type        = number
  default     = 3

  validation {
    condition     = var.leaves >= 1 && floor(var.leaves) == var.leaves
    error_message = "The leaves must be a whole number, 1 or more."
  }
}

variable "replicas" {
  description = "Replicas of each branch and of each leaf, on different nodes where there are enough."
  type        = number
  default     = 1

  validation {
    condition     = var.replicas >= 1 && floor(var.replicas) == var.replicas
    error_message = "The replicas must be a whole number, 1 or more."
  }
}

variable "distinct_hosts" {
  description = "Never place two replicas of a branch or leaf on one node, rather than only where it can be avoided."
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
  description = "How root and branches reach the Consul agent of its node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
  type        = string
  default     = ""
}

variable "consul_ui" {
  description = "Address of the Consul UI with its datacenter, such as https://consul.example.com/ui/dc1, for the links that the Nomad UI shows. Empty: no links."
  type        = string
  default     = ""
}

variable "retinue_image" {
  description = "Image of root and branches, for the docker driver."
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
  description = "Which partial answers are answers: fail (none), coverage(0.95), quorum(13) or best. Branches give the root what they have, unless it is fail."
  type        = string
  default     = "fail"
}

variable "hedge_budget" {
  description = "Extra calls to leaves that are slow, as a share of all calls. 0 turns hedging off."
  type        = string
  default     = "3%"
}

variable "gather_env" {
  description = "Further settings of root and branches by their environment, such as { RETINUE_GATHER_DEADLINE_MAX = \"10s\" }."
  type        = map(string)
  default     = {}
}

variable "port" {
  description = "Port of root and branches in bridge mode. Clients find the published one in Consul."
  type        = number
  default     = 8080
}

variable "gather_resources" {
  description = "CPU shares in MHz and memory in MB of a root or branch."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
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

  # The root, and the branches below it: they differ in whom they ask and in who finds them.
  gathers = concat(
    [{
      name = "root", count = var.roots, service = var.job_name, branch = []
      asks = "${var.job_name}-branch", shards = var.branches, partial = var.partial
    }],
    [for b in range(var.branches) : {
      name = "branch-${b}", count = var.replicas, service = "${var.job_name}-branch", branch = [b]
      asks = "${var.job_name}-leaf-${b}", shards = var.leaves, partial = var.partial == "fail" ? "fail" : "best"
    }]
  )
  leaf_groups = flatten([for b in range(var.branches) : [for l in range(var.leaves) : { branch = b, shard = l }]])
}

job "scatter-gather-tree" {
  id          = var.job_name
  name        = var.job_name
  namespace   = var.namespace
  datacenters = var.datacenters

  ui {
    description = "Scatter/gather in two levels. The root of group `root` asks the instances of the Consul service `${var.job_name}-branch`, and each of them its own leaves."

    dynamic "link" {
      for_each = var.consul_ui == "" ? [] : [var.job_name, "${var.job_name}-branch"]

      content {
        label = "Service ${link.value} (Consul)"
        url   = "${var.consul_ui}/services/${link.value}/instances"
      }
    }
  }

  # Of each branch and leaf one replica is replaced at a time, and the next one when it is healthy.
  update {
    max_parallel     = 1
    min_healthy_time = "3s"
    healthy_deadline = "5m"
  }

  dynamic "group" {
    for_each = local.gathers
    iterator = gather
    labels   = [gather.value.name]

    content {
      count          = gather.value.count
      shutdown_delay = "2s"

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
        name = gather.value.service
        port = "http"

        # A branch is a leaf of the root.
        dynamic "meta" {
          for_each = gather.value.branch

          content {
            shard   = "${meta.value}"
            replica = "${meta.value}.${NOMAD_ALLOC_INDEX}"
            weight  = "${var.leaves}"
          }
        }

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
          RETINUE_GATHER_NAME         = gather.value.name
          RETINUE_GATHER_LISTEN       = local.listen
          RETINUE_GATHER_SERVICE      = gather.value.asks
          RETINUE_GATHER_SHARDS       = "${gather.value.shards}"
          RETINUE_GATHER_MERGE        = local.container ? local.merge_url : var.merge
          RETINUE_GATHER_MERGE_FORMAT = var.merge_format
          RETINUE_GATHER_DEADLINE     = var.deadline
          RETINUE_GATHER_PARTIAL      = gather.value.partial
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
  }

  # A group for each leaf of each branch: its allocations are the replicas.
  dynamic "group" {
    for_each = local.leaf_groups
    iterator = leaf
    labels   = ["leaf-${leaf.value.branch}-${leaf.value.shard}"]

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
        name = "${var.job_name}-leaf-${leaf.value.branch}"
        port = "http"

        meta {
          shard   = "${leaf.value.shard}"
          replica = "${leaf.value.branch}.${leaf.value.shard}.${NOMAD_ALLOC_INDEX}"
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
          RETINUE_SHARD  = "${leaf.value.branch * var.leaves + leaf.value.shard}"
          RETINUE_SHARDS = "${var.branches * var.leaves}"
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

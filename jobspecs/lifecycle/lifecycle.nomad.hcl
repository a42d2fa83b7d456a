# A stateful server with a lifecycle: it is drained before it is stopped, and its
# state moves with it to the next node.
#
#   nomad job run lifecycle.nomad.hcl
#   nomad job run -var-file=my.vars.hcl lifecycle.nomad.hcl
#
# The clients must run the lifecycle driver (plugins/README.md). You bring a server
# that answers hooks on the Unix socket $RETINUE_SOCK, or commands that do.

variable "job_name" {
  description = "ID of the job and name of its Consul service."
  type        = string
  default     = "lifecycle"

  validation {
    condition     = regex_replace(var.job_name, "^[a-z0-9][a-z0-9-]{0,61}$", "") == ""
    error_message = "The job_name must be 1 to 62 lower-case letters, digits and dashes, because it names a Consul service."
  }
}

variable "namespace" {
  description = "Nomad namespace of the job."
  type        = string
  default     = "default"
}

variable "datacenters" {
  description = "Nomad datacenters that may run the server."
  type        = list(string)
  default     = ["*"]
}

variable "count" {
  description = "Number of servers, each with a state of its own."
  type        = number
  default     = 1

  validation {
    condition     = var.count >= 0 && floor(var.count) == var.count
    error_message = "The count must be a whole number, 0 or more."
  }
}

variable "priority" {
  description = "Priority of the job; a job of a lower one goes through the same drain when it is preempted."
  type        = number
  default     = 50

  validation {
    condition     = var.priority >= 1 && var.priority <= 100
    error_message = "The priority must be between 1 and 100."
  }
}

variable "driver" {
  description = "Nomad task driver: docker, exec or raw_exec, each in the place of which the lifecycle driver stands."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver must be docker, exec or raw_exec."
  }
}

variable "network_mode" {
  description = "bridge: the server has a network of its own. host: it has the node's."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
}

variable "retinue_image" {
  description = "Image of the demo server, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
}

variable "retinue_command" {
  description = "The retinue binary as the task sees it, for the demo server."
  type        = string
  default     = "/usr/local/bin/retinue"
}

variable "image" {
  description = "Image of your server, for the docker driver. Empty: the demo server."
  type        = string
  default     = ""
}

variable "command" {
  description = "Command of your server. Empty: the demo server, or with image the image's own."
  type        = string
  default     = ""
}

variable "args" {
  description = "Arguments of command."
  type        = list(string)
  default     = []
}

variable "env" {
  description = "Environment of the server."
  type        = map(string)
  default     = {}
}

variable "app_port" {
  description = "Port of the server in bridge mode."
  type        = number
  default     = 8080
}

variable "check_path" {
  description = "Path of the HTTP check of its Consul service."
  type        = string
  default     = "/ready"
}

variable "budget" {
  description = "separate: kill_timeout begins with the signal. shared: the hooks eat into it."
  type        = string
  default     = "separate"

  validation {
    condition     = contains(["separate", "shared"], var.budget)
    error_message = "The budget must be separate or shared."
  }
}

variable "kill_timeout" {
  description = "Between the stop signal and SIGKILL; the client's max_kill_timeout is its limit."
  type        = string
  default     = "10s"
}

variable "ready" {
  description = "What the end of a start waits for: notify (READY=1 on NOTIFY_SOCKET), or a request such as GET /retinue/v1/ready. Empty: nothing."
  type        = string
  default     = "notify"
}

variable "post_start" {
  description = "Command inside the task after its start. Empty: none."
  type        = list(string)
  default     = []
}

variable "start_timeout" {
  description = "How long post_start and ready may take, each."
  type        = string
  default     = "30s"
}

variable "pause" {
  description = "Request before the task is frozen. Empty: none."
  type        = string
  default     = ""
}

variable "resume" {
  description = "Request after the task was thawed. Empty: none."
  type        = string
  default     = "POST /retinue/v1/resume"
}

variable "pre_drain" {
  description = "Request at the beginning of a stop. Empty: none."
  type        = string
  default     = "POST /retinue/v1/pre-drain"
}

variable "drain" {
  description = "Request that answers how much is in flight, until it is 0. Empty: none."
  type        = string
  default     = "GET /retinue/v1/inflight"
}

variable "drain_timeout" {
  description = "How long the drain may take."
  type        = string
  default     = "30s"
}

variable "save_state" {
  description = "Request that answers the state, at a stop and every state_every. Empty: none."
  type        = string
  default     = "GET /retinue/v1/state"
}

variable "state_store" {
  description = "alloc (moves with the allocation), consul-kv, nomad-var or dir:/path (outlive job and node)."
  type        = string
  default     = "alloc"
}

variable "state_max_size" {
  description = "Largest state, up to 64MB."
  type        = string
  default     = "8MB"
}

variable "state_every" {
  description = "Saves the state of the running server this often. Empty: only at a stop."
  type        = string
  default     = ""
}

variable "app_version" {
  description = "Kept beside the state."
  type        = string
  default     = ""
}

variable "pre_stop" {
  description = "Command inside the task before the stop signal. Empty: none."
  type        = list(string)
  default     = []
}

variable "pre_stop_timeout" {
  description = "How long pre_stop may take."
  type        = string
  default     = "10s"
}

variable "max_replicas" {
  description = "Highest count that the server may scale its group to. 0: it may not."
  type        = number
  default     = 0

  validation {
    condition     = var.max_replicas >= 0 && floor(var.max_replicas) == var.max_replicas
    error_message = "The max_replicas must be a whole number, 0 or more."
  }
}

variable "disk" {
  description = "Disk in MB of the allocation, which its state is on."
  type        = number
  default     = 300
}

variable "resources" {
  description = "CPU shares in MHz and memory in MB of the server."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

locals {
  bridge = var.network_mode == "bridge"
  docker = var.driver == "docker"

  demo    = var.image == "" && var.command == ""
  image   = var.image != "" ? var.image : var.retinue_image
  command = local.demo ? var.retinue_command : var.command
  args    = local.demo ? concat(["demo-app", "lifecycle"], var.args) : var.args
}

job "lifecycle" {
  id          = var.job_name
  name        = var.job_name
  namespace   = var.namespace
  datacenters = var.datacenters
  priority    = var.priority

  ui {
    description = "A stateful server with a lifecycle. `retinue task ls` shows the phase of each instance, `nomad alloc status` the hooks that ran."
  }

  # A deployment replaces one server at a time; each hands its state over.
  update {
    max_parallel     = 1
    min_healthy_time = "3s"
    healthy_deadline = "5m"
  }

  group "server" {
    count = var.count

    # What moves the state: the next allocation gets the alloc/data folder of this one.
    ephemeral_disk {
      size    = var.disk
      sticky  = true
      migrate = true
    }

    network {
      mode = var.network_mode

      port "http" {
        to = local.bridge ? var.app_port : 0
      }
    }

    task "server" {
      driver       = var.driver
      kill_timeout = var.kill_timeout
      kill_signal  = "SIGTERM"

      # A service of the task, not of the group: Nomad registers it when the ready hook has let the start end.
      service {
        name = var.job_name
        port = "http"

        check {
          type     = "http"
          path     = var.check_path
          interval = "2s"
          timeout  = "2s"
        }
      }

      # For "replicate yourself": the driver asks Nomad as the task.
      identity {
        file = true
      }

      dynamic "config" {
        for_each = local.docker ? [1] : []

        content {
          image        = local.image
          command      = local.command
          args         = local.args
          network_mode = local.bridge ? "" : "host"

          lifecycle {
            budget       = var.budget
            max_replicas = var.max_replicas

            ready {
              notify  = var.ready == "notify"
              http    = var.ready == "notify" ? "" : var.ready
              timeout = var.start_timeout
            }

            post_start {
              exec    = var.post_start
              timeout = var.start_timeout
            }

            pause {
              http = var.pause
            }

            resume {
              http = var.resume
            }

            pre_drain {
              http = var.pre_drain
            }

            drain {
              http    = var.drain
              timeout = var.drain_timeout
            }

            save_state {
              http        = var.save_state
              store       = var.state_store
              max_size    = var.state_max_size
              every       = var.state_every
              app_version = var.app_version
            }

            pre_stop {
              exec    = var.pre_stop
              timeout = var.pre_stop_timeout
            }
          }
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : [1]

        content {
          command = local.command
          args    = local.args

          lifecycle {
            budget       = var.budget
            max_replicas = var.max_replicas

            ready {
              notify  = var.ready == "notify"
              http    = var.ready == "notify" ? "" : var.ready
              timeout = var.start_timeout
            }

            post_start {
              exec    = var.post_start
              timeout = var.start_timeout
            }

            pause {
              http = var.pause
            }

            resume {
              http = var.resume
            }

            pre_drain {
              http = var.pre_drain
            }

            drain {
              http    = var.drain
              timeout = var.drain_timeout
            }

            save_state {
              http        = var.save_state
              store       = var.state_store
              max_size    = var.state_max_size
              every       = var.state_every
              app_version = var.app_version
            }

            pre_stop {
              exec    = var.pre_stop
              timeout = var.pre_stop_timeout
            }
          }
        }
      }

      env = var.env

      resources {
        cpu    = var.resources.cpu
        memory = var.resources.memory
      }
    }
  }
}

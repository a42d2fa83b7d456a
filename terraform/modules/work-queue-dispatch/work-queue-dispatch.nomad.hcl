# Work queue, one Nomad job for each item: for items that take longer than half a minute, or need a container of their own.
#
#   nomad job run -var worker_command=gzip -var 'worker_args=["-dc"]' work-queue-dispatch.nomad.hcl
#   nomad job run -var job_name=archives -var mode=dispatch -var volume=shared work-queue.nomad.hcl
#
# This is the parameterized job: nothing of it runs until a coordinator makes a
# child of it for an item. The command is the same as in jobspecs/work-queue: the
# item on stdin, the output on stdout or in files.

variable "job_name" {
  description = "ID of the parameterized job, which the coordinator names with --job."
  type        = string
  default     = "work-queue-dispatch"

  validation {
    condition     = regex_replace(var.job_name, "^[a-z0-9][a-z0-9-]{0,51}$", "") == ""
    error_message = "The job_name must be 1 to 52 lower-case letters, digits and dashes."
  }
}

variable "namespace" {
  description = "Nomad namespace of the job and its children."
  type        = string
  default     = "default"
}

variable "datacenters" {
  description = "Nomad datacenters that may run children."
  type        = list(string)
  default     = ["*"]
}

variable "driver" {
  description = "Nomad task driver: docker or raw_exec. Not exec, which links some 150,000 files for each child and stops a node."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "raw_exec"], var.driver)
    error_message = "The driver must be docker or raw_exec."
  }
}

variable "network_mode" {
  description = "bridge, host or none: the network of a child."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["bridge", "host", "none"], var.network_mode)
    error_message = "The network_mode must be bridge, host or none."
  }
}

variable "volume" {
  description = "Host or CSI volume that all nodes and the coordinator share, mounted at /shared (docker): the coordinator's --work is below it. Empty: none, as with raw_exec."
  type        = string
  default     = ""
}

variable "volume_type" {
  description = "Kind of the volume: host or csi."
  type        = string
  default     = "host"

  validation {
    condition     = contains(["host", "csi"], var.volume_type)
    error_message = "The volume_type must be host or csi."
  }
}

variable "retinue_command" {
  description = "The retinue binary as the children see it: in the image, or where a coordinator has put it with --install."
  type        = string
  default     = "/usr/local/bin/retinue"
}

variable "worker_image" {
  description = "Image of the worker, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
}

variable "worker_command" {
  description = "Command that is run for the item. Empty: the demo worker."
  type        = string
  default     = ""
}

variable "worker_args" {
  description = "Arguments of worker_command."
  type        = list(string)
  default     = []
}

variable "worker_env" {
  description = "Environment of the worker."
  type        = map(string)
  default     = {}
}

variable "worker_artifacts" {
  description = "Addresses of files or archives that Nomad puts into the worker's local/ folder."
  type        = list(string)
  default     = []
}

variable "worker_resources" {
  description = "CPU shares in MHz and memory in MB of a child."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
}

variable "grace_seconds" {
  description = "How long a child that is stopped may take to end."
  type        = number
  default     = 10
}

variable "logs" {
  description = "Keep stdout and stderr of the children as Nomad's logs. It costs a process for each child; the end of stderr is kept with a failed attempt in any case."
  type        = bool
  default     = false
}

locals {
  docker  = var.driver == "docker"
  own     = var.worker_command == "" ? concat([var.retinue_command, "demo-app", "work-queue"], var.worker_args) : concat([var.worker_command], var.worker_args)
  command = concat([var.retinue_command, "worker", "--"], local.own)
}

job "work-queue-dispatch" {
  id          = var.job_name
  name        = var.job_name
  namespace   = var.namespace
  datacenters = var.datacenters
  type        = "batch"

  ui {
    description = "One child for each item of a work queue. The coordinator of the queue makes them, and shows them with `retinue queue ls`."
  }

  parameterized {
    payload       = "optional"
    meta_optional = ["retinue_dir", "retinue_item", "retinue_stage", "retinue_key", "retinue_attempt", "retinue_max_attempts", "retinue_fence"]
  }

  group "item" {
    # A child is one attempt. The coordinator counts attempts and makes the next one.
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    dynamic "network" {
      for_each = var.network_mode == "bridge" ? [1] : []

      content {
        mode = "bridge"
      }
    }

    dynamic "volume" {
      for_each = var.volume == "" ? [] : [var.volume]
      labels   = ["shared"]

      content {
        type            = var.volume_type
        source          = volume.value
        access_mode     = var.volume_type == "csi" ? "multi-node-multi-writer" : ""
        attachment_mode = var.volume_type == "csi" ? "file-system" : ""
      }
    }

    task "worker" {
      driver       = var.driver
      kill_timeout = "${var.grace_seconds}s"

      logs {
        disabled = !var.logs
      }

      dynamic "artifact" {
        for_each = var.worker_artifacts

        content {
          source = artifact.value
        }
      }

      dynamic "config" {
        for_each = local.docker ? [1] : []

        content {
          image        = var.worker_image
          entrypoint   = [local.command[0]]
          args         = slice(local.command, 1, length(local.command))
          network_mode = var.network_mode == "bridge" ? "" : var.network_mode
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : [1]

        content {
          command = local.command[0]
          args    = slice(local.command, 1, length(local.command))
        }
      }

      env = merge(var.worker_env, {
        RETINUE_WORKER_DIR = "${NOMAD_META_retinue_dir}"
      })

      dynamic "volume_mount" {
        for_each = var.volume == "" ? [] : ["shared"]

        content {
          volume      = volume_mount.value
          destination = "/shared"
        }
      }

      resources {
        cpu    = var.worker_resources.cpu
        memory = var.worker_resources.memory
      }
    }
  }
}

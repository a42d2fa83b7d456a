# Generated from jobspecs/work-queue-pipeline/work-queue-pipeline.nomad.hcl (and variables.extra.tf.txt). Change that, then `make generate`.

variable "job_name" {
  description = "ID of the job. The queue of a stage is this, a dash and its name. The broker is the Consul service of this name and -broker, its secrets are the Nomad variable nomad/jobs/<job_name>."
  type        = string
  default     = "work-queue-pipeline"

  validation {
    condition     = replace(var.job_name, "/^[a-z0-9][a-z0-9-]{0,51}$/", "") == ""
    error_message = "The job_name must be 1 to 52 lower-case letters, digits and dashes, because it names a Consul service."
  }
  nullable = false
}

variable "namespace" {
  description = "Nomad namespace of the job."
  type        = string
  default     = "default"
  nullable    = false
}

variable "datacenters" {
  description = "Nomad datacenters that may run workers and broker."
  type        = list(string)
  default     = ["*"]
  nullable    = false
}

variable "stages" {
  description = "The stages in their order: name, number of workers, commands at once in each, image (docker; empty: that of the coordinators), command (empty: the demo worker) and its arguments."
  type        = list(object({ name = string, count = number, slots = number, image = string, command = string, args = list(string) }))
  default = [
    { name = "words", count = 1, slots = 4, image = "", command = "", args = ["words"] },
    { name = "count", count = 1, slots = 4, image = "", command = "", args = ["count"] },
    { name = "top", count = 1, slots = 4, image = "", command = "", args = ["top"] },
  ]

  validation {
    condition     = length(var.stages) > 0 && length(distinct([for stage in var.stages : stage.name])) == length(var.stages)
    error_message = "The stages must be at least one, each with a name of its own."
  }

  validation {
    condition     = length([for stage in var.stages : stage.name if replace(stage.name, "/^[a-z0-9][a-z0-9-]{0,15}$/", "") != ""]) == 0
    error_message = "The names of stages must be 1 to 16 lower-case letters, digits and dashes."
  }
  nullable = false
}

variable "driver" {
  description = "Nomad task driver of all tasks: docker, exec or raw_exec."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver must be docker, exec or raw_exec."
  }
  nullable = false
}

variable "network_mode" {
  description = "bridge: an HTTP worker listens on loopback of the allocation's own network. host: on a Unix socket."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
  nullable = false
}

variable "consul_http_addr" {
  description = "How the coordinators reach the Consul agent of their node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
  type        = string
  default     = ""
  nullable    = false
}

variable "consul_ui" {
  description = "Address of the Consul UI with its datacenter, such as https://consul.example.com/ui/dc1, for the links that the Nomad UI shows. Empty: no links."
  type        = string
  default     = ""
  nullable    = false
}

variable "retinue_image" {
  description = "Image of coordinators and broker, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
  nullable    = false
}

variable "retinue_command" {
  description = "The retinue binary as the tasks see it. The broker's is this and -broker."
  type        = string
  default     = "/usr/local/bin/retinue"
  nullable    = false
}

variable "queue_url" {
  description = "A broker of your own, such as redis://redis.example.com:6379 or amqp://user@rabbit.example.com/. Nomad renders it as a template, so a password can stay in a Nomad variable. Empty: the job runs a broker."
  type        = string
  default     = ""
  nullable    = false
}

variable "attempts" {
  description = "Attempts that may fail before an item is a dead letter."
  type        = number
  default     = 5
  nullable    = false
}

variable "max_runtime" {
  description = "How long one attempt may take."
  type        = string
  default     = "1h"
  nullable    = false
}

variable "drain_seconds" {
  description = "How long a stop waits for what runs; the rest goes back to the queue. Nomad's max_kill_timeout must be 10 seconds more."
  type        = number
  default     = 20
  nullable    = false
}

variable "to" {
  description = "Queue after the last stage, on the same broker. Empty: none, the output stays in the item's record."
  type        = string
  default     = ""
  nullable    = false
}

variable "commit" {
  description = "Where an item's end is decided when there is no shared folder: journal (in Consul), or publish (to the next stage alone; needs to)."
  type        = string
  default     = "journal"

  validation {
    condition     = contains(["journal", "publish"], var.commit)
    error_message = "The commit must be journal or publish."
  }
  nullable = false
}

variable "volume" {
  description = "Host or CSI volume that all nodes share, mounted at /shared (docker, exec). Outputs then are committed below it, by rename, as large as they are. Empty: none."
  type        = string
  default     = ""
  nullable    = false
}

variable "volume_type" {
  description = "Kind of the volume: host or csi."
  type        = string
  default     = "host"

  validation {
    condition     = contains(["host", "csi"], var.volume_type)
    error_message = "The volume_type must be host or csi."
  }
  nullable = false
}

variable "done" {
  description = "Folder of committed outputs, shared by all nodes. Empty: /shared/done where there is a volume, else none."
  type        = string
  default     = ""
  nullable    = false
}

variable "coordinator_env" {
  description = "Further settings of the coordinators by their environment, such as { RETINUE_COORDINATOR_RATE = \"10/s\" }."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "coordinator_resources" {
  description = "CPU shares in MHz and memory in MB of a coordinator."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
  nullable    = false
}

variable "worker_env" {
  description = "Environment of all workers."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "worker_artifacts" {
  description = "Addresses of files or archives that Nomad puts into each worker's local/ folder, such as programs."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "worker_resources" {
  description = "CPU shares in MHz and memory in MB of a worker."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
  nullable    = false
}

variable "broker_volume" {
  description = "Host or CSI volume for the messages of the job's own broker (docker, exec). Empty: the allocation's disk, which moves on a drain and is lost with its node."
  type        = string
  default     = ""
  nullable    = false
}

variable "broker_volume_type" {
  description = "Kind of the broker_volume: host or csi."
  type        = string
  default     = "host"

  validation {
    condition     = contains(["host", "csi"], var.broker_volume_type)
    error_message = "The broker_volume_type must be host or csi."
  }
  nullable = false
}

variable "broker_durability" {
  description = "When a message reaches the broker's disk: always, interval or process."
  type        = string
  default     = "always"
  nullable    = false
}

variable "broker_disk" {
  description = "Disk in MB for the messages on the allocation's disk."
  type        = number
  default     = 1000
  nullable    = false
}

variable "broker_resources" {
  description = "CPU shares in MHz and memory in MB of the broker."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
  nullable    = false
}

variable "wait" {
  description = "Wait until the deployment is healthy; apply fails when it is not."
  type        = bool
  default     = true
  nullable    = false
}

variable "purge_on_destroy" {
  description = "Forget the job on destroy, rather than keep it as a dead job until Nomad's garbage collection."
  type        = bool
  default     = true
  nullable    = false
}

# Generated from jobspecs/work-queue-dispatch/work-queue-dispatch.nomad.hcl (and variables.extra.tf.txt). Change that, then `make generate`.

variable "job_name" {
  description = "ID of the parameterized job, which the coordinator names with --job."
  type        = string
  default     = "work-queue-dispatch"

  validation {
    condition     = replace(var.job_name, "/^[a-z0-9][a-z0-9-]{0,51}$/", "") == ""
    error_message = "The job_name must be 1 to 52 lower-case letters, digits and dashes."
  }
  nullable = false
}

variable "namespace" {
  description = "Nomad namespace of the job and its children."
  type        = string
  default     = "default"
  nullable    = false
}

variable "datacenters" {
  description = "Nomad datacenters that may run children."
  type        = list(string)
  default     = ["*"]
  nullable    = false
}

variable "driver" {
  description = "Nomad task driver: docker or raw_exec. Not exec, which links some 150,000 files for each child and stops a node."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "raw_exec"], var.driver)
    error_message = "The driver must be docker or raw_exec."
  }
  nullable = false
}

variable "network_mode" {
  description = "bridge, host or none: the network of a child."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["bridge", "host", "none"], var.network_mode)
    error_message = "The network_mode must be bridge, host or none."
  }
  nullable = false
}

variable "volume" {
  description = "Host or CSI volume that all nodes and the coordinator share, mounted at /shared (docker): the coordinator's --work is below it. Empty: none, as with raw_exec."
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

variable "retinue_command" {
  description = "The retinue binary as the children see it: in the image, or where a coordinator has put it with --install."
  type        = string
  default     = "/usr/local/bin/retinue"
  nullable    = false
}

variable "worker_image" {
  description = "Image of the worker, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
  nullable    = false
}

variable "worker_command" {
  description = "Command that is run for the item. Empty: the demo worker."
  type        = string
  default     = ""
  nullable    = false
}

variable "worker_args" {
  description = "Arguments of worker_command."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "worker_env" {
  description = "Environment of the worker."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "worker_artifacts" {
  description = "Addresses of files or archives that Nomad puts into the worker's local/ folder."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "worker_resources" {
  description = "CPU shares in MHz and memory in MB of a child."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
  nullable    = false
}

variable "grace_seconds" {
  description = "How long a child that is stopped may take to end."
  type        = number
  default     = 10
  nullable    = false
}

variable "logs" {
  description = "Keep stdout and stderr of the children as Nomad's logs. It costs a process for each child; the end of stderr is kept with a failed attempt in any case."
  type        = bool
  default     = false
  nullable    = false
}

variable "purge_on_destroy" {
  description = "Forget the job on destroy, rather than keep it as a dead job until Nomad's garbage collection. Its children are not touched."
  type        = bool
  default     = true
  nullable    = false
}

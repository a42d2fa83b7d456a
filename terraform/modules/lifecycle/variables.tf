# Generated from jobspecs/lifecycle/lifecycle.nomad.hcl (and variables.extra.tf.txt). Change that, then `make generate`.

variable "job_name" {
  description = "ID of the job and name of its Consul service."
  type        = string
  default     = "lifecycle"

  validation {
    condition     = replace(var.job_name, "/^[a-z0-9][a-z0-9-]{0,61}$/", "") == ""
    error_message = "The job_name must be 1 to 62 lower-case letters, digits and dashes, because it names a Consul service."
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
  description = "Nomad datacenters that may run the server."
  type        = list(string)
  default     = ["*"]
  nullable    = false
}

variable "replicas" {
  description = "Number of servers, each with a state of its own."
  type        = number
  default     = 1

  validation {
    condition     = var.replicas >= 0 && floor(var.replicas) == var.replicas
    error_message = "The replicas must be a whole number, 0 or more."
  }
  nullable = false
}

variable "priority" {
  description = "Priority of the job; a job of a lower one goes through the same drain when it is preempted."
  type        = number
  default     = 50

  validation {
    condition     = var.priority >= 1 && var.priority <= 100
    error_message = "The priority must be between 1 and 100."
  }
  nullable = false
}

variable "driver" {
  description = "Nomad task driver: docker, exec or raw_exec, each in the place of which the lifecycle driver stands."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver must be docker, exec or raw_exec."
  }
  nullable = false
}

variable "network_mode" {
  description = "bridge: the server has a network of its own. host: it has the node's."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
  nullable = false
}

variable "retinue_image" {
  description = "Image of the demo server, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
  nullable    = false
}

variable "retinue_command" {
  description = "The retinue binary as the task sees it, for the demo server."
  type        = string
  default     = "/usr/local/bin/retinue"
  nullable    = false
}

variable "image" {
  description = "Image of your server, for the docker driver. Empty: the demo server."
  type        = string
  default     = ""
  nullable    = false
}

variable "command" {
  description = "Command of your server. Empty: the demo server, or with image the image's own."
  type        = string
  default     = ""
  nullable    = false
}

variable "args" {
  description = "Arguments of command."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "env" {
  description = "Environment of the server."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "app_port" {
  description = "Port of the server in bridge mode."
  type        = number
  default     = 8080
  nullable    = false
}

variable "check_path" {
  description = "Path of the HTTP check of its Consul service."
  type        = string
  default     = "/ready"
  nullable    = false
}

variable "budget" {
  description = "separate: kill_timeout begins with the signal. shared: the hooks eat into it."
  type        = string
  default     = "separate"

  validation {
    condition     = contains(["separate", "shared"], var.budget)
    error_message = "The budget must be separate or shared."
  }
  nullable = false
}

variable "kill_timeout" {
  description = "Between the stop signal and SIGKILL; the client's max_kill_timeout is its limit."
  type        = string
  default     = "10s"
  nullable    = false
}

variable "ready" {
  description = "What the end of a start waits for: notify (READY=1 on NOTIFY_SOCKET), or a request such as GET /retinue/v1/ready. Empty: nothing."
  type        = string
  default     = "notify"
  nullable    = false
}

variable "post_start" {
  description = "Command inside the task after its start. Empty: none."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "start_timeout" {
  description = "How long post_start and ready may take, each."
  type        = string
  default     = "30s"
  nullable    = false
}

variable "pause" {
  description = "Request before the task is frozen. Empty: none."
  type        = string
  default     = ""
  nullable    = false
}

variable "resume" {
  description = "Request after the task was thawed. Empty: none."
  type        = string
  default     = "POST /retinue/v1/resume"
  nullable    = false
}

variable "pre_drain" {
  description = "Request at the beginning of a stop. Empty: none."
  type        = string
  default     = "POST /retinue/v1/pre-drain"
  nullable    = false
}

variable "drain" {
  description = "Request that answers how much is in flight, until it is 0. Empty: none."
  type        = string
  default     = "GET /retinue/v1/inflight"
  nullable    = false
}

variable "drain_timeout" {
  description = "How long the drain may take."
  type        = string
  default     = "30s"
  nullable    = false
}

variable "save_state" {
  description = "Request that answers the state, at a stop and every state_every. Empty: none."
  type        = string
  default     = "GET /retinue/v1/state"
  nullable    = false
}

variable "state_store" {
  description = "alloc (moves with the allocation), consul-kv, nomad-var or dir:/path (outlive job and node)."
  type        = string
  default     = "alloc"
  nullable    = false
}

variable "state_max_size" {
  description = "Largest state, up to 64MB."
  type        = string
  default     = "8MB"
  nullable    = false
}

variable "state_every" {
  description = "Saves the state of the running server this often. Empty: only at a stop."
  type        = string
  default     = ""
  nullable    = false
}

variable "app_version" {
  description = "Kept beside the state."
  type        = string
  default     = ""
  nullable    = false
}

variable "pre_stop" {
  description = "Command inside the task before the stop signal. Empty: none."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "pre_stop_timeout" {
  description = "How long pre_stop may take."
  type        = string
  default     = "10s"
  nullable    = false
}

variable "max_replicas" {
  description = "Highest count that the server may scale its group to. 0: it may not."
  type        = number
  default     = 0

  validation {
    condition     = var.max_replicas >= 0 && floor(var.max_replicas) == var.max_replicas
    error_message = "The max_replicas must be a whole number, 0 or more."
  }
  nullable = false
}

variable "disk" {
  description = "Disk in MB of the allocation, which its state is on."
  type        = number
  default     = 300
  nullable    = false
}

variable "resources" {
  description = "CPU shares in MHz and memory in MB of the server."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
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

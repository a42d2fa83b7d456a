# Generated from jobspecs/leader-election/leader-election.nomad.hcl (and variables.extra.tf.txt). Change that, then `make generate`.

variable "job_name" {
  description = "ID of the job, name of the application in Consul, prefix of its elections."
  type        = string
  default     = "leader-election"

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
  description = "Nomad datacenters that may run the replicas."
  type        = list(string)
  default     = ["*"]
  nullable    = false
}

variable "replicas" {
  description = "Number of replicas, one of which leads each election."
  type        = number
  default     = 3

  validation {
    condition     = var.replicas >= 0 && floor(var.replicas) == var.replicas
    error_message = "The replicas must be a whole number, 0 or more."
  }
  nullable = false
}

variable "driver" {
  description = "Nomad task driver of both tasks: docker, exec or raw_exec."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver must be docker, exec or raw_exec."
  }
  nullable = false
}

variable "network_mode" {
  description = "bridge: the elector listens on loopback of the allocation's own network. host: on a Unix socket alone."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
  nullable = false
}

variable "consul_http_addr" {
  description = "How the elector reaches the Consul agent of its node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
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
  description = "Image of the elector, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
  nullable    = false
}

variable "retinue_command" {
  description = "The retinue binary as the tasks see it."
  type        = string
  default     = "/usr/local/bin/retinue"
  nullable    = false
}

variable "elections" {
  description = "Names of the elections, one for each shard."
  type        = list(string)
  default     = ["leader"]

  validation {
    condition     = length(var.elections) > 0
    error_message = "The list of elections needs at least one name."
  }
  nullable = false
}

variable "lease" {
  description = "How long a leader may act after its last confirmation. Crash failover without a certified death takes up to 2 leases, or 3 with revocation = safe."
  type        = string
  default     = "10s"
  nullable    = false
}

variable "revocation" {
  description = "safe: Consul keeps a revoked lock for one lease. fast: it does not, so an operator's Invalidate relies on fencing alone."
  type        = string
  default     = "safe"

  validation {
    condition     = contains(["safe", "fast"], var.revocation)
    error_message = "The revocation must be safe or fast."
  }
  nullable = false
}

variable "elector_port" {
  description = "Loopback port of the elector in bridge mode."
  type        = number
  default     = 4040
  nullable    = false
}

variable "elector_resources" {
  description = "CPU shares in MHz and memory in MB of the elector."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 50, memory = 64 }
  nullable    = false
}

variable "app_image" {
  description = "Image of the application, for the docker driver. Empty: the demo application."
  type        = string
  default     = ""
  nullable    = false
}

variable "app_command" {
  description = "Command of the application. Empty: the demo application, or with app_image the image's own."
  type        = string
  default     = ""
  nullable    = false
}

variable "app_args" {
  description = "Arguments of app_command."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "app_env" {
  description = "Environment of the application."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "app_port" {
  description = "Port of the application in bridge mode. In both modes it finds its port in NOMAD_PORT_http."
  type        = number
  default     = 8080
  nullable    = false
}

variable "app_resources" {
  description = "CPU shares in MHz and memory in MB of the application."
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

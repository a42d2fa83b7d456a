# Generated from jobspecs/scatter-gather/scatter-gather.nomad.hcl (and variables.extra.tf.txt). Change that, then `make generate`.

variable "job_name" {
  description = "ID of the job and name of the root's service in Consul. The leaves' service is this and -leaf."
  type        = string
  default     = "scatter-gather"

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
  description = "Nomad datacenters that may run root and leaves."
  type        = list(string)
  default     = ["*"]
  nullable    = false
}

variable "roots" {
  description = "Number of roots. Each of them answers any request."
  type        = number
  default     = 1

  validation {
    condition     = var.roots >= 0 && floor(var.roots) == var.roots
    error_message = "The roots must be a whole number, 0 or more."
  }
  nullable = false
}

variable "shards" {
  description = "Number of shards of the data. One that nobody serves is reported as missing."
  type        = number
  default     = 4

  validation {
    condition     = var.shards >= 1 && floor(var.shards) == var.shards
    error_message = "The shards must be a whole number, 1 or more."
  }
  nullable = false
}

variable "replicas" {
  description = "Leaves for each shard, on different nodes where there are enough. With one, a slow or lost leaf cannot be made good by another."
  type        = number
  default     = 2

  validation {
    condition     = var.replicas >= 1 && floor(var.replicas) == var.replicas
    error_message = "The replicas must be a whole number, 1 or more."
  }
  nullable = false
}

variable "distinct_hosts" {
  description = "Never place two replicas of a shard on one node, rather than only where it can be avoided."
  type        = bool
  default     = false
  nullable    = false
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
  description = "bridge: the merge listens on loopback of the allocation's own network. host: on a Unix socket."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
  nullable = false
}

variable "consul_http_addr" {
  description = "How the root reaches the Consul agent of its node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
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
  description = "Image of the root, for the docker driver."
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

variable "deadline" {
  description = "Time for a request that names none."
  type        = string
  default     = "500ms"
  nullable    = false
}

variable "partial" {
  description = "Which partial answers are answers: fail (none), coverage(0.95), quorum(13) or best."
  type        = string
  default     = "fail"
  nullable    = false
}

variable "hedge_budget" {
  description = "Extra calls to leaves that are slow, as a share of all calls. 0 turns hedging off."
  type        = string
  default     = "3%"
  nullable    = false
}

variable "gather_env" {
  description = "Further settings of the root by its environment, such as { RETINUE_GATHER_DEADLINE_MAX = \"10s\" }."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "port" {
  description = "Port of the root in bridge mode. Clients find the published one in Consul."
  type        = number
  default     = 8080
  nullable    = false
}

variable "gather_resources" {
  description = "CPU shares in MHz and memory in MB of a root."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
  nullable    = false
}

variable "leaf_service" {
  description = "Consul service of leaves that another job runs: this one then runs roots alone. Empty: the leaves of this job."
  type        = string
  default     = ""
  nullable    = false
}

variable "leaf_image" {
  description = "Image of the leaf, for the docker driver. Empty: the image of the root."
  type        = string
  default     = ""
  nullable    = false
}

variable "leaf_command" {
  description = "Command of the leaf. Empty: the demo leaf, or with leaf_image the image's own."
  type        = string
  default     = ""
  nullable    = false
}

variable "leaf_args" {
  description = "Arguments of leaf_command. $${RETINUE_SHARD}, $${RETINUE_SHARDS} and $${RETINUE_LISTEN} are filled in by Nomad."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "leaf_env" {
  description = "Environment of the leaf."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "leaf_artifacts" {
  description = "Addresses of files or archives that Nomad puts into the leaf's local/ folder, such as a program or its data."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "leaf_port" {
  description = "Port of the leaf in bridge mode. In both modes it finds its port in NOMAD_PORT_http."
  type        = number
  default     = 8080
  nullable    = false
}

variable "leaf_health" {
  description = "Path of the leaf that answers 200 when it is ready."
  type        = string
  default     = "/health"
  nullable    = false
}

variable "leaf_resources" {
  description = "CPU shares in MHz and memory in MB of a leaf."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
  nullable    = false
}

variable "weights" {
  description = "How much of the data each shard has, in any unit, in the order of shards. Empty: all the same."
  type        = list(number)
  default     = []
  nullable    = false
}

variable "merge" {
  description = "Built-in merge, where there is neither merge_image nor merge_command: concat-ndjson, json-array, sum, first or top-k(FIELD,LIMIT)."
  type        = string
  default     = "top-k(score)"
  nullable    = false
}

variable "merge_image" {
  description = "Image of the merge, for the docker driver. Empty: none, or with merge_command the image of the root."
  type        = string
  default     = ""
  nullable    = false
}

variable "merge_command" {
  description = "Command of the merge. Empty: none, or with merge_image the image's own."
  type        = string
  default     = ""
  nullable    = false
}

variable "merge_args" {
  description = "Arguments of merge_command."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "merge_env" {
  description = "Environment of the merge."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "merge_artifacts" {
  description = "Addresses of files or archives that Nomad puts into the merge's local/ folder."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "merge_format" {
  description = "How the merge gets the leaves' answers: ndjson (as they arrive), multipart (binary bodies) or batch (one JSON array at the end)."
  type        = string
  default     = "ndjson"

  validation {
    condition     = contains(["ndjson", "multipart", "batch"], var.merge_format)
    error_message = "The merge_format must be ndjson, multipart or batch."
  }
  nullable = false
}

variable "merge_port" {
  description = "Loopback port of the merge in bridge mode."
  type        = number
  default     = 9000
  nullable    = false
}

variable "merge_resources" {
  description = "CPU shares in MHz and memory in MB of a merge."
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

variable "job_name" {
  description = "ID of the job and name of the application."
  type        = string
  default     = "terraform-election"
}

variable "replicas" {
  description = "Number of replicas, one of which leads."
  type        = number
  default     = 3
}

variable "acl" {
  description = "Make the Consul policy and role of the electors: true where Consul's ACLs are on."
  type        = bool
  default     = false
}

variable "auth_method" {
  description = "Consul auth method of Nomad's workload identities. Empty: the cluster binds roles by name already."
  type        = string
  default     = ""
}

variable "driver" {
  description = "Nomad task driver: docker, exec or raw_exec."
  type        = string
  default     = "docker"
}

variable "network_mode" {
  description = "bridge or host."
  type        = string
  default     = "bridge"
}

variable "retinue_image" {
  description = "Image of the elector and the demo application."
  type        = string
  default     = "retinue:0.1.0"
}

variable "retinue_command" {
  description = "The retinue binary as the tasks see it."
  type        = string
  default     = "/usr/local/bin/retinue"
}

variable "consul_http_addr" {
  description = "How a task reaches the Consul agent of its node."
  type        = string
  default     = ""
}

variable "lease" {
  description = "How long a leader may act after its last confirmation."
  type        = string
  default     = "10s"
}

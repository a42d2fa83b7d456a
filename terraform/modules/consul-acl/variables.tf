variable "job_name" {
  description = "ID of the Nomad job whose helper gets the role. It is also the prefix of the job's names in Consul."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,51}$", var.job_name))
    error_message = "The job_name must be 1 to 52 lower-case letters, digits and dashes, because it names a Consul service."
  }
}

variable "pattern" {
  description = "Whose rights: elector (leader election), gather (the roots of scatter/gather), coordinator, broker or scaler (work queue)."
  type        = string
  default     = "elector"
  nullable    = false

  validation {
    condition     = contains(["elector", "gather", "coordinator", "broker", "scaler"], var.pattern)
    error_message = "The pattern must be elector, gather, coordinator, broker or scaler."
  }
}

variable "services" {
  description = "Consul services that the roots of scatter/gather read. Empty: <job_name>-leaf."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "task" {
  description = "Name of the helper's task in the job. Empty: the name of the pattern, as in the jobspecs."
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{0,64}$", var.task))
    error_message = "The task must be letters, digits, underscores and dashes, 64 at most."
  }
}

variable "auth_method" {
  description = "Consul auth method to bind the role in, such as nomad-workloads. Empty: the cluster has a binding rule for roles named retinue-<task>-<job> already."
  type        = string
  default     = ""
  nullable    = false
}

variable "job_name" {
  description = "ID of the Nomad job whose helper gets the policy."
  type        = string
  nullable    = false
}

variable "pattern" {
  description = "Whose rights: scaler (work queue) or coordinator (work queue in mode dispatch)."
  type        = string
  default     = "scaler"
  nullable    = false

  validation {
    condition     = contains(["scaler", "coordinator"], var.pattern)
    error_message = "The pattern must be scaler or coordinator."
  }
}

variable "namespace" {
  description = "Nomad namespace of the job. The rights hold in all of it: Nomad has none for one job alone."
  type        = string
  default     = "default"
  nullable    = false
}

variable "task" {
  description = "Name of the helper's task in the job. Empty: the name of the pattern, as in the jobspecs."
  type        = string
  default     = ""
  nullable    = false
}

variable "group" {
  description = "Name of the task's group. Empty: as in the jobspecs, that of the task, and worker for a coordinator."
  type        = string
  default     = ""
  nullable    = false
}

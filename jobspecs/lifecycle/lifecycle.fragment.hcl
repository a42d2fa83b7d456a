# A lifecycle for the main task: a drain before the stop, and hooks of its own.
#
# `retinue inject lifecycle --task NAME` puts this into the configuration of a
# task of your own. The clients must run the lifecycle driver (plugins/README.md).

variable "retinue_lifecycle_ready" {
  description = "Request that a start waits for, such as GET /ready. Empty: none."
  type        = string
  default     = ""
}

variable "retinue_lifecycle_post_start" {
  description = "Command inside the task after its start. Empty: none."
  type        = list(string)
  default     = []
}

variable "retinue_lifecycle_pre_drain" {
  description = "Request at the beginning of a stop. Empty: none."
  type        = string
  default     = ""
}

variable "retinue_lifecycle_drain_port" {
  description = "Port of which a stop waits until it has no connection. 0: none."
  type        = number
  default     = 0
}

variable "retinue_lifecycle_drain_timeout" {
  description = "How long the drain may take."
  type        = string
  default     = "30s"
}

variable "retinue_lifecycle_save_state" {
  description = "Request that answers the state at a stop; the next allocation finds it in the file RETINUE_STATE. The group needs ephemeral_disk with sticky and migrate. Empty: none."
  type        = string
  default     = ""
}

variable "retinue_lifecycle_pre_stop" {
  description = "Command inside the task before the stop signal. Empty: none."
  type        = list(string)
  default     = []
}

variable "retinue_lifecycle_pre_stop_timeout" {
  description = "How long pre_stop may take."
  type        = string
  default     = "10s"
}

config {
  lifecycle {
    ready {
      http = var.retinue_lifecycle_ready
    }

    post_start {
      exec = var.retinue_lifecycle_post_start
    }

    pre_drain {
      http = var.retinue_lifecycle_pre_drain
    }

    drain {
      tcp_port = var.retinue_lifecycle_drain_port
      timeout  = var.retinue_lifecycle_drain_timeout
    }

    save_state {
      http = var.retinue_lifecycle_save_state
    }

    pre_stop {
      exec    = var.retinue_lifecycle_pre_stop
      timeout = var.retinue_lifecycle_pre_stop_timeout
    }
  }
}

# Generated from jobspecs/work-queue/work-queue.nomad.hcl (and variables.extra.tf.txt). Change that, then `make generate`.

variable "job_name" {
  description = "ID of the job and name of its queue. Its broker is the Consul service of this name and -broker, its secrets are the Nomad variable nomad/jobs/<job_name>."
  type        = string
  default     = "work-queue"

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

variable "replicas" {
  description = "Number of workers, each with its coordinator. With max_count, the number to begin with."
  type        = number
  default     = 2

  validation {
    condition     = var.replicas >= 0 && floor(var.replicas) == var.replicas
    error_message = "The replicas must be a whole number, 0 or more."
  }
  nullable = false
}

variable "max_count" {
  description = "Workers at most, when the job is to scale itself by what there is to do. 0: it does not."
  type        = number
  default     = 0

  validation {
    condition     = var.max_count >= 0 && floor(var.max_count) == var.max_count
    error_message = "The max_count must be a whole number, 0 or more."
  }
  nullable = false
}

variable "min_count" {
  description = "Workers at least, when the job scales itself."
  type        = number
  default     = 0

  validation {
    condition     = var.min_count >= 0 && floor(var.min_count) == var.min_count
    error_message = "The min_count must be a whole number, 0 or more."
  }
  nullable = false
}

variable "target_drain" {
  description = "How long it may take to work off what is there: what the number of workers is computed from."
  type        = string
  default     = "60s"

  validation {
    condition     = replace(var.target_drain, "/^([0-9.]+(ms|s|m|h))+$/", "") == ""
    error_message = "The target_drain must be a time like 30s or 1h30m."
  }
  nullable = false
}

variable "scale_cooldown" {
  description = "How long fewer workers must have been enough before there are fewer."
  type        = string
  default     = "60s"

  validation {
    condition     = replace(var.scale_cooldown, "/^([0-9.]+(ms|s|m|h))+$/", "") == ""
    error_message = "The scale_cooldown must be a time like 30s or 1h30m."
  }
  nullable = false
}

variable "scalers" {
  description = "Number of scalers, when the job scales itself. One of them leads."
  type        = number
  default     = 1

  validation {
    condition     = var.scalers >= 1 && floor(var.scalers) == var.scalers
    error_message = "The scalers must be a whole number, 1 or more."
  }
  nullable = false
}

variable "scaler_resources" {
  description = "CPU shares in MHz and memory in MB of a scaler."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 50, memory = 96 }
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
  description = "A broker of your own, such as redis://redis.example.com:6379, kafka://kafka.example.com:9092 or sqs://eu-central-1. Nomad renders it as a template, so a password can stay in a Nomad variable. Empty: the job runs a broker."
  type        = string
  default     = ""

  validation {
    condition     = substr(var.queue_url, 0, 2) == "{{" || contains(["", "nats", "tls", "redis", "rediss", "amqp", "amqps", "stomp", "stomps", "kafka", "kafkas", "sqs"], split(":", var.queue_url)[0])
    error_message = "The queue_url must begin with nats://, tls://, redis://, rediss://, amqp://, amqps://, stomp://, stomps://, kafka://, kafkas:// or sqs://, or be a Nomad template."
  }
  nullable = false
}

variable "mode" {
  description = "How the worker gets an item: exec (the command is started for each), watch (it claims folders), http, or dispatch (a Nomad job for each, a child of dispatch_job; there is no worker beside the coordinator)."
  type        = string
  default     = "exec"

  validation {
    condition     = contains(["exec", "watch", "http", "dispatch"], var.mode)
    error_message = "The mode must be exec, watch, http or dispatch."
  }
  nullable = false
}

variable "dispatch_job" {
  description = "The parameterized job of which mode dispatch, and divert_slots, make a child for each item: jobspecs/work-queue-dispatch, in the same namespace."
  type        = string
  default     = "work-queue-dispatch"
  nullable    = false
}

variable "work" {
  description = "Folder of the children's inputs and outputs in mode dispatch and with divert_slots, at the same path on all nodes. Empty: /shared/work where there is a volume, else none: then items of 12 KiB travel with the jobs, and only the exit code comes back."
  type        = string
  default     = ""
  nullable    = false
}

variable "slots" {
  description = "Items that a worker handles at once; in mode dispatch the children of a coordinator."
  type        = number
  default     = 4

  validation {
    condition     = var.slots >= 1 && floor(var.slots) == var.slots
    error_message = "The slots must be a whole number, 1 or more."
  }
  nullable = false
}

variable "divert_slots" {
  description = "Items at once that have containers of their own, as children of dispatch_job, while the others have the workers: those that took longer than max_runtime or crashed their worker twice, and those larger than divert_over. They need a folder that all nodes share: volume, or work and done. 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.divert_slots >= 0 && var.divert_slots <= 1000 && floor(var.divert_slots) == var.divert_slots
    error_message = "The divert_slots must be a whole number from 0 to 1000."
  }
  nullable = false
}

variable "divert_over" {
  description = "Size above which an item is for a container of its own, such as 100MiB. Empty: none for its size."
  type        = string
  default     = ""

  validation {
    condition     = replace(var.divert_over, "/^[0-9.]+([KMGT]i?B|B)?$/", "") == ""
    error_message = "The divert_over must be a size like 512KiB or 100MiB, or empty."
  }
  nullable = false
}

variable "divert_max_runtime" {
  description = "How long one attempt may take in a container of its own."
  type        = string
  default     = "24h"

  validation {
    condition     = replace(var.divert_max_runtime, "/^([0-9.]+(ms|s|m|h))+$/", "") == ""
    error_message = "The divert_max_runtime must be a time like 30m or 24h."
  }
  nullable = false
}

variable "attempts" {
  description = "Attempts that may fail before an item is a dead letter."
  type        = number
  default     = 5

  validation {
    condition     = var.attempts >= 1 && floor(var.attempts) == var.attempts
    error_message = "The attempts must be a whole number, 1 or more."
  }
  nullable = false
}

variable "max_runtime" {
  description = "How long one attempt may take."
  type        = string
  default     = "1h"

  validation {
    condition     = replace(var.max_runtime, "/^([0-9.]+(ms|s|m|h))+$/", "") == ""
    error_message = "The max_runtime must be a time like 30s or 1h30m."
  }
  nullable = false
}

variable "drain_seconds" {
  description = "How long a stop waits for what runs; the rest goes back to the queue. Nomad's max_kill_timeout must be 10 seconds more."
  type        = number
  default     = 20

  validation {
    condition     = var.drain_seconds >= 0 && floor(var.drain_seconds) == var.drain_seconds
    error_message = "The drain_seconds must be a whole number, 0 or more."
  }
  nullable = false
}

variable "to" {
  description = "Queue of the next stage, on the same broker. Empty: none, the output stays in the item's record."
  type        = string
  default     = ""
  nullable    = false
}

variable "to_partitions" {
  description = "The partitions of the queue that to names, as its own job has them. 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.to_partitions >= 0 && var.to_partitions <= 64 && floor(var.to_partitions) == var.to_partitions
    error_message = "The to_partitions must be a whole number from 0 to 64."
  }
  nullable = false
}

variable "split" {
  description = "The messages of one item to the next stage are a group, which gather of that stage or a later one makes one item again."
  type        = bool
  default     = false
  nullable    = false
}

variable "gather" {
  description = "Queue that gets one item when all parts of a group are committed. Empty: none."
  type        = string
  default     = ""
  nullable    = false
}

variable "commit" {
  description = "Where an item's end is decided when there is no shared folder: journal (in Consul), publish (needs to) or none."
  type        = string
  default     = "journal"

  validation {
    condition     = contains(["journal", "publish", "none"], var.commit)
    error_message = "The commit must be journal, publish or none."
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

variable "allow" {
  description = "Inputs by reference may lie below these addresses and folders, such as s3://pictures/in, https://files.example.com/in or /shared/in. Empty: an item is its input."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "artifacts" {
  description = "Where the files of outputs are uploaded, such as s3://pictures/out. Empty: outputs stay in records and messages, or in the shared folder."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", "s3"], split(":", var.artifacts)[0])
    error_message = "The artifacts must be like s3://BUCKET/PREFIX."
  }
  nullable = false
}

variable "aws_credentials" {
  description = "Give the coordinators the key of S3, and of a queue on SQS: aws_access_key_id, aws_secret_access_key and, if it is there, aws_session_token of the Nomad variable nomad/jobs/<job_name>."
  type        = bool
  default     = false
  nullable    = false
}

variable "keep" {
  description = "How long records and outputs are kept, such as 7d. An item that comes again later is a new one. Empty: for ever."
  type        = string
  default     = ""

  validation {
    condition     = replace(var.keep, "/^([0-9.]+d|([0-9.]+(s|m|h))+)$/", "") == ""
    error_message = "The keep must be a time like 7d or 36h, or empty."
  }
  nullable = false
}

variable "order" {
  description = "Whose items come one after the other: message (those with the same key) or header:NAME (the same header). A coordinator takes one of each key at a time. Empty: there is no order."
  type        = string
  default     = ""

  validation {
    condition     = replace(var.order, "/^(message|header:.+)$/", "") == ""
    error_message = "The order must be message or header:NAME, or empty."
  }
  nullable = false
}

variable "partitions" {
  description = "Partitions of the queue, each taken by one coordinator at a time: with order = message the order of a key then holds over all workers, not only within each. A few times as many as there are workers, 64 at most. Change it when the queue is empty. 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.partitions >= 0 && var.partitions <= 64 && floor(var.partitions) == var.partitions
    error_message = "The partitions must be a whole number from 0 to 64."
  }
  nullable = false
}

variable "rate" {
  description = "Items that all workers together start at most, such as 10/s, 90/m or 5000/h. Empty: any number."
  type        = string
  default     = ""

  validation {
    condition     = replace(var.rate, "/^[0-9.]+/[smh]$/", "") == ""
    error_message = "The rate must be a number a second, minute or hour, like 10/s, 90/m or 5000/h, or empty."
  }
  nullable = false
}

variable "rate_per_key" {
  description = "The same for the items of each key, which order names."
  type        = string
  default     = ""

  validation {
    condition     = replace(var.rate_per_key, "/^[0-9.]+/[smh]$/", "") == ""
    error_message = "The rate_per_key must be a number a second, minute or hour, like 10/s, 90/m or 5000/h, or empty."
  }
  nullable = false
}

variable "coordinator_env" {
  description = "Further settings of the coordinators by their environment, such as { RETINUE_COORDINATOR_CLASSES = \"3\" }."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "coordinator_config" {
  description = "What has no variable and no flag, such as schedules: the inside of the work_queue block of the coordinators' configuration file. What variables say counts more. Nomad renders it as a template."
  type        = string
  default     = ""
  nullable    = false
}

variable "coordinator_resources" {
  description = "CPU shares in MHz and memory in MB of a coordinator."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
  nullable    = false
}

variable "worker_image" {
  description = "Image of the worker, for the docker driver. Empty: the image of the coordinators."
  type        = string
  default     = ""
  nullable    = false
}

variable "worker_command" {
  description = "Command of the worker; in mode exec the one that is started for each item. Empty: the demo worker, or in modes watch and http with worker_image the image's own."
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
  description = "Addresses of files or archives that Nomad puts into the worker's local/ folder, such as a program."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "worker_port" {
  description = "Loopback port of the worker in mode http and bridge mode. It finds its address in RETINUE_WORKER_LISTEN."
  type        = number
  default     = 9000

  validation {
    condition     = var.worker_port >= 1 && var.worker_port <= 65535 && floor(var.worker_port) == var.worker_port
    error_message = "The worker_port must be between 1 and 65535."
  }
  nullable = false
}

variable "worker_resources" {
  description = "CPU shares in MHz and memory in MB of a worker."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
  nullable    = false
}

variable "brokers" {
  description = "Brokers of the job: 1, or 3 on different nodes with a copy of the queue each, which go on while one of them is dead. Change it when the queue is empty: the number of brokers has messages of its own."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 3], var.brokers)
    error_message = "The brokers must be 1 or 3: two do not go on when one is dead, and more than three copies are not kept."
  }
  nullable = false
}

variable "broker_volume" {
  description = "Host or CSI volume for the messages of the job's own broker (docker, exec). Empty: the allocation's disk, which moves on a drain and is lost with its node. Three brokers have the CSI volumes of this name with [0], [1] and [2]."
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

  validation {
    condition     = contains(["always", "interval", "process"], var.broker_durability)
    error_message = "The broker_durability must be always, interval or process."
  }
  nullable = false
}

variable "broker_disk" {
  description = "Disk in MB for the messages on the allocation's disk."
  type        = number
  default     = 1000

  validation {
    condition     = var.broker_disk >= 10 && floor(var.broker_disk) == var.broker_disk
    error_message = "The broker_disk must be a whole number, 10 or more."
  }
  nullable = false
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

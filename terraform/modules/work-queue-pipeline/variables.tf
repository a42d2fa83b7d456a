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

  validation {
    condition     = length([for stage in var.stages : stage.name if contains(["broker", "scaler"], stage.name)]) == 0
    error_message = "No stage may be called broker or scaler: these are groups of the job."
  }

  validation {
    condition     = length([for stage in var.stages : stage.name if stage.count < 0 || floor(stage.count) != stage.count || stage.slots < 1 || floor(stage.slots) != stage.slots]) == 0
    error_message = "The count of a stage must be a whole number, 0 or more, and its slots 1 or more."
  }
  nullable = false
}

variable "max_count" {
  description = "Workers at most, by the names of the stages that are to scale themselves by what there is to do, such as { ocr = 50, pack = 4 }. A stage that is not named does not."
  type        = map(number)
  default     = {}

  validation {
    condition     = length([for stage, count in var.max_count : stage if count < 0 || floor(count) != count]) == 0
    error_message = "The max_count must have whole numbers, 0 or more, by the names of stages."
  }
  nullable = false
}

variable "min_count" {
  description = "Workers at least, by the names of stages that scale themselves. A stage that is not named may have none."
  type        = map(number)
  default     = {}

  validation {
    condition     = length([for stage, count in var.min_count : stage if count < 0 || floor(count) != count]) == 0
    error_message = "The min_count must have whole numbers, 0 or more, by the names of stages."
  }
  nullable = false
}

variable "partitions" {
  description = "Partitions of the queues of stages, by the names of the stages that are to keep the order of a message's key over all of their workers, such as { ocr = 16 }. Each is taken by one coordinator at a time. A few times as many as the stage has workers, 64 at most. Change it when the queue is empty. A stage that is not named has none."
  type        = map(number)
  default     = {}

  validation {
    condition     = length([for stage, count in var.partitions : stage if count < 0 || count > 64 || floor(count) != count]) == 0
    error_message = "The partitions must have whole numbers from 0 to 64, by the names of stages."
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
  description = "Number of scalers, when stages scale themselves. One of them leads."
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
  description = "Queue after the last stage, on the same broker. Empty: none, the output stays in the item's record."
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
  description = "Names of stages that make a group of the messages of one item: a stage that gathers makes one item of it again."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "gather" {
  description = "Names of stages whose next one gets one item for a whole group, when all its parts are committed, and none for a part."
  type        = list(string)
  default     = []
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

variable "allow" {
  description = "Inputs by reference may lie below these addresses and folders, such as s3://pictures/in, https://files.example.com/in or /shared/in. Empty: an item is its input."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "artifacts" {
  description = "Where the files of all outputs are uploaded, such as s3://pictures/out. Empty: outputs stay in records and messages, or in the shared folder."
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

variable "coordinator_env" {
  description = "Further settings of the coordinators by their environment, such as { RETINUE_COORDINATOR_RATE = \"10/s\" }."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "coordinator_config" {
  description = "What has no variable and no flag, such as schedules, by the names of stages: the inside of the work_queue block of the coordinators' configuration file. What variables say counts more. Nomad renders it as a template."
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

# Work queue: workers that turn an item into an output, and know of no queue.
#
#   nomad var put nomad/jobs/work-queue password=$(openssl rand -hex 16)
#   nomad job run -var count=4 work-queue.nomad.hcl
#   nomad job run -var-file=my.vars.hcl work-queue.nomad.hcl
#
# You bring a command, a program that claims folders, or an HTTP service. A
# coordinator beside each worker takes the items from the queue, commits what
# comes out exactly once, and only then acknowledges.

variable "job_name" {
  description = "ID of the job and name of its queue. Its broker is the Consul service of this name and -broker, its secrets are the Nomad variable nomad/jobs/<job_name>."
  type        = string
  default     = "work-queue"

  validation {
    condition     = regex_replace(var.job_name, "^[a-z0-9][a-z0-9-]{0,51}$", "") == ""
    error_message = "The job_name must be 1 to 52 lower-case letters, digits and dashes, because it names a Consul service."
  }
}

variable "namespace" {
  description = "Nomad namespace of the job."
  type        = string
  default     = "default"
}

variable "datacenters" {
  description = "Nomad datacenters that may run workers and broker."
  type        = list(string)
  default     = ["*"]
}

variable "count" {
  description = "Number of workers, each with its coordinator. With max_count, the number to begin with."
  type        = number
  default     = 2

  validation {
    condition     = var.count >= 0 && floor(var.count) == var.count
    error_message = "The count must be a whole number, 0 or more."
  }
}

variable "max_count" {
  description = "Workers at most, when the job is to scale itself by what there is to do. 0: it does not."
  type        = number
  default     = 0

  validation {
    condition     = var.max_count >= 0 && floor(var.max_count) == var.max_count
    error_message = "The max_count must be a whole number, 0 or more."
  }
}

variable "min_count" {
  description = "Workers at least, when the job scales itself."
  type        = number
  default     = 0

  validation {
    condition     = var.min_count >= 0 && floor(var.min_count) == var.min_count
    error_message = "The min_count must be a whole number, 0 or more."
  }
}

variable "target_drain" {
  description = "How long it may take to work off what is there: what the number of workers is computed from."
  type        = string
  default     = "60s"

  validation {
    condition     = regex_replace(var.target_drain, "^([0-9.]+(ms|s|m|h))+$", "") == ""
    error_message = "The target_drain must be a time like 30s or 1h30m."
  }
}

variable "scale_cooldown" {
  description = "How long fewer workers must have been enough before there are fewer."
  type        = string
  default     = "60s"

  validation {
    condition     = regex_replace(var.scale_cooldown, "^([0-9.]+(ms|s|m|h))+$", "") == ""
    error_message = "The scale_cooldown must be a time like 30s or 1h30m."
  }
}

variable "scalers" {
  description = "Number of scalers, when the job scales itself. One of them leads."
  type        = number
  default     = 1

  validation {
    condition     = var.scalers >= 1 && floor(var.scalers) == var.scalers
    error_message = "The scalers must be a whole number, 1 or more."
  }
}

variable "scaler_resources" {
  description = "CPU shares in MHz and memory in MB of a scaler."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 50, memory = 96 }
}

variable "driver" {
  description = "Nomad task driver of all tasks: docker, exec or raw_exec."
  type        = string
  default     = "docker"

  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver must be docker, exec or raw_exec."
  }
}

variable "network_mode" {
  description = "bridge: an HTTP worker listens on loopback of the allocation's own network. host: on a Unix socket."
  type        = string
  default     = "bridge"

  validation {
    condition     = contains(["bridge", "host"], var.network_mode)
    error_message = "The network_mode must be bridge or host."
  }
}

variable "consul_http_addr" {
  description = "How the coordinators reach the Consul agent of their node. Empty: the Consul default, 127.0.0.1:8500, which is right in host mode."
  type        = string
  default     = ""
}

variable "consul_ui" {
  description = "Address of the Consul UI with its datacenter, such as https://consul.example.com/ui/dc1, for the links that the Nomad UI shows. Empty: no links."
  type        = string
  default     = ""
}

variable "retinue_image" {
  description = "Image of coordinators and broker, for the docker driver."
  type        = string
  default     = "retinue:0.1.0"
}

variable "retinue_command" {
  description = "The retinue binary as the tasks see it. The broker's is this and -broker."
  type        = string
  default     = "/usr/local/bin/retinue"
}

variable "queue_url" {
  description = "A broker of your own, such as redis://redis.example.com:6379, kafka://kafka.example.com:9092 or sqs://eu-central-1. Nomad renders it as a template, so a password can stay in a Nomad variable. Empty: the job runs a broker."
  type        = string
  default     = ""

  validation {
    condition     = substr(var.queue_url, 0, 2) == "{{" || contains(["", "nats", "tls", "redis", "rediss", "amqp", "amqps", "stomp", "stomps", "kafka", "kafkas", "sqs"], split(":", var.queue_url)[0])
    error_message = "The queue_url must begin with nats://, tls://, redis://, rediss://, amqp://, amqps://, stomp://, stomps://, kafka://, kafkas:// or sqs://, or be a Nomad template."
  }
}

variable "mode" {
  description = "How the worker gets an item: exec (the command is started for each), watch (it claims folders), http, or dispatch (a Nomad job for each, a child of dispatch_job; there is no worker beside the coordinator)."
  type        = string
  default     = "exec"

  validation {
    condition     = contains(["exec", "watch", "http", "dispatch"], var.mode)
    error_message = "The mode must be exec, watch, http or dispatch."
  }
}

variable "dispatch_job" {
  description = "The parameterized job of which mode dispatch, and divert_slots, make a child for each item: jobspecs/work-queue-dispatch, in the same namespace."
  type        = string
  default     = "work-queue-dispatch"
}

variable "work" {
  description = "Folder of the children's inputs and outputs in mode dispatch and with divert_slots, at the same path on all nodes. Empty: /shared/work where there is a volume, else none: then items of 12 KiB travel with the jobs, and only the exit code comes back."
  type        = string
  default     = ""
}

variable "slots" {
  description = "Items that a worker handles at once; in mode dispatch the children of a coordinator."
  type        = number
  default     = 4

  validation {
    condition     = var.slots >= 1 && floor(var.slots) == var.slots
    error_message = "The slots must be a whole number, 1 or more."
  }
}

variable "divert_slots" {
  description = "Items at once that have containers of their own, as children of dispatch_job, while the others have the workers: those that took longer than max_runtime or crashed their worker twice, and those larger than divert_over. They need a folder that all nodes share: volume, or work and done. 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.divert_slots >= 0 && var.divert_slots <= 1000 && floor(var.divert_slots) == var.divert_slots
    error_message = "The divert_slots must be a whole number from 0 to 1000."
  }
}

variable "divert_over" {
  description = "Size above which an item is for a container of its own, such as 100MiB. Empty: none for its size."
  type        = string
  default     = ""

  validation {
    condition     = regex_replace(var.divert_over, "^[0-9.]+([KMGT]i?B|B)?$", "") == ""
    error_message = "The divert_over must be a size like 512KiB or 100MiB, or empty."
  }
}

variable "divert_max_runtime" {
  description = "How long one attempt may take in a container of its own."
  type        = string
  default     = "24h"

  validation {
    condition     = regex_replace(var.divert_max_runtime, "^([0-9.]+(ms|s|m|h))+$", "") == ""
    error_message = "The divert_max_runtime must be a time like 30m or 24h."
  }
}

variable "attempts" {
  description = "Attempts that may fail before an item is a dead letter."
  type        = number
  default     = 5

  validation {
    condition     = var.attempts >= 1 && floor(var.attempts) == var.attempts
    error_message = "The attempts must be a whole number, 1 or more."
  }
}

variable "max_runtime" {
  description = "How long one attempt may take."
  type        = string
  default     = "1h"

  validation {
    condition     = regex_replace(var.max_runtime, "^([0-9.]+(ms|s|m|h))+$", "") == ""
    error_message = "The max_runtime must be a time like 30s or 1h30m."
  }
}

variable "drain_seconds" {
  description = "How long a stop waits for what runs; the rest goes back to the queue. Nomad's max_kill_timeout must be 10 seconds more."
  type        = number
  default     = 20

  validation {
    condition     = var.drain_seconds >= 0 && floor(var.drain_seconds) == var.drain_seconds
    error_message = "The drain_seconds must be a whole number, 0 or more."
  }
}

variable "to" {
  description = "Queue of the next stage, on the same broker. Empty: none, the output stays in the item's record."
  type        = string
  default     = ""
}

variable "to_partitions" {
  description = "The partitions of the queue that to names, as its own job has them. 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.to_partitions >= 0 && var.to_partitions <= 64 && floor(var.to_partitions) == var.to_partitions
    error_message = "The to_partitions must be a whole number from 0 to 64."
  }
}

variable "split" {
  description = "The messages of one item to the next stage are a group, which gather of that stage or a later one makes one item again."
  type        = bool
  default     = false
}

variable "gather" {
  description = "Queue that gets one item when all parts of a group are committed. Empty: none."
  type        = string
  default     = ""
}

variable "commit" {
  description = "Where an item's end is decided when there is no shared folder: journal (in Consul), publish (needs to) or none."
  type        = string
  default     = "journal"

  validation {
    condition     = contains(["journal", "publish", "none"], var.commit)
    error_message = "The commit must be journal, publish or none."
  }
}

variable "volume" {
  description = "Host or CSI volume that all nodes share, mounted at /shared (docker, exec). Outputs then are committed below it, by rename, as large as they are. Empty: none."
  type        = string
  default     = ""
}

variable "volume_type" {
  description = "Kind of the volume: host or csi."
  type        = string
  default     = "host"

  validation {
    condition     = contains(["host", "csi"], var.volume_type)
    error_message = "The volume_type must be host or csi."
  }
}

variable "done" {
  description = "Folder of committed outputs, shared by all nodes. Empty: /shared/done where there is a volume, else none."
  type        = string
  default     = ""
}

variable "allow" {
  description = "Inputs by reference may lie below these addresses and folders, such as s3://pictures/in, https://files.example.com/in or /shared/in. Empty: an item is its input."
  type        = list(string)
  default     = []
}

variable "artifacts" {
  description = "Where the files of outputs are uploaded, such as s3://pictures/out. Empty: outputs stay in records and messages, or in the shared folder."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", "s3"], split(":", var.artifacts)[0])
    error_message = "The artifacts must be like s3://BUCKET/PREFIX."
  }
}

variable "aws_credentials" {
  description = "Give the coordinators the key of S3, and of a queue on SQS: aws_access_key_id, aws_secret_access_key and, if it is there, aws_session_token of the Nomad variable nomad/jobs/<job_name>."
  type        = bool
  default     = false
}

variable "keep" {
  description = "How long records and outputs are kept, such as 7d. An item that comes again later is a new one. Empty: for ever."
  type        = string
  default     = ""

  validation {
    condition     = regex_replace(var.keep, "^([0-9.]+d|([0-9.]+(s|m|h))+)$", "") == ""
    error_message = "The keep must be a time like 7d or 36h, or empty."
  }
}

variable "order" {
  description = "Whose items come one after the other: message (those with the same key) or header:NAME (the same header). A coordinator takes one of each key at a time. Empty: there is no order."
  type        = string
  default     = ""

  validation {
    condition     = regex_replace(var.order, "^(message|header:.+)$", "") == ""
    error_message = "The order must be message or header:NAME, or empty."
  }
}

variable "partitions" {
  description = "Partitions of the queue, each taken by one coordinator at a time: with order = message the order of a key then holds over all workers, not only within each. A few times as many as there are workers, 64 at most. Change it when the queue is empty. 0: none."
  type        = number
  default     = 0

  validation {
    condition     = var.partitions >= 0 && var.partitions <= 64 && floor(var.partitions) == var.partitions
    error_message = "The partitions must be a whole number from 0 to 64."
  }
}

variable "rate" {
  description = "Items that all workers together start at most, such as 10/s, 90/m or 5000/h. Empty: any number."
  type        = string
  default     = ""

  validation {
    condition     = regex_replace(var.rate, "^[0-9.]+/[smh]$", "") == ""
    error_message = "The rate must be a number a second, minute or hour, like 10/s, 90/m or 5000/h, or empty."
  }
}

variable "rate_per_key" {
  description = "The same for the items of each key, which order names."
  type        = string
  default     = ""

  validation {
    condition     = regex_replace(var.rate_per_key, "^[0-9.]+/[smh]$", "") == ""
    error_message = "The rate_per_key must be a number a second, minute or hour, like 10/s, 90/m or 5000/h, or empty."
  }
}

variable "coordinator_env" {
  description = "Further settings of the coordinators by their environment, such as { RETINUE_COORDINATOR_CLASSES = \"3\" }."
  type        = map(string)
  default     = {}
}

variable "coordinator_config" {
  description = "What has no variable and no flag, such as schedules: the inside of the work_queue block of the coordinators' configuration file. What variables say counts more. Nomad renders it as a template."
  type        = string
  default     = ""
}

variable "coordinator_resources" {
  description = "CPU shares in MHz and memory in MB of a coordinator."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

variable "worker_image" {
  description = "Image of the worker, for the docker driver. Empty: the image of the coordinators."
  type        = string
  default     = ""
}

variable "worker_command" {
  description = "Command of the worker; in mode exec the one that is started for each item. Empty: the demo worker, or in modes watch and http with worker_image the image's own."
  type        = string
  default     = ""
}

variable "worker_args" {
  description = "Arguments of worker_command."
  type        = list(string)
  default     = []
}

variable "worker_env" {
  description = "Environment of the worker."
  type        = map(string)
  default     = {}
}

variable "worker_artifacts" {
  description = "Addresses of files or archives that Nomad puts into the worker's local/ folder, such as a program."
  type        = list(string)
  default     = []
}

variable "worker_port" {
  description = "Loopback port of the worker in mode http and bridge mode. It finds its address in RETINUE_WORKER_LISTEN."
  type        = number
  default     = 9000

  validation {
    condition     = var.worker_port >= 1 && var.worker_port <= 65535 && floor(var.worker_port) == var.worker_port
    error_message = "The worker_port must be between 1 and 65535."
  }
}

variable "worker_resources" {
  description = "CPU shares in MHz and memory in MB of a worker."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
}

variable "brokers" {
  description = "Brokers of the job: 1, or 3 on different nodes with a copy of the queue each, which go on while one of them is dead. Change it when the queue is empty: the number of brokers has messages of its own."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 3], var.brokers)
    error_message = "The brokers must be 1 or 3: two do not go on when one is dead, and more than three copies are not kept."
  }
}

variable "broker_volume" {
  description = "Host or CSI volume for the messages of the job's own broker (docker, exec). Empty: the allocation's disk, which moves on a drain and is lost with its node. Three brokers have the CSI volumes of this name with [0], [1] and [2]."
  type        = string
  default     = ""
}

variable "broker_volume_type" {
  description = "Kind of the broker_volume: host or csi."
  type        = string
  default     = "host"

  validation {
    condition     = contains(["host", "csi"], var.broker_volume_type)
    error_message = "The broker_volume_type must be host or csi."
  }
}

variable "broker_durability" {
  description = "When a message reaches the broker's disk: always, interval or process."
  type        = string
  default     = "always"

  validation {
    condition     = contains(["always", "interval", "process"], var.broker_durability)
    error_message = "The broker_durability must be always, interval or process."
  }
}

variable "broker_disk" {
  description = "Disk in MB for the messages on the allocation's disk."
  type        = number
  default     = 1000

  validation {
    condition     = var.broker_disk >= 10 && floor(var.broker_disk) == var.broker_disk
    error_message = "The broker_disk must be a whole number, 10 or more."
  }
}

variable "broker_resources" {
  description = "CPU shares in MHz and memory in MB of the broker."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 200, memory = 256 }
}

locals {
  bridge = var.network_mode == "bridge"
  docker = var.driver == "docker"
  shell  = var.mode == "exec"

  # In mode dispatch the coordinators are alone: they ask Nomad for a job for each item.
  dispatch    = var.mode == "dispatch"
  work        = var.work != "" ? var.work : var.volume != "" ? "/shared/work" : ""
  outstanding = min(1000, 2 * var.slots * max(1, var.count, var.max_count))

  # Items that workers cannot do have a queue of their own, whose coordinator dispatches them. They are the same items: of the stage job_name.
  diverts = var.divert_slots > 0
  alone   = { worker = local.dispatch, apart = true } # in which group there is no worker
  apart = {
    RETINUE_COORDINATOR_QUEUE        = "${var.job_name}-apart"
    RETINUE_COORDINATOR_STAGE        = var.job_name
    RETINUE_COORDINATOR_DIVERT       = ""
    RETINUE_COORDINATOR_DIVERT_OVER  = ""
    RETINUE_COORDINATOR_MODE         = "dispatch"
    RETINUE_COORDINATOR_URL          = ""
    RETINUE_COORDINATOR_INSTALL      = var.volume != "" ? "/shared/bin/retinue" : ""
    RETINUE_COORDINATOR_SLOTS        = "${var.divert_slots}"
    RETINUE_COORDINATOR_BATCH        = "1"
    RETINUE_COORDINATOR_MAX_RUNTIME  = var.divert_max_runtime
    RETINUE_COORDINATOR_HEARTBEAT    = "0s"
    RETINUE_COORDINATOR_OUTSTANDING  = "${min(1000, 2 * var.divert_slots)}"
    RETINUE_COORDINATOR_PARTITIONS   = "0"
    RETINUE_COORDINATOR_LOAD         = "" # the scaler's is of the workers, and so are the rates
    RETINUE_COORDINATOR_RATE         = ""
    RETINUE_COORDINATOR_RATE_PER_KEY = ""
  }

  # The job's own broker is found through Consul at each connection, so that it may move.
  own_broker = var.queue_url == ""
  cluster    = var.brokers == 3
  own_url    = "nats://retinue@${var.job_name}-broker.service.consul?password_file=${NOMAD_SECRETS_DIR}/broker-password${local.cluster ? "&replicas=3" : ""}"
  password   = "{{ with nomadVar \"nomad/jobs/${var.job_name}\" }}{{ .password }}{{ end }}"

  # Workers come and go by what there is to do. A validation sees its own variable alone; what has to fit another one fails here, by a
  # sentence that is no number, in a local that no other local needs: then Nomad shows this error.
  scales = var.max_count > 0
  count = (
    var.min_count > var.max_count ? parseint("the min_count must not be above the max_count", 10) :
    var.partitions > 0 && var.order != "message" ? parseint("partitions need order = message: a producer puts an item into its partition by the key of the message", 10) :
    (var.partitions > 0 || var.to_partitions > 0) && local.ordered ? parseint("SQS and Kafka have no partitions: a FIFO queue of SQS, and Kafka with groups=classic, order a key themselves", 10) :
    var.to_partitions > 0 && var.to == "" ? parseint("to_partitions are those of a next stage: name it with to", 10) :
    local.elsewhere ? parseint("partitions are said by the variables partitions and to_partitions, which the scaler sees too, and nowhere else", 10) :
    local.diverts && local.dispatch ? parseint("divert_slots are for items of workers, and in mode dispatch there are none", 10) :
    local.diverts && (local.work == "" || local.done == "") ? parseint("divert_slots need a folder that all nodes share, for what comes out: volume, or work and done", 10) :
    local.diverts && var.order != "" && !contains(keys(var.coordinator_env), "RETINUE_COORDINATOR_ON_FAIL") ? parseint("divert_slots with order: an item that is diverted is overtaken by those of its key; say coordinator_env = { RETINUE_COORDINATOR_ON_FAIL = skip } if it may be", 10) :
    var.divert_over != "" && !local.diverts ? parseint("divert_over needs divert_slots, for how many containers there may be at once", 10) :
    local.scales ? max(var.min_count, min(var.count, var.max_count)) : var.count
  )

  # All that speak to a queue must count the same partitions.
  ordered   = contains(["sqs", "kafka", "kafkas"], split(":", var.queue_url)[0])
  elsewhere = length([for name in keys(var.coordinator_env) : name if contains(["RETINUE_COORDINATOR_PARTITIONS", "RETINUE_COORDINATOR_TO_PARTITIONS"], name)]) > 0 || regex_replace(var.coordinator_config, "(^|[[:space:]{])(to_)?partitions[[:space:]]*=", "") != var.coordinator_config

  # The key of S3 and SQS, as AWS's own programs have it: a file, and nothing of it in the job.
  credentials = "{{ with nomadVar \"nomad/jobs/${var.job_name}\" }}[default]\naws_access_key_id = {{ .aws_access_key_id }}\naws_secret_access_key = {{ .aws_secret_access_key }}\n{{ with .aws_session_token }}aws_session_token = {{ . }}\n{{ end }}{{ end }}"
  sqs         = split(":", var.queue_url)[0] == "sqs"

  done   = var.done != "" ? var.done : var.volume != "" ? "/shared/done" : ""
  commit = local.done != "" ? "rename" : var.commit

  # In mode exec the worker's container runs `retinue worker`, which the coordinator puts into the folder they share.
  foreign      = local.docker && var.worker_image != ""
  demo         = var.worker_command == "" && (var.worker_image == "" || local.shell)
  worker_image = var.worker_image != "" ? var.worker_image : var.retinue_image
  shim         = local.foreign ? "${NOMAD_ALLOC_DIR}/bin/retinue" : var.retinue_command
  install      = local.foreign && local.shell ? local.shim : local.dispatch && var.volume != "" ? "/shared/bin/retinue" : ""
  own_command  = local.demo ? concat([local.shim, "demo-app", "work-queue"], var.worker_args) : concat([var.worker_command], var.worker_args)
  command      = local.shell ? concat([local.shim, "worker", "--"], local.own_command) : local.own_command

  socket     = "unix://${NOMAD_ALLOC_DIR}/tmp/worker.sock"
  worker_url = local.bridge ? "http://127.0.0.1:${var.worker_port}/" : local.socket
  listen     = local.bridge ? "127.0.0.1:${var.worker_port}" : local.socket
}

job "work-queue" {
  id          = var.job_name
  name        = var.job_name
  namespace   = var.namespace
  datacenters = var.datacenters

  ui {
    description = "Work queue `${var.job_name}`. The job's actions show the stage, its items and its dead letters."

    dynamic "link" {
      for_each = var.consul_ui == "" ? [] : ["kv/retinue/queues/${var.job_name}/", "services/${var.job_name}-broker/instances"]

      content {
        label = "${substr(link.value, 0, 2) == "kv" ? "Commit records" : "Broker"} (Consul)"
        url   = "${var.consul_ui}/${link.value}"
      }
    }
  }

  # Nomad scales no job while a deployment is under way. 0: there is none, and an update replaces all workers at once; each drains.
  update {
    max_parallel     = local.scales ? 0 : 1
    min_healthy_time = "3s"
    healthy_deadline = "5m"
  }

  # The workers, and the coordinator that gives some of their items containers of their own.
  dynamic "group" {
    for_each = local.diverts ? ["worker", "apart"] : ["worker"]
    labels   = [group.value]

    content {
      count = group.value == "worker" ? local.count : 1

      spread {
        attribute = "${node.unique.id}"
      }

      network {
        mode = var.network_mode
      }

      restart {
        attempts = 10
        interval = "1m"
        delay    = "1s"
        mode     = "delay"
      }

      dynamic "volume" {
        for_each = var.volume == "" ? [] : [var.volume]
        labels   = ["shared"]

        content {
          type            = var.volume_type
          source          = volume.value
          access_mode     = var.volume_type == "csi" ? "multi-node-multi-writer" : ""
          attachment_mode = var.volume_type == "csi" ? "file-system" : ""
        }
      }

      # Up before the worker. It is stopped first: what runs has time to end, and the worker is there meanwhile.
      task "coordinator" {
        driver       = var.driver
        leader       = true
        kill_timeout = "${var.drain_seconds + 10}s"

        # A group is over when it has no main task: alone, the coordinator is that.
        dynamic "lifecycle" {
          for_each = local.alone[group.value] ? [] : [1]

          content {
            hook    = "prestart"
            sidecar = true
          }
        }

        consul {}

        # Nomad's socket in the task's secrets, and the token for it.
        dynamic "identity" {
          for_each = local.alone[group.value] ? [1] : []

          content {
            file = true
          }
        }

        dynamic "config" {
          for_each = local.docker ? [1] : []

          content {
            image        = var.retinue_image
            command      = var.retinue_command
            args         = ["coordinator"]
            network_mode = local.bridge ? "" : "host"
          }
        }

        dynamic "config" {
          for_each = local.docker ? [] : [1]

          content {
            command = var.retinue_command
            args    = ["coordinator"]
          }
        }

        env = merge({
          CONSUL_HTTP_ADDR                                   = var.consul_http_addr
          RETINUE_COORDINATOR_QUEUE                          = var.job_name
          RETINUE_COORDINATOR_NODE                           = "${node.unique.name}"
          RETINUE_COORDINATOR_MODE                           = local.shell ? "watch" : var.mode
          RETINUE_COORDINATOR_URL                            = var.mode == "http" ? local.worker_url : ""
          RETINUE_COORDINATOR_INSTALL                        = local.install
          RETINUE_COORDINATOR_SLOTS                          = "${var.slots}"
          RETINUE_COORDINATOR_ATTEMPTS                       = "${var.attempts}"
          RETINUE_COORDINATOR_MAX_RUNTIME                    = var.max_runtime
          RETINUE_COORDINATOR_DIVERT                         = local.diverts ? "${var.job_name}-apart" : ""
          RETINUE_COORDINATOR_DIVERT_OVER                    = var.divert_over
          RETINUE_COORDINATOR_DRAIN_TIMEOUT                  = local.alone[group.value] ? "0s" : "${var.drain_seconds}s" # children go on
          RETINUE_COORDINATOR_TO                             = var.to
          RETINUE_COORDINATOR_TO_PARTITIONS                  = "${var.to_partitions}"
          RETINUE_COORDINATOR_SPLIT                          = var.split ? "true" : ""
          RETINUE_COORDINATOR_GATHER                         = var.gather
          RETINUE_COORDINATOR_KEEP                           = var.keep
          RETINUE_COORDINATOR_ALLOW                          = join(",", var.allow)
          RETINUE_COORDINATOR_ARTIFACTS                      = var.artifacts
          RETINUE_COORDINATOR_CONFIG                         = var.coordinator_config == "" ? "" : "${NOMAD_SECRETS_DIR}/queue.hcl"
          RETINUE_COORDINATOR_COMMIT                         = local.commit
          RETINUE_COORDINATOR_DONE                           = local.done
          RETINUE_COORDINATOR_JOURNAL                        = local.commit == "journal" ? "consul:${var.job_name}" : ""
          RETINUE_COORDINATOR_LOAD                           = local.scales || var.rate != "" || var.rate_per_key != "" || var.partitions > 0 ? "consul:${var.job_name}" : ""
          RETINUE_COORDINATOR_ORDER                          = var.order
          RETINUE_COORDINATOR_PARTITIONS                     = "${var.partitions}"
          RETINUE_COORDINATOR_RATE                           = var.rate
          RETINUE_COORDINATOR_RATE_PER_KEY                   = var.rate_per_key
          }, local.own_broker ? { RETINUE_COORDINATOR_BROKER = local.own_url } : {}, local.alone[group.value] ? {
          RETINUE_COORDINATOR_JOB                            = var.dispatch_job
          RETINUE_COORDINATOR_WORK                           = local.work
          RETINUE_COORDINATOR_OUTSTANDING                    = "${local.outstanding}"
        } : {}, var.aws_credentials ? { AWS_SHARED_CREDENTIALS_FILE = "${NOMAD_SECRETS_DIR}/aws-credentials" } : {}, var.coordinator_env, group.value == "apart" ? local.apart : {})

        dynamic "template" {
          for_each = local.own_broker ? [1] : []

          content {
            destination = "secrets/broker-password"
            perms       = "600"
            change_mode = "noop" # it is read again at each connection
            data        = local.password
          }
        }

        dynamic "template" {
          for_each = local.own_broker ? [] : [1]

          content {
            destination = "secrets/broker.env"
            perms       = "600"
            env         = true
            data        = "RETINUE_COORDINATOR_BROKER=${var.queue_url}"
          }
        }

        dynamic "template" {
          for_each = var.aws_credentials ? [1] : []

          content {
            destination = "secrets/aws-credentials"
            perms       = "600"
            change_mode = local.sqs ? "restart" : "noop" # S3's is read at each request
            data        = local.credentials
          }
        }

        dynamic "template" {
          for_each = var.coordinator_config == "" ? [] : [1]

          content {
            destination = "secrets/queue.hcl"
            perms       = "600"
            data        = "work_queue \"${var.job_name}\" {\n${var.coordinator_config}\n}\n"
          }
        }

        dynamic "volume_mount" {
          for_each = var.volume == "" ? [] : ["shared"]

          content {
            volume      = volume_mount.value
            destination = "/shared"
          }
        }

        action "stats" {
          command = var.retinue_command
          args    = ["queue", "stats"]
        }

        action "items" {
          command = var.retinue_command
          args    = ["queue", "ls"]
        }

        action "dead" {
          command = var.retinue_command
          args    = ["queue", "dead", "ls"]
        }

        action "retry-dead" {
          command = var.retinue_command
          args    = ["queue", "dead", "retry", "--all"]
        }

        resources {
          cpu    = var.coordinator_resources.cpu
          memory = var.coordinator_resources.memory
        }
      }

      dynamic "task" {
        for_each = local.alone[group.value] ? [] : ["worker"]
        labels   = [task.value]

        content {
          driver       = var.driver
          kill_timeout = "10s"

          dynamic "artifact" {
            for_each = var.worker_artifacts

            content {
              source = artifact.value
            }
          }

          dynamic "config" {
            for_each = local.docker && local.shell ? [1] : []

            content {
              image        = local.worker_image
              entrypoint   = [local.command[0]]
              args         = slice(local.command, 1, length(local.command))
              network_mode = local.bridge ? "" : "host"
            }
          }

          dynamic "config" {
            for_each = local.docker && !local.shell ? [1] : []

            content {
              image        = local.worker_image
              command      = local.command[0]
              args         = slice(local.command, 1, length(local.command))
              network_mode = local.bridge ? "" : "host"
            }
          }

          dynamic "config" {
            for_each = local.docker ? [] : [1]

            content {
              command = local.command[0]
              args    = slice(local.command, 1, length(local.command))
            }
          }

          env = merge(var.worker_env, {
            RETINUE_WORKER_SLOTS  = "${var.slots}"
            RETINUE_WORKER_LISTEN = var.mode == "http" ? local.listen : ""
          })

          dynamic "volume_mount" {
            for_each = var.volume == "" ? [] : ["shared"]

            content {
              volume      = volume_mount.value
              destination = "/shared"
            }
          }

          resources {
            cpu    = var.worker_resources.cpu
            memory = var.worker_resources.memory
          }
        }
      }
    }
  }

  # As many workers as there is work for. It is no helper of a worker: it has to be there when there is none.
  dynamic "group" {
    for_each = local.scales ? ["scaler"] : []
    labels   = [group.value]

    content {
      count = var.scalers

      spread {
        attribute = "${node.unique.id}"
      }

      network {
        mode = var.network_mode
      }

      restart {
        attempts = 10
        interval = "1m"
        delay    = "1s"
        mode     = "delay"
      }

      task "scaler" {
        driver       = var.driver
        kill_timeout = "10s"

        # Nomad's socket in the task's secrets, and the token for it.
        identity {
          file = true
        }

        consul {}

        dynamic "config" {
          for_each = local.docker ? [1] : []

          content {
            image        = var.retinue_image
            command      = var.retinue_command
            args         = ["scaler"]
            network_mode = local.bridge ? "" : "host"
          }
        }

        dynamic "config" {
          for_each = local.docker ? [] : [1]

          content {
            command = var.retinue_command
            args    = ["scaler"]
          }
        }

        env = merge({
          CONSUL_HTTP_ADDR          = var.consul_http_addr
          RETINUE_SCALER_QUEUE      = var.job_name
          RETINUE_SCALER_JOB        = var.job_name
          RETINUE_SCALER_GROUP      = "worker"
          RETINUE_SCALER_SLOTS      = "${var.slots}"
          RETINUE_SCALER_PARTITIONS = "${var.partitions}"
          RETINUE_SCALER_MIN        = "${var.min_count}"
          RETINUE_SCALER_MAX        = "${var.max_count}"
          RETINUE_SCALER_TARGET     = var.target_drain
          RETINUE_SCALER_COOLDOWN   = var.scale_cooldown
          RETINUE_SCALER_DRAIN      = "${var.drain_seconds}s"
          RETINUE_SCALER_CLASSES    = lookup(var.coordinator_env, "RETINUE_COORDINATOR_CLASSES", "1")
          RETINUE_SCALER_LEASE      = lookup(var.coordinator_env, "RETINUE_COORDINATOR_LEASE", "10s")
          RETINUE_COORDINATOR_ADDR  = "unix://${NOMAD_ALLOC_DIR}/tmp/scaler.sock" # retinue queue put, while nobody works
        }, local.own_broker ? { RETINUE_SCALER_BROKER = local.own_url } : {}, local.sqs && var.aws_credentials ? { AWS_SHARED_CREDENTIALS_FILE = "${NOMAD_SECRETS_DIR}/aws-credentials" } : {})

        dynamic "template" {
          for_each = local.own_broker ? [1] : []

          content {
            destination = "secrets/broker-password"
            perms       = "600"
            change_mode = "noop"
            data        = local.password
          }
        }

        dynamic "template" {
          for_each = local.own_broker ? [] : [1]

          content {
            destination = "secrets/broker.env"
            perms       = "600"
            env         = true
            data        = "RETINUE_SCALER_BROKER=${var.queue_url}"
          }
        }

        dynamic "template" {
          for_each = local.sqs && var.aws_credentials ? [1] : []

          content {
            destination = "secrets/aws-credentials"
            perms       = "600"
            data        = local.credentials
          }
        }

        action "scale" {
          command = var.retinue_command
          args    = ["queue", "scale", "--why"]
        }

        resources {
          cpu    = var.scaler_resources.cpu
          memory = var.scaler_resources.memory
        }
      }
    }
  }

  # The queue itself: one task or three, which do not come and go with the workers.
  dynamic "group" {
    for_each = local.own_broker ? ["broker"] : []
    labels   = [group.value]

    content {
      count = var.brokers

      # Of three, one at a time, and each on a node of its own: two make up the queue. The next one waits until the check says that
      # this one has its copy.
      dynamic "update" {
        for_each = local.cluster ? [1] : []

        content {
          max_parallel      = 1
          min_healthy_time  = "15s"
          healthy_deadline  = "20m"
          progress_deadline = "30m"
        }
      }

      dynamic "constraint" {
        for_each = local.cluster ? ["true"] : []

        content {
          operator = "distinct_hosts"
          value    = constraint.value
        }
      }

      # The next allocation gets the messages of the one before, from another node too while that one is there.
      ephemeral_disk {
        size    = var.broker_disk
        sticky  = true
        migrate = true
      }

      network {
        mode = var.network_mode

        port "broker" {
          to = local.bridge ? 4222 : 0
        }

        port "health" {
          to = local.bridge ? 8222 : 0
        }

        dynamic "port" {
          for_each = local.cluster ? ["peers"] : []
          labels   = [port.value]

          content {
            to = local.bridge ? 6222 : 0
          }
        }
      }

      restart {
        attempts = 10
        interval = "1m"
        delay    = "1s"
        mode     = "delay"
      }

      dynamic "volume" {
        for_each = var.broker_volume == "" ? [] : [var.broker_volume]
        labels   = ["queue"]

        content {
          type            = var.broker_volume_type
          source          = volume.value
          per_alloc       = local.cluster && var.broker_volume_type == "csi"
          access_mode     = var.broker_volume_type == "csi" ? "single-node-writer" : ""
          attachment_mode = var.broker_volume_type == "csi" ? "file-system" : ""
        }
      }

      service {
        name = "${var.job_name}-broker"
        port = "broker"

        check {
          type     = "http"
          port     = "health"
          path     = "/health"
          interval = "3s"
          timeout  = "2s"
        }
      }

      # Where the brokers meet.
      dynamic "service" {
        for_each = local.cluster ? ["${var.job_name}-brokers"] : []

        content {
          name = service.value
          port = "peers"
        }
      }

      task "broker" {
        driver       = var.driver
        kill_timeout = "20s"

        dynamic "config" {
          for_each = local.docker ? [1] : []

          content {
            image        = var.retinue_image
            command      = "${var.retinue_command}-broker"
            network_mode = local.bridge ? "" : "host"
          }
        }

        dynamic "config" {
          for_each = local.docker ? [] : [1]

          content {
            command = "${var.retinue_command}-broker"
          }
        }

        # It looks up the others.
        dynamic "consul" {
          for_each = local.cluster ? [1] : []

          content {}
        }

        template {
          destination = "secrets/broker-password"
          perms       = "600"
          data        = local.password
        }

        # Who starts asks here who is there; who is there is told by who starts.
        dynamic "template" {
          for_each = local.cluster ? [1] : []

          content {
            destination = "local/brokers"
            change_mode = "noop"
            data        = "{{ range service `${var.job_name}-brokers|any` }}{{ .Address }}:{{ .Port }}\n{{ end }}"
          }
        }

        env = merge({
          # In host mode every address of the machine is shared: listen on the one that Nomad publishes.
          RETINUE_BROKER_LISTEN        = local.bridge ? "0.0.0.0:4222" : "${NOMAD_ADDR_broker}"
          RETINUE_BROKER_HEALTH        = local.bridge ? "0.0.0.0:8222" : "${NOMAD_ADDR_health}"
          RETINUE_BROKER_DATA          = var.broker_volume == "" ? "${NOMAD_ALLOC_DIR}/data/${local.cluster ? "brokers" : "broker"}" : "/queue/${var.job_name}${local.cluster ? "/${NOMAD_ALLOC_INDEX}" : ""}"
          RETINUE_BROKER_PASSWORD_FILE = "${NOMAD_SECRETS_DIR}/broker-password"
          RETINUE_BROKER_DURABILITY    = var.broker_durability
          }, local.cluster ? {
          RETINUE_BROKER_NAME              = "${var.job_name}-${NOMAD_ALLOC_INDEX}"
          RETINUE_BROKER_CLUSTER           = local.bridge ? "0.0.0.0:6222" : "${NOMAD_ADDR_peers}"
          RETINUE_BROKER_CLUSTER_ADVERTISE = "${NOMAD_HOST_ADDR_peers}"
          RETINUE_BROKER_ROUTES_FILE       = "${NOMAD_TASK_DIR}/brokers"
        } : {})

        dynamic "volume_mount" {
          for_each = var.broker_volume == "" ? [] : ["queue"]

          content {
            volume      = volume_mount.value
            destination = "/queue"
          }
        }

        resources {
          cpu    = var.broker_resources.cpu
          memory = var.broker_resources.memory
        }
      }
    }
  }
}

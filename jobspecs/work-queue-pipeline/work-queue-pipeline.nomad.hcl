# Work queue pipeline: stages of workers, each with a queue of its own. What one
# stage commits is the next one's item, exactly once.
#
#   nomad var put nomad/jobs/work-queue-pipeline password=$(openssl rand -hex 16)
#   nomad job run work-queue-pipeline.nomad.hcl
#   nomad job run -var-file=my.vars.hcl work-queue-pipeline.nomad.hcl
#
# Each stage starts a command for each item: unmodified command-line tools, as in
# a pipe of a shell, but over many machines and with nothing lost in between.

variable "job_name" {
  description = "ID of the job. The queue of a stage is this, a dash and its name. The broker is the Consul service of this name and -broker, its secrets are the Nomad variable nomad/jobs/<job_name>."
  type        = string
  default     = "work-queue-pipeline"

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
    condition     = length([for stage in var.stages : stage.name if regex_replace(stage.name, "^[a-z0-9][a-z0-9-]{0,15}$", "") != ""]) == 0
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
}

variable "max_count" {
  description = "Workers at most, by the names of the stages that are to scale themselves by what there is to do, such as { ocr = 50, pack = 4 }. A stage that is not named does not."
  type        = map(number)
  default     = {}

  validation {
    condition     = length([for stage, count in var.max_count : stage if count < 0 || floor(count) != count]) == 0
    error_message = "The max_count must have whole numbers, 0 or more, by the names of stages."
  }
}

variable "min_count" {
  description = "Workers at least, by the names of stages that scale themselves. A stage that is not named may have none."
  type        = map(number)
  default     = {}

  validation {
    condition     = length([for stage, count in var.min_count : stage if count < 0 || floor(count) != count]) == 0
    error_message = "The min_count must have whole numbers, 0 or more, by the names of stages."
  }
}

variable "partitions" {
  description = "Partitions of the queues of stages, by the names of the stages that are to keep the order of a message's key over all of their workers, such as { ocr = 16 }. Each is taken by one coordinator at a time. A few times as many as the stage has workers, 64 at most. Change it when the queue is empty. A stage that is not named has none."
  type        = map(number)
  default     = {}

  validation {
    condition     = length([for stage, count in var.partitions : stage if count < 0 || count > 64 || floor(count) != count]) == 0
    error_message = "The partitions must have whole numbers from 0 to 64, by the names of stages."
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
  description = "Number of scalers, when stages scale themselves. One of them leads."
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
  description = "Queue after the last stage, on the same broker. Empty: none, the output stays in the item's record."
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
  description = "Names of stages that make a group of the messages of one item: a stage that gathers makes one item of it again."
  type        = list(string)
  default     = []
}

variable "gather" {
  description = "Names of stages whose next one gets one item for a whole group, when all its parts are committed, and none for a part."
  type        = list(string)
  default     = []
}

variable "commit" {
  description = "Where an item's end is decided when there is no shared folder: journal (in Consul), or publish (to the next stage alone; needs to)."
  type        = string
  default     = "journal"

  validation {
    condition     = contains(["journal", "publish"], var.commit)
    error_message = "The commit must be journal or publish."
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
  description = "Where the files of all outputs are uploaded, such as s3://pictures/out. Empty: outputs stay in records and messages, or in the shared folder."
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

variable "coordinator_env" {
  description = "Further settings of the coordinators by their environment, such as { RETINUE_COORDINATOR_RATE = \"10/s\" }."
  type        = map(string)
  default     = {}
}

variable "coordinator_config" {
  description = "What has no variable and no flag, such as schedules, by the names of stages: the inside of the work_queue block of the coordinators' configuration file. What variables say counts more. Nomad renders it as a template."
  type        = map(string)
  default     = {}
}

variable "coordinator_resources" {
  description = "CPU shares in MHz and memory in MB of a coordinator."
  type        = object({ cpu = number, memory = number })
  default     = { cpu = 100, memory = 128 }
}

variable "worker_env" {
  description = "Environment of all workers."
  type        = map(string)
  default     = {}
}

variable "worker_artifacts" {
  description = "Addresses of files or archives that Nomad puts into each worker's local/ folder, such as programs."
  type        = list(string)
  default     = []
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

  # The job's own broker is found through Consul at each connection, so that it may move.
  own_broker = var.queue_url == ""
  cluster    = var.brokers == 3
  own_url    = "nats://retinue@${var.job_name}-broker.service.consul?password_file=${NOMAD_SECRETS_DIR}/broker-password${local.cluster ? "&replicas=3" : ""}"
  password   = "{{ with nomadVar \"nomad/jobs/${var.job_name}\" }}{{ .password }}{{ end }}"

  # The key of S3 and SQS, as AWS's own programs have it: a file, and nothing of it in the job.
  credentials = "{{ with nomadVar \"nomad/jobs/${var.job_name}\" }}[default]\naws_access_key_id = {{ .aws_access_key_id }}\naws_secret_access_key = {{ .aws_secret_access_key }}\n{{ with .aws_session_token }}aws_session_token = {{ . }}\n{{ end }}{{ end }}"
  sqs         = split(":", var.queue_url)[0] == "sqs"

  # A validation sees its own variable alone. What has to fit another one fails here, by a sentence that is no number, in a
  # local that no other local needs: then Nomad shows this error.
  names   = [for stage in var.stages : stage.name]
  unknown = [for name in concat(keys(var.max_count), keys(var.min_count), keys(var.partitions), keys(var.coordinator_config), var.split, var.gather) : name if !contains(local.names, name)]
  wrong   = [for name in local.names : name if lookup(var.min_count, name, 0) > lookup(var.max_count, name, 0)]
  # All that speak to a queue must count the same partitions.
  ordered = contains(["sqs", "kafka", "kafkas"], split(":", var.queue_url)[0])
  parted  = [for name in local.names : name if lookup(var.partitions, name, 0) > 0]
  elsewhere = concat(
    [for name in keys(var.coordinator_env) : name if contains(["RETINUE_COORDINATOR_PARTITIONS", "RETINUE_COORDINATOR_TO_PARTITIONS"], name)],
    [for name, text in var.coordinator_config : "coordinator_config of ${name}" if regex_replace(text, "(^|[[:space:]{])(to_)?partitions[[:space:]]*=", "") != text],
  )
  ends = [for name in var.gather : name if name == local.names[length(local.names) - 1] && var.to == ""]
  count = (
    length(local.unknown) > 0 ? parseint("there is no stage ${join(", ", local.unknown)}", 10) :
    length(local.wrong) > 0 ? parseint("the min_count must not be above the max_count of stage ${join(", ", local.wrong)}", 10) :
    length(local.ends) > 0 ? parseint("the last stage gathers into nothing: name a queue with to", 10) :
    (length(local.parted) > 0 || var.to_partitions > 0) && local.ordered ? parseint("SQS and Kafka have no partitions: a FIFO queue of SQS, and Kafka with groups=classic, order a key themselves", 10) :
    var.to_partitions > 0 && var.to == "" ? parseint("to_partitions are those of a queue after the last stage: name it with to", 10) :
    length(local.elsewhere) > 0 ? parseint("partitions are said by the variables partitions and to_partitions, which the stage before and the scaler see too: not in ${join(", ", local.elsewhere)}", 10) :
    length(var.stages)
  )

  # Of each stage's queue, and of the queue after the last one.
  partitions = concat([for name in local.names : lookup(var.partitions, name, 0)], [var.to_partitions])

  # Stages with a max_count: one scaler has them all.
  scaled = [for stage in var.stages : stage if lookup(var.max_count, stage.name, 0) > 0]
  scales = length(local.scaled) > 0
  counts = [for stage in var.stages : lookup(var.max_count, stage.name, 0) == 0 ? stage.count : max(lookup(var.min_count, stage.name, 0), min(stage.count, var.max_count[stage.name]))]

  done   = var.done != "" ? var.done : var.volume != "" ? "/shared/done" : ""
  commit = local.done != "" ? "rename" : var.commit

  # A worker's container runs `retinue worker`, which the coordinator puts into the folder they share.
  install = "${NOMAD_ALLOC_DIR}/bin/retinue"
  queues  = concat([for stage in var.stages : "${var.job_name}-${stage.name}"], [var.to])
  shims   = [for stage in var.stages : local.docker && stage.image != "" ? local.install : var.retinue_command]
  commands = [for i, stage in var.stages : concat(
    ["worker", "--"],
    stage.command == "" ? [local.shims[i], "demo-app", "work-queue"] : [stage.command],
    stage.args,
  )]
}

job "work-queue-pipeline" {
  id          = var.job_name
  name        = var.job_name
  namespace   = var.namespace
  datacenters = var.datacenters

  ui {
    description = "Work queue pipeline `${var.job_name}`: ${join(", ", [for stage in var.stages : stage.name])}. The job's actions show each stage, its items and its dead letters."

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

  # A group for each stage, so that each can be scaled.
  dynamic "group" {
    for_each = range(local.count)
    iterator = stage
    labels   = [var.stages[stage.value].name]

    content {
      count = local.counts[stage.value]

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

        lifecycle {
          hook    = "prestart"
          sidecar = true
        }

        consul {}

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
          CONSUL_HTTP_ADDR                  = var.consul_http_addr
          RETINUE_COORDINATOR_QUEUE         = local.queues[stage.value]
          RETINUE_COORDINATOR_NODE          = "${node.unique.name}"
          RETINUE_COORDINATOR_MODE          = "watch"
          RETINUE_COORDINATOR_INSTALL       = local.shims[stage.value] == local.install ? local.install : ""
          RETINUE_COORDINATOR_SLOTS         = "${var.stages[stage.value].slots}"
          RETINUE_COORDINATOR_ATTEMPTS      = "${var.attempts}"
          RETINUE_COORDINATOR_MAX_RUNTIME   = var.max_runtime
          RETINUE_COORDINATOR_DRAIN_TIMEOUT = "${var.drain_seconds}s"
          RETINUE_COORDINATOR_TO            = contains(var.gather, local.names[stage.value]) ? "" : local.queues[stage.value + 1]
          RETINUE_COORDINATOR_GATHER        = contains(var.gather, local.names[stage.value]) ? local.queues[stage.value + 1] : ""
          RETINUE_COORDINATOR_ORDER         = local.partitions[stage.value] > 0 ? "message" : ""
          RETINUE_COORDINATOR_PARTITIONS    = "${local.partitions[stage.value]}"
          RETINUE_COORDINATOR_TO_PARTITIONS = contains(var.gather, local.names[stage.value]) ? "0" : "${local.partitions[stage.value + 1]}" # what is gathered has no key
          RETINUE_COORDINATOR_SPLIT         = contains(var.split, local.names[stage.value]) ? "true" : ""
          RETINUE_COORDINATOR_KEEP          = var.keep
          RETINUE_COORDINATOR_ALLOW         = join(",", distinct(concat(var.allow, compact([var.artifacts]))))
          RETINUE_COORDINATOR_ARTIFACTS     = var.artifacts
          RETINUE_COORDINATOR_CONFIG        = lookup(var.coordinator_config, local.names[stage.value], "") == "" ? "" : "${NOMAD_SECRETS_DIR}/queue.hcl"
          RETINUE_COORDINATOR_COMMIT        = local.commit
          RETINUE_COORDINATOR_DONE          = local.done
          RETINUE_COORDINATOR_JOURNAL       = local.commit == "journal" ? "consul:${var.job_name}" : ""
          RETINUE_COORDINATOR_LOAD          = lookup(var.max_count, local.names[stage.value], 0) > 0 || local.partitions[stage.value] > 0 ? "consul:${var.job_name}" : ""
        }, local.own_broker ? { RETINUE_COORDINATOR_BROKER = local.own_url } : {}, var.aws_credentials ? { AWS_SHARED_CREDENTIALS_FILE = "${NOMAD_SECRETS_DIR}/aws-credentials" } : {}, var.coordinator_env)

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
          for_each = lookup(var.coordinator_config, local.names[stage.value], "") == "" ? [] : [1]

          content {
            destination = "secrets/queue.hcl"
            perms       = "600"
            data        = "work_queue \"${local.queues[stage.value]}\" {\n${var.coordinator_config[local.names[stage.value]]}\n}\n"
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

      task "worker" {
        driver       = var.driver
        kill_timeout = "10s"

        dynamic "artifact" {
          for_each = var.worker_artifacts

          content {
            source = artifact.value
          }
        }

        dynamic "config" {
          for_each = local.docker ? [1] : []

          content {
            image        = var.stages[stage.value].image == "" ? var.retinue_image : var.stages[stage.value].image
            entrypoint   = [local.shims[stage.value]]
            args         = local.commands[stage.value]
            network_mode = local.bridge ? "" : "host"
          }
        }

        dynamic "config" {
          for_each = local.docker ? [] : [1]

          content {
            command = local.shims[stage.value]
            args    = local.commands[stage.value]
          }
        }

        env = merge(var.worker_env, {
          RETINUE_WORKER_SLOTS = "${var.stages[stage.value].slots}"
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

  # As many workers of each stage as there is work for. It is no helper of a worker: it has to be there when there is none.
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
          RETINUE_SCALER_QUEUE      = join(",", [for stage in local.scaled : "${var.job_name}-${stage.name}"])
          RETINUE_SCALER_JOB        = var.job_name
          RETINUE_SCALER_GROUP      = join(",", [for stage in local.scaled : stage.name])
          RETINUE_SCALER_SLOTS      = join(",", [for stage in local.scaled : stage.slots])
          RETINUE_SCALER_PARTITIONS = join(",", [for stage in local.scaled : lookup(var.partitions, stage.name, 0)])
          RETINUE_SCALER_MIN        = join(",", [for stage in local.scaled : lookup(var.min_count, stage.name, 0)])
          RETINUE_SCALER_MAX        = join(",", [for stage in local.scaled : var.max_count[stage.name]])
          RETINUE_SCALER_TARGET     = var.target_drain
          RETINUE_SCALER_COOLDOWN   = var.scale_cooldown
          RETINUE_SCALER_DRAIN      = "${var.drain_seconds}s"
          RETINUE_SCALER_CLASSES    = lookup(var.coordinator_env, "RETINUE_COORDINATOR_CLASSES", "1")
          RETINUE_SCALER_LEASE      = lookup(var.coordinator_env, "RETINUE_COORDINATOR_LEASE", "10s")
          RETINUE_COORDINATOR_ADDR  = lookup(var.max_count, local.names[0], 0) > 0 ? "unix://${NOMAD_ALLOC_DIR}/tmp/scaler.sock" : "" # retinue queue put, while nobody works in the first stage
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

locals {
  # Nomad reads list, map and object values as HCL expressions. JSON is one, but
  # ${...} in its strings is for Nomad to fill in at run time, not to evaluate now.
  expressions = {
    for name, value in {
      datacenters           = jsonencode(var.datacenters)
      count                 = jsonencode(var.replicas)
      max_count             = jsonencode(var.max_count)
      min_count             = jsonencode(var.min_count)
      scalers               = jsonencode(var.scalers)
      scaler_resources      = jsonencode(var.scaler_resources)
      slots                 = jsonencode(var.slots)
      divert_slots          = jsonencode(var.divert_slots)
      attempts              = jsonencode(var.attempts)
      drain_seconds         = jsonencode(var.drain_seconds)
      partitions            = jsonencode(var.partitions)
      to_partitions         = jsonencode(var.to_partitions)
      split                 = jsonencode(var.split)
      allow                 = jsonencode(var.allow)
      aws_credentials       = jsonencode(var.aws_credentials)
      coordinator_env       = jsonencode(var.coordinator_env)
      coordinator_resources = jsonencode(var.coordinator_resources)
      worker_args           = jsonencode(var.worker_args)
      worker_env            = jsonencode(var.worker_env)
      worker_artifacts      = jsonencode(var.worker_artifacts)
      worker_port           = jsonencode(var.worker_port)
      worker_resources      = jsonencode(var.worker_resources)
      brokers               = jsonencode(var.brokers)
      broker_disk           = jsonencode(var.broker_disk)
      broker_resources      = jsonencode(var.broker_resources)
    } : name => replace(replace(value, "$${", "$$${"), "%%{", "%%%{")
  }

  # Values of string variables are taken as they are.
  strings = {
    job_name           = var.job_name
    namespace          = var.namespace
    driver             = var.driver
    network_mode       = var.network_mode
    consul_http_addr   = var.consul_http_addr
    consul_ui          = var.consul_ui
    retinue_image      = var.retinue_image
    retinue_command    = var.retinue_command
    queue_url          = var.queue_url
    target_drain       = var.target_drain
    scale_cooldown     = var.scale_cooldown
    mode               = var.mode
    dispatch_job       = var.dispatch_job
    work               = var.work
    max_runtime        = var.max_runtime
    divert_over        = var.divert_over
    divert_max_runtime = var.divert_max_runtime
    to                 = var.to
    gather             = var.gather
    artifacts          = var.artifacts
    keep               = var.keep
    order              = var.order
    rate               = var.rate
    rate_per_key       = var.rate_per_key
    coordinator_config = var.coordinator_config
    commit             = var.commit
    volume             = var.volume
    volume_type        = var.volume_type
    done               = var.done
    worker_image       = var.worker_image
    worker_command     = var.worker_command
    broker_volume      = var.broker_volume
    broker_volume_type = var.broker_volume_type
    broker_durability  = var.broker_durability
  }
}

resource "nomad_job" "this" {
  jobspec          = file("${path.module}/work-queue.nomad.hcl")
  detach           = !var.wait
  purge_on_destroy = var.purge_on_destroy

  hcl2 {
    vars = merge(local.expressions, local.strings)
  }

  lifecycle {
    precondition {
      condition     = var.min_count <= var.max_count
      error_message = "The min_count must not be above the max_count."
    }

    precondition {
      condition     = var.partitions == 0 || var.order == "message"
      error_message = "Partitions need order = message: a producer puts an item into its partition by the key of the message."
    }

    precondition {
      condition     = (var.partitions == 0 && var.to_partitions == 0) || !contains(["sqs", "kafka", "kafkas"], split(":", var.queue_url)[0])
      error_message = "SQS and Kafka have no partitions: a FIFO queue of SQS, and Kafka with groups=classic, order a key themselves."
    }

    precondition {
      condition     = var.to_partitions == 0 || var.to != ""
      error_message = "The to_partitions are those of a next stage: name it with to."
    }

    precondition {
      condition     = var.divert_slots == 0 || var.mode != "dispatch"
      error_message = "The divert_slots are for items of workers, and in mode dispatch there are none."
    }

    precondition {
      condition     = var.divert_slots == 0 || var.volume != "" || (var.work != "" && var.done != "")
      error_message = "The divert_slots need a folder that all nodes share, for what comes out: volume, or work and done."
    }

    precondition {
      condition     = var.divert_slots == 0 || var.order == "" || contains(keys(var.coordinator_env), "RETINUE_COORDINATOR_ON_FAIL")
      error_message = "The divert_slots with order: an item that is diverted is overtaken by those of its key. Say coordinator_env = { RETINUE_COORDINATOR_ON_FAIL = \"skip\" } if it may be."
    }

    precondition {
      condition     = var.divert_over == "" || var.divert_slots > 0
      error_message = "The divert_over needs divert_slots, for how many containers there may be at once."
    }
  }
}

locals {
  # Nomad reads list, map and object values as HCL expressions. JSON is one, but
  # ${...} in its strings is for Nomad to fill in at run time, not to evaluate now.
  expressions = {
    for name, value in {
      datacenters           = jsonencode(var.datacenters)
      stages                = jsonencode(var.stages)
      max_count             = jsonencode(var.max_count)
      min_count             = jsonencode(var.min_count)
      scalers               = jsonencode(var.scalers)
      scaler_resources      = jsonencode(var.scaler_resources)
      attempts              = jsonencode(var.attempts)
      drain_seconds         = jsonencode(var.drain_seconds)
      partitions            = jsonencode(var.partitions)
      to_partitions         = jsonencode(var.to_partitions)
      split                 = jsonencode(var.split)
      gather                = jsonencode(var.gather)
      allow                 = jsonencode(var.allow)
      aws_credentials       = jsonencode(var.aws_credentials)
      coordinator_config    = jsonencode(var.coordinator_config)
      coordinator_env       = jsonencode(var.coordinator_env)
      coordinator_resources = jsonencode(var.coordinator_resources)
      worker_env            = jsonencode(var.worker_env)
      worker_artifacts      = jsonencode(var.worker_artifacts)
      worker_resources      = jsonencode(var.worker_resources)
      brokers               = jsonencode(var.brokers)
      broker_disk           = jsonencode(var.broker_disk)
      broker_resources      = jsonencode(var.broker_resources)
    } : name => replace(replace(value, "$${", "$$${"), "%%{", "%%%{")
  }

  # Names that belong to no stage.
  strangers = setsubtract(
    concat(keys(var.max_count), keys(var.min_count), keys(var.partitions), keys(var.coordinator_config), var.split, var.gather),
    [for stage in var.stages : stage.name],
  )

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
    max_runtime        = var.max_runtime
    target_drain       = var.target_drain
    scale_cooldown     = var.scale_cooldown
    to                 = var.to
    artifacts          = var.artifacts
    keep               = var.keep
    commit             = var.commit
    volume             = var.volume
    volume_type        = var.volume_type
    done               = var.done
    broker_volume      = var.broker_volume
    broker_volume_type = var.broker_volume_type
    broker_durability  = var.broker_durability
  }
}

resource "nomad_job" "this" {
  jobspec          = file("${path.module}/work-queue-pipeline.nomad.hcl")
  detach           = !var.wait
  purge_on_destroy = var.purge_on_destroy

  hcl2 {
    vars = merge(local.expressions, local.strings)
  }

  lifecycle {
    precondition {
      condition     = length(local.strangers) == 0
      error_message = "There is no stage ${join(", ", local.strangers)}: max_count, min_count, partitions, coordinator_config, split and gather go by the names of stages."
    }

    precondition {
      condition     = alltrue([for name, count in var.min_count : count <= lookup(var.max_count, name, 0)])
      error_message = "The min_count of a stage must not be above its max_count."
    }

    precondition {
      condition     = var.to != "" || !contains(var.gather, var.stages[length(var.stages) - 1].name)
      error_message = "The last stage gathers into nothing: name a queue with to."
    }

    precondition {
      condition     = alltrue([for count in concat(values(var.partitions), [var.to_partitions]) : count == 0]) || !contains(["sqs", "kafka", "kafkas"], split(":", var.queue_url)[0])
      error_message = "SQS and Kafka have no partitions: a FIFO queue of SQS, and Kafka with groups=classic, order a key themselves."
    }

    precondition {
      condition     = var.to_partitions == 0 || var.to != ""
      error_message = "The to_partitions are those of a queue after the last stage: name it with to."
    }
  }
}

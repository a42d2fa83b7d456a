terraform {
  required_version = ">= 1.3"

  required_providers {
    nomad = {
      source  = "hashicorp/nomad"
      version = ">= 2.1"
    }
    consul = {
      source  = "hashicorp/consul"
      version = ">= 2.18"
    }
  }
}

# Both take their address and token from the environment: NOMAD_ADDR,
# NOMAD_TOKEN, CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN.
provider "nomad" {}

provider "consul" {}

module "acl" {
  source = "../../modules/consul-acl"
  count  = var.acl ? 1 : 0

  pattern     = "gather"
  job_name    = var.job_name
  auth_method = var.auth_method
}

module "search" {
  source     = "../../modules/scatter-gather"
  depends_on = [module.acl]

  job_name         = var.job_name
  shards           = var.shards
  replicas         = var.replicas
  driver           = var.driver
  network_mode     = var.network_mode
  retinue_image    = var.retinue_image
  retinue_command  = var.retinue_command
  consul_http_addr = var.consul_http_addr
}

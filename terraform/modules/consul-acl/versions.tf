terraform {
  required_version = ">= 1.3"

  required_providers {
    consul = {
      source  = "hashicorp/consul"
      version = ">= 2.18"
    }
  }
}

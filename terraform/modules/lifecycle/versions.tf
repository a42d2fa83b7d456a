terraform {
  required_version = ">= 1.3"

  required_providers {
    nomad = {
      source  = "hashicorp/nomad"
      version = ">= 2.1"
    }
  }
}

# The user's own job: two tasks, comments, a variable and a dynamic block.

variable "image" {
  type    = string
  default = "registry.example.com/shop:1.4"
}

job "shop" {
  datacenters = ["*"]

  group "web" {
    count = 3

    network {
      mode = "bridge"

      port "http" {
        to = 8080
      }
    }

    task "migrate" {
      driver = "docker"

      lifecycle {
        hook = "prestart" # before anything else
      }

      config {
        image = var.image
        args  = ["migrate"]
      }
    }

    task "app" {
      driver = "docker"

      config {
        image = var.image
        ports = ["http"]
      }

      dynamic "template" {
        for_each = ["a", "b"]

        content {
          destination = "local/${template.value}"
          data        = "{{ env \"NOMAD_ALLOC_ID\" }}"
        }
      }

      env = merge({ A = "1" }, { B = "2" })
    }
  }
}

locals {
  mode = "host"
}

job "hostports" {
  group "app" {
    network {
      mode = local.mode
      port "admin" {}
      port "http" {}
    }

    service {
      port = "http"
    }

    task "log-shipper" {
      driver = "exec"
      lifecycle {
        hook    = "poststart"
        sidecar = true
      }
    }

    # Already the leader of its group.
    task "app" {
      driver = "exec"
      leader = true
    }
  }
}

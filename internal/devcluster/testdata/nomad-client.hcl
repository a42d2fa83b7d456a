name                 = "client-2"
data_dir             = "/srv/dev/agents/nomad-client-2"
bind_addr            = "127.66.2.2"
disable_update_check = true

# A stopped agent of a dev cluster looks like a crashed one, so that a restart
# finds it still a member; "retinue dev down" stops the jobs first.
leave_on_interrupt = false
leave_on_terminate = false

addresses {
  http = "127.66.2.2"
}

advertise {
  http = "127.66.2.2:4666"
  rpc  = "127.66.2.2:4667"
  serf = "127.66.2.2:4668"
}

ports {
  http = 4666
  rpc  = 4667
  serf = 4668
}

telemetry {
  prometheus_metrics         = true
  disable_hostname           = true
  publish_allocation_metrics = true
  publish_node_metrics       = true
}

limits {
  http_max_conns_per_client = 2000
}

ui {
  enabled = true
  consul {
    ui_url = "http://127.0.0.1:8520/ui"
  }
}

acl {
  enabled = true
}

consul {
  address = "127.66.2.2:8520"
  token   = "for-nomad-clients"

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }

  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}

client {
  enabled   = true
  servers   = ["127.66.1.1:4667", "127.66.1.2:4667", "127.66.1.3:4667"]
  alloc_dir = "/srv/dev/c2"

  # All clients share one host: each has its own interface and ports.
  network_interface = "retinue2-2"
  min_dynamic_port  = 22100
  max_dynamic_port  = 22199

  # The disk is the host's; its fullness must not collect allocations early.
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99

  bridge_network_name         = "retinue2-2"
  bridge_network_subnet       = "10.202.2.0/24"
  bridge_network_hairpin_mode = true
  cni_path                    = "/usr/lib/cni"

  meta {
    # How a task reaches the Consul agent of its own node.
    retinue_consul  = "10.202.2.1:8520"
    retinue_gateway = "10.202.2.1"
  }

  options = {
    # Asking for cloud metadata costs seconds where there is none, and env_aws
    # fails outright on some AWS_* variables.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }

  # The default hard-links some 150,000 files for an allocation.
  chroot_env = {
    "/srv/dev/bin/retinue" = "/usr/local/bin/retinue"
    "/usr/bin/dash" = "/bin/sh"
  }
}

plugin "raw_exec" {
  config {
    enabled = true
  }
}

plugin "docker" {
  config {
    endpoint         = "unix:///var/run/docker.sock"
    allow_privileged = false
    infra_image      = "retinue-pause:VERSION"
    extra_labels     = ["job_name", "task_group_name", "task_name", "node_name"]

    volumes {
      enabled = true
    }

    # Images are local builds that nobody could pull again, and the reaper of one
    # client would remove the containers of another one on the same engine.
    gc {
      image = false
      dangling_containers {
        enabled = false
      }
    }
  }
}

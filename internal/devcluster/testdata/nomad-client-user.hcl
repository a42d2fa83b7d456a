name                 = "client-1"
data_dir             = "/home/u/dev/agents/nomad-client-1"
bind_addr            = "127.64.2.1"
disable_update_check = true

# A stopped agent of a dev cluster looks like a crashed one, so that a restart
# finds it still a member; "retinue dev down" stops the jobs first.
leave_on_interrupt = false
leave_on_terminate = false

addresses {
  http = "127.64.2.1"
}

advertise {
  http = "127.64.2.1:4646"
  rpc  = "127.64.2.1:4647"
  serf = "127.64.2.1:4648"
}

ports {
  http = 4646
  rpc  = 4647
  serf = 4648
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
    ui_url = "http://127.0.0.1:8500/ui"
  }
}

consul {
  address = "127.64.2.1:8500"
}

client {
  enabled   = true
  servers   = ["127.64.1.1:4647"]
  alloc_dir = "/home/u/dev/c1"

  # All clients share one host: each has its own interface and ports.
  network_interface = "lo"
  min_dynamic_port  = 20000
  max_dynamic_port  = 20099

  # The disk is the host's; its fullness must not collect allocations early.
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99


  meta {
    # How a task reaches the Consul agent of its own node.
    retinue_consul  = "127.64.2.1:8500"
    retinue_gateway = "127.64.2.1"
  }

  options = {
    # Asking for cloud metadata costs seconds where there is none, and env_aws
    # fails outright on some AWS_* variables.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.denylist"      = "docker"
  }

}

plugin "raw_exec" {
  config {
    enabled = true
  }
}

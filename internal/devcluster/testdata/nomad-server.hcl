name                 = "server-1"
data_dir             = "/srv/dev/agents/nomad-server-1"
bind_addr            = "127.66.1.1"
disable_update_check = true

# A stopped agent of a dev cluster looks like a crashed one, so that a restart
# finds it still a member; "retinue dev down" stops the jobs first.
leave_on_interrupt = false
leave_on_terminate = false

addresses {
  http = "127.66.1.1 127.0.0.1"
}

advertise {
  http = "127.66.1.1:4666"
  rpc  = "127.66.1.1:4667"
  serf = "127.66.1.1:4668"
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
  address = "127.66.1.1:8520"
  token   = "for-nomad-servers"

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }

  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}

server {
  enabled          = true
  bootstrap_expect = 3
  raft_multiplier  = 1

  server_join {
    retry_join     = ["127.66.1.1:4668", "127.66.1.2:4668", "127.66.1.3:4668"]
    retry_interval = "1s"
  }
}

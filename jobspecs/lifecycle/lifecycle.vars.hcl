# Variables of lifecycle.nomad.hcl for a database of your own:
#
#   nomad job run -var-file=lifecycle.vars.hcl lifecycle.nomad.hcl

job_name = "scylla"
driver   = "docker"
image    = "scylladb/scylla:6.2"
app_port = 9042

# It has no socket for hooks: commands do what is needed.
ready            = ""
post_start       = ["sh", "-c", "until nodetool status; do sleep 1; done"]
start_timeout    = "2m"
resume           = ""
pre_drain        = ""
drain            = ""
save_state       = ""
pre_stop         = ["nodetool", "drain"]
pre_stop_timeout = "2m"
kill_timeout     = "20s"
check_path       = "/"

disk      = 20000
resources = { cpu = 2000, memory = 4096 }

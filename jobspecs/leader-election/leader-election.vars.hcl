# Variables of leader-election.nomad.hcl for an application of your own:
#
#   nomad job run -var-file=leader-election.vars.hcl leader-election.nomad.hcl

job_name  = "orders"
count     = 3
driver    = "docker"
app_image = "orders:1.4.0"
elections = ["shard-0", "shard-1", "shard-2"]
lease     = "10s"

# In bridge mode a task reaches the Consul agent of its node by the node's address.
consul_http_addr = "http://$${attr.unique.network.ip-address}:8500"

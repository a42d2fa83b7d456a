# Variables of scatter-gather.nomad.hcl for a leaf and a merge of your own:
#
#   nomad job run -var-file=scatter-gather.vars.hcl scatter-gather.nomad.hcl

job_name = "search"
roots    = 2
shards   = 16
replicas = 2
partial  = "coverage(0.95)"
driver   = "docker"

leaf_image  = "search-leaf:3.1.0"
leaf_args   = ["--shard", "$${RETINUE_SHARD}", "--shards", "$${RETINUE_SHARDS}", "--listen", "$${RETINUE_LISTEN}"]
leaf_health = "/health"

merge_image = "search-merge:1.2.0"
merge_port  = 9000

# In bridge mode a task reaches the Consul agent of its node by the node's address.
consul_http_addr = "http://$${attr.unique.network.ip-address}:8500"

# Variables of scatter-gather-tree.nomad.hcl for a hundred leaves below ten branches:
#
#   nomad job run -var-file=scatter-gather-tree.vars.hcl scatter-gather-tree.nomad.hcl

job_name = "search"
branches = 10
leaves   = 10
replicas = 2
deadline = "800ms"
driver   = "docker"

leaf_image  = "search-leaf:3.1.0"
leaf_args   = ["--shard", "$${RETINUE_SHARD}", "--shards", "$${RETINUE_SHARDS}", "--listen", "$${RETINUE_LISTEN}"]
merge_image = "search-merge:1.2.0"

# In bridge mode a task reaches the Consul agent of its node by the node's address.
consul_http_addr = "http://$${attr.unique.network.ip-address}:8500"

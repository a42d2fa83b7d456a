# Variables of work-queue-pipeline.nomad.hcl for stages of your own:
#
#   nomad var put nomad/jobs/scans password=$(openssl rand -hex 16)
#   nomad job run -var-file=work-queue-pipeline.vars.hcl work-queue-pipeline.nomad.hcl

job_name = "scans"
driver   = "docker"

# Each command gets an item on stdin; what it writes to stdout is the next one's item.
stages = [
  { name = "ocr", count = 8, slots = 1, image = "tesseract:5", command = "tesseract", args = ["stdin", "stdout"] },
  { name = "clean", count = 1, slots = 4, image = "debian:12-slim", command = "tr", args = ["-s", "[:space:]"] },
  { name = "pack", count = 1, slots = 4, image = "debian:12-slim", command = "gzip", args = ["-9"] },
]

# As many workers of this stage as there is work for, down to none.
max_count = { ocr = 20 }

# A folder that all nodes share: outputs of any size.
volume      = "shared"
volume_type = "csi"

# In bridge mode a task reaches the Consul agent of its node by the node's address.
consul_http_addr = "http://$${attr.unique.network.ip-address}:8500"

# Variables of work-queue.nomad.hcl for a worker of your own:
#
#   nomad var put nomad/jobs/thumbs password=$(openssl rand -hex 16)
#   nomad job run -var-file=work-queue.vars.hcl work-queue.nomad.hcl

job_name = "thumbs"
count    = 4
driver   = "docker"
slots    = 2

# Started for each item: the item is on stdin, what comes out on stdout is the output.
mode           = "exec"
worker_image   = "imagemagick:7.1"
worker_command = "magick"
worker_args    = ["-", "-thumbnail", "256x256", "png:-"]

# A folder that all nodes share: outputs of any size.
volume      = "shared"
volume_type = "csi"

# In bridge mode a task reaches the Consul agent of its node by the node's address.
consul_http_addr = "http://$${attr.unique.network.ip-address}:8500"

# As many workers as there is work for, down to none:
# max_count = 20

# Inputs and outputs in S3, with the key in the Nomad variable nomad/jobs/thumbs:
# allow           = ["s3://pictures/in"]
# artifacts       = "s3://pictures/out" # instead of the volume
# aws_credentials = true

# Records and outputs are kept for so long:
# keep = "30d"

# Instead of the job's own broker, with its password from the Nomad variable:
# queue_url = "amqp://thumbs:{{ with nomadVar \"nomad/jobs/thumbs\" }}{{ .password }}{{ end }}@rabbit.example.com/"

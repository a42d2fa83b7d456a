# Variables of work-queue-dispatch.nomad.hcl for a worker of your own:
#
#   nomad job run -var-file=work-queue-dispatch.vars.hcl work-queue-dispatch.nomad.hcl

job_name = "transcode-one"
driver   = "docker"

# Started for each item: the item is on stdin, what comes out on stdout is the output.
worker_image     = "ffmpeg:7"
worker_command   = "ffmpeg"
worker_args      = ["-i", "pipe:0", "-f", "webm", "pipe:1"]
worker_resources = { cpu = 2000, memory = 2048 }

# The image has no retinue in it: work-queue's coordinator puts it there.
retinue_command = "/shared/bin/retinue"

# The folder that all nodes and the coordinator share.
volume      = "shared"
volume_type = "csi"

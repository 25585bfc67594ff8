# A build server's image by Packer (1.6.6 or newer), with the scripts and checks that `build-agent images bake` uses.
#
#   packer build -only=amazon-ebs.server -var version=2026-11-26.1 -var deb=dist/build-agent_0.1.0_amd64.deb packaging/packer
#   packer build -only=null.server -var ssh_host=192.0.2.7 ...   sets up a bare machine that is there, and makes no image of it
#
# What a bake does beyond it: docs/packer.md. Packer 1.6.6 has no way to ask for version 2 of the metadata service alone, so
# the instance answers version 1 while it is set up; servers that are started from the image need not.

variable "version" {
  type        = string
  description = "The image's name, as servers tell it."
  default     = "unnamed"
}

variable "profile" {
  type        = string
  description = "What is set up: full or minimal."
  default     = "full"
}

variable "deb" {
  type        = string
  description = "The agent's Debian package, as `make deb` makes it."
  default     = "dist/build-agent.deb"
}

variable "scripts" {
  type        = string
  description = "The folder of the set-up scripts."
  default     = "setup_scripts"
}

variable "commit" {
  type        = string
  description = "The commit that the scripts are of, for the record."
  default     = ""
}

variable "report" {
  type        = string
  description = "The folder, on this machine, for the report of the checks."
  default     = "."
}

variable "ssh_user" {
  type        = string
  description = "Who logs in; root, or somebody who may use sudo."
  default     = "admin"
}

variable "ssh_host" {
  type        = string
  description = "Where SSH answers; for amazon-ebs only if not at the instance's own address."
  default     = ""
}

variable "ssh_key" {
  type        = string
  description = "File with the private key to log in with; for amazon-ebs one is made if this is empty."
  default     = ""
}

variable "region" {
  type    = string
  default = "eu-west-1"
}

variable "subnet" {
  type        = string
  description = "Subnet of the instance; the default one if this is empty."
  default     = ""
}

variable "instance_type" {
  type    = string
  default = "m6i.large"
}

variable "base_owner" {
  type        = string
  description = "Whose images are looked through for the base: Debian's."
  default     = "136693071363"
}

variable "owner" {
  type        = string
  description = "The tag build-agent:owner of all that is made; as the setting fleet_owner."
  default     = "build-agent"
}

variable "endpoint" {
  type        = string
  description = "Endpoint of EC2's API, as of a VPC; AWS's own if this is empty."
  default     = ""
}

locals {
  setup  = "/var/lib/build-agent-setup"
  staged = "/tmp/build-agent-staged"
  # As root, whoever logs in; a script that fails ends the build.
  as_root = "chmod +x '{{ .Path }}'; if [ \"$(id -u)\" = 0 ]; then env {{ .Vars }} bash -e '{{ .Path }}'; else sudo -n env {{ .Vars }} bash -e '{{ .Path }}'; fi"
  tags = {
    "Name"              = "build-agent-${local.name}"
    "build-agent:owner" = var.owner
    "build-agent:image" = local.name
  }
  name = "${var.profile}-${var.version}"
}

source "null" "server" {
  ssh_host             = var.ssh_host
  ssh_username         = var.ssh_user
  ssh_private_key_file = var.ssh_key
}

source "amazon-ebs" "server" {
  region                     = var.region
  custom_endpoint_ec2        = var.endpoint
  skip_credential_validation = var.endpoint != ""
  skip_metadata_api_check    = var.endpoint != ""

  source_ami_filter {
    filters = {
      name                = "debian-12-amd64-*"
      virtualization-type = "hvm"
    }
    owners      = [var.base_owner]
    most_recent = true
  }

  ami_name      = "build-agent-${local.name}"
  instance_type = var.instance_type
  subnet_id     = var.subnet
  encrypt_boot  = true

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp2"
    volume_size           = 40
    encrypted             = true
    delete_on_termination = true
  }

  ssh_host             = var.ssh_host
  ssh_username         = var.ssh_user
  ssh_private_key_file = var.ssh_key

  tags            = local.tags
  run_tags        = local.tags
  run_volume_tags = local.tags
  snapshot_tags   = local.tags
}

build {
  sources = ["source.null.server", "source.amazon-ebs.server"]

  provisioner "shell" {
    inline = ["rm -rf ${local.staged}", "mkdir -p ${local.staged}/dist"]
  }

  provisioner "file" {
    source      = var.scripts
    destination = "${local.staged}/setup_scripts"
  }

  provisioner "file" {
    source      = var.deb
    destination = "${local.staged}/dist/build-agent.deb"
  }

  provisioner "shell" {
    execute_command = local.as_root
    inline = [
      "mkdir -p ${local.setup}",
      "rm -rf ${local.setup}/setup_scripts ${local.setup}/dist",
      "cp -r --no-preserve=ownership ${local.staged}/setup_scripts ${local.staged}/dist ${local.setup}/",
      "rm -rf ${local.staged}",
      "${local.setup}/setup_scripts/setup.sh --profile ${var.profile} --deb ${local.setup}/dist/build-agent.deb",
    ]
  }

  provisioner "shell" {
    execute_command = local.as_root
    inline = [
      "${local.setup}/setup_scripts/verify/run.sh --profile ${var.profile} --report ${local.setup}/report",
      "install -m 0644 ${local.setup}/report/report.json ${local.setup}/report/junit.xml /tmp/",
    ]
  }

  provisioner "file" {
    direction   = "download"
    source      = "/tmp/report.json"
    destination = "${var.report}/report.json"
  }

  provisioner "file" {
    direction   = "download"
    source      = "/tmp/junit.xml"
    destination = "${var.report}/junit.xml"
  }

  # Last: the scrub removes the keys that let us in, too, and what it runs from.
  provisioner "shell" {
    execute_command = local.as_root
    inline = [
      "echo '{\"id\": \"${local.name}\", \"version\": \"${var.version}\", \"profile\": \"${var.profile}\", \"base\": \"debian-12\", \"commit\": \"${var.commit}\", \"built_at\": \"${timestamp()}\"}' >/etc/build-agent/image.json",
      "rm -rf /run/build-agent-scrub",
      "cp -r ${local.setup}/setup_scripts /run/build-agent-scrub",
      "bash /run/build-agent-scrub/scrub.sh",
      "bash /run/build-agent-scrub/scrub.sh --check",
    ]
  }
}

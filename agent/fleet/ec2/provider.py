"""The provider of machines at EC2: instances, AMIs, and what each needs beside it.

Owns the order in which they come to be and go. Everything is tagged in the call that makes it, so nothing is ever there
without its tags; volumes are encrypted, and machines answer version 2 of the metadata service alone, one hop far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from agent.clock import Deadline
from agent.fleet.ec2 import form
from agent.fleet.ec2.api import Api, Refused
from agent.fleet.ec2.left import Left
from agent.fleet.ec2.options import Ec2Options
from agent.fleet.provider import (
    ImageState,
    LaunchSpec,
    Leftover,
    Machine,
    MachineState,
    ProviderError,
    ProviderImage,
    ProviderUnavailable,
    SshAccess,
)

_BASES = {"debian-12": "debian-12-amd64-*"}
_ALIVE = ("pending", "running", "stopping", "stopped")
# EC2 may not know for so long what it has just made ("Eventual consistency in the Amazon EC2 API").
_SETTLES_S = 60.0


class Ec2Provider:
    """Machines of one account in one region. Making it calls nobody.

    Raises: ProviderError without a region.
    """

    name: ClassVar[str] = "ec2"
    # As Debian's images have it.
    ssh_user: ClassVar[str] = "admin"

    def __init__(self, options: Ec2Options, client: Any = None) -> None:
        self._options = options
        self._api = Api(options, client)
        self._left = Left(self._api)
        # What was made lately, by id.
        self._new: dict[str, Deadline] = {}

    # Machines.

    def base_image(self, base: str) -> str:
        """Return the AMI that is named, or the newest of Debian's."""
        base = base or next(iter(_BASES))
        if base.startswith("ami-"):
            if self.get_image(base) is None:
                raise ProviderError(f"EC2 has no image {base} in this region, or not for this account")
            return base
        if base not in _BASES:
            raise ProviderError(f"EC2: no base {base!r}: an AMI's id, or one of {', '.join(_BASES)}")
        found = list(
            self._api.pages(
                "describe_images",
                "Images",
                Owners=[self._options.base_owner],
                Filters=form.filters({}, name=[_BASES[base]], state=["available"]),
            )
        )
        if not found:
            raise ProviderError(
                f"EC2 has no image {_BASES[base]} of {self._options.base_owner} in this region"
            )
        return str(max(found, key=lambda it: str(it.get("CreationDate", "")))["ImageId"])

    def launch(self, spec: LaunchSpec) -> Machine:
        """Start an instance, or find the one that the token started."""
        token = form.short(spec.token)
        there = self._instances({form.TAG_TOKEN: token}, instance_state_name=_ALIVE)
        if there:
            return self._machine(there[0])
        words = self._words(spec, token)
        record = self._api.call("run_instances", **words)["Instances"][0]
        self._new[record["InstanceId"]] = Deadline.after(_SETTLES_S)
        return self._machine(record)

    def get(self, machine_id: str) -> Machine | None:
        """Return an instance; `None` once EC2 has forgotten it, some time after its end."""
        try:
            found = self._api.call("describe_instances", InstanceIds=[machine_id])
        except Refused as error:
            if not error.code.startswith("InvalidInstanceID"):
                raise
            self._refuse_new(machine_id)
            return None
        records = [record for it in found["Reservations"] for record in it["Instances"]]
        return self._machine(records[0]) if records else None

    def list_machines(self, tags: Mapping[str, str]) -> Sequence[Machine]:
        """Return the instances that carry all these tags, those that are shutting down for good among them."""
        return [
            self._machine(it) for it in self._instances(tags, instance_state_name=(*_ALIVE, "shutting-down"))
        ]

    def host_keys(self, machine_id: str) -> Sequence[str]:
        """Return the keys that cloud-init writes to the console; that takes EC2 a minute or some."""
        return form.host_keys(self.console_output(machine_id))

    def stop(self, machine_id: str) -> None:
        """Shut an instance down."""
        self._api.call("stop_instances", InstanceIds=[machine_id])

    def terminate(self, machine_id: str) -> None:
        """End an instance; its volumes go with it."""
        self._new.pop(machine_id, None)
        self._left.remove(Leftover(kind="machine", id=machine_id, tags={}))

    def console_output(self, machine_id: str) -> str:
        """Return the console's newest 64 KiB; of types that can't tell, what EC2 keeps of the boot."""
        try:
            found = self._api.call("get_console_output", InstanceId=machine_id, Latest=True)
        except Refused as error:
            if error.code not in {"UnsupportedOperation", "InvalidParameterCombination"}:
                raise
            found = self._api.call("get_console_output", InstanceId=machine_id)
        output = found.get("Output") or ""
        if isinstance(output, bytes):
            output = output.decode(errors="replace")
        return str(output)

    # Images.

    def create_image(
        self, machine_id: str, *, name: str, tags: Mapping[str, str], token: str
    ) -> ProviderImage:
        """Begin to make an AMI, or find the one that the token began."""
        short = form.short(token)
        there = self.list_images({form.TAG_TOKEN: short})
        if there:
            return there[0]
        marked = {**tags, form.TAG_TOKEN: short}
        try:
            made = self._api.call(
                "create_image",
                InstanceId=machine_id,
                Name=name,
                # It is stopped; were it not, a restart would undo the scrub.
                NoReboot=True,
                TagSpecifications=form.specifications({**marked, "Name": name}, "image", "snapshot"),
            )
        except Refused as error:
            if error.code == "InvalidAMIName.Duplicate" and not self._left.named(name):
                # The token's own, which EC2 does not list yet; one that has another token is in the way for good.
                raise ProviderUnavailable(f"EC2 does not show image {name} yet") from error
            raise
        image_id = str(made["ImageId"])
        self._new[image_id] = Deadline.after(_SETTLES_S)
        # It is pending, whether or not EC2 lists it yet.
        return ProviderImage(id=image_id, name=name, state=ImageState.PENDING, tags=marked)

    def get_image(self, image_id: str) -> ProviderImage | None:
        """Return an AMI."""
        record = self._left.image(image_id)
        if record is None:
            self._refuse_new(image_id)
            return None
        return form.image(record)

    def list_images(self, tags: Mapping[str, str]) -> Sequence[ProviderImage]:
        """Return the account's own AMIs that carry all these tags."""
        return [form.image(it) for it in self._left.images(tags)]

    def delete_image(self, image_id: str) -> None:
        """Deregister an AMI and delete its snapshots."""
        self._new.pop(image_id, None)
        self._left.remove(Leftover(kind="image", id=image_id, tags={}))

    # What is left.

    def leftovers(self, tags: Mapping[str, str]) -> Sequence[Leftover]:
        """Return instances, AMIs, snapshots of no AMI, volumes, key pairs and security groups."""
        machines = [
            Leftover(kind="machine", id=it.id, tags=it.tags)
            for it in self.list_machines(tags)
            if it.state is not MachineState.TERMINATED
        ]
        return [*machines, *self._left.beside_machines(tags)]

    def remove(self, leftover: Leftover) -> None:
        """Remove one of them; what is in use yet raises ProviderUnavailable."""
        self._left.remove(leftover)

    # Inside.

    def _refuse_new(self, thing: str) -> None:
        """Raise ProviderUnavailable for what was made so lately that EC2 need not know it yet."""
        if thing in self._new and not self._new[thing].is_passed:
            raise ProviderUnavailable(f"EC2 does not know {thing} yet")

    def _instances(self, tags: Mapping[str, str], **more: Sequence[str]) -> list[Any]:
        reservations = self._api.pages(
            "describe_instances", "Reservations", Filters=form.filters(tags, **more)
        )
        found = (record for it in reservations for record in it["Instances"])
        return [record for record in found if form.carries(record, tags)]

    def _machine(self, record: Mapping[str, Any]) -> Machine:
        return form.machine(record, has_public_address=self._options.has_public_address)

    def _words(self, spec: LaunchSpec, token: str) -> dict[str, Any]:
        """Return the words of run_instances; make the key pair and the group that they name."""
        options = self._options
        words: dict[str, Any] = {
            "ImageId": spec.image,
            "InstanceType": spec.size or options.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": token,
            # Version 2 with tokens, and no further than the machine itself: a container on it is one hop away.
            "MetadataOptions": {
                "HttpTokens": "required",
                "HttpPutResponseHopLimit": 1,
                "HttpEndpoint": "enabled",
                "InstanceMetadataTags": "enabled",
            },
            "BlockDeviceMappings": [self._root_volume(spec.image)],
            # A server that powers itself off is gone, and costs nothing; one that becomes an image is stopped first.
            "InstanceInitiatedShutdownBehavior": "stop" if spec.ssh else "terminate",
            "TagSpecifications": form.specifications(
                {**spec.tags, "Name": spec.name, form.TAG_TOKEN: token},
                "instance",
                "volume",
            ),
        }
        if spec.user_data:
            words["UserData"] = spec.user_data
        if options.instance_profile:
            words["IamInstanceProfile"] = {"Name": options.instance_profile}
        groups = list(options.security_groups)
        if spec.ssh:
            words["KeyName"] = self._key_pair(spec.ssh, spec.tags, token)
            groups = groups or [self._group(spec.tags, token)]
        self._place(words, groups)
        return words

    def _place(self, words: dict[str, Any], groups: list[str]) -> None:
        """Say where in the network the instance is."""
        if not self._options.has_public_address:
            words |= {"SecurityGroupIds": groups} if groups else {}
            words |= {"SubnetId": self._options.subnet} if self._options.subnet else {}
            return
        # Only an interface can be asked to have a public address whatever its subnet does by default.
        interface: dict[str, Any] = {"DeviceIndex": 0, "AssociatePublicIpAddress": True}
        interface |= {"Groups": groups} if groups else {}
        interface |= {"SubnetId": self._options.subnet} if self._options.subnet else {}
        words["NetworkInterfaces"] = [interface]

    def _root_volume(self, image_id: str) -> dict[str, Any]:
        record = self._left.image(image_id)
        if record is None:
            raise ProviderError(f"EC2 has no image {image_id} in this region, or not for this account")
        name = record.get("RootDeviceName") or "/dev/xvda"
        mappings = {it.get("DeviceName"): it.get("Ebs", {}) for it in record.get("BlockDeviceMappings", ())}
        size = max(self._options.volume_gib, mappings.get(name, {}).get("VolumeSize", 0))
        volume = {"VolumeType": "gp3", "VolumeSize": size, "Encrypted": True, "DeleteOnTermination": True}
        if self._options.kms_key:
            volume["KmsKeyId"] = self._options.kms_key
        return {"DeviceName": name, "Ebs": volume}

    def _key_pair(self, ssh: SshAccess, tags: Mapping[str, str], token: str) -> str:
        name = f"build-agent-{token}"
        self._api.call_unless(
            {"InvalidKeyPair.Duplicate"},
            "import_key_pair",
            KeyName=name,
            PublicKeyMaterial=ssh.public_key.encode(),
            TagSpecifications=form.specifications(tags, "key-pair"),
        )
        return name

    def _group(self, tags: Mapping[str, str], token: str) -> str:
        """Return a security group that lets SSH in, made unless it is there."""
        options = self._options
        if not options.ssh_cidr:
            raise ProviderError(
                "EC2: nothing lets SSH in to the machine: set ec2_security_groups to groups that do, or ec2_ssh_cidr to "
                "the addresses that images are baked from, such as 198.51.100.7/32"
            )
        name = f"build-agent-{token}"
        words: dict[str, Any] = {"GroupName": name, "Description": "build-agent: SSH while an image is made"}
        if options.subnet:
            subnets = self._api.call("describe_subnets", SubnetIds=[options.subnet])["Subnets"]
            words["VpcId"] = subnets[0]["VpcId"]
        made = self._api.call_unless(
            {"InvalidGroup.Duplicate"},
            "create_security_group",
            **words,
            TagSpecifications=form.specifications(tags, "security-group"),
        )
        if made is None:
            found = list(
                self._api.pages(
                    "describe_security_groups",
                    "SecurityGroups",
                    Filters=form.filters(tags, group_name=[name]),
                )
            )
            if not found:
                raise ProviderUnavailable(f"EC2 does not show security group {name} yet")
            made = found[0]
        group = str(made["GroupId"])
        opened = {
            "IpProtocol": "tcp",
            "FromPort": 22,
            "ToPort": 22,
            "IpRanges": [{"CidrIp": options.ssh_cidr}],
        }
        self._api.call_unless(
            {"InvalidPermission.Duplicate"},
            "authorize_security_group_ingress",
            GroupId=group,
            IpPermissions=[opened],
        )
        return group

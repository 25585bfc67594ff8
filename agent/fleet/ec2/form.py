"""EC2's records and ours: tags, machines, images, host keys in the console. Pure functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agent.fleet.provider import ImageState, Machine, MachineState, ProviderImage

TAG_TOKEN = "build-agent:token"  # noqa: S105 - the name of a tag
_MACHINES = {
    "pending": MachineState.PENDING,
    "running": MachineState.RUNNING,
    "shutting-down": MachineState.TERMINATING,
    "terminated": MachineState.TERMINATED,
    "stopping": MachineState.STOPPING,
    "stopped": MachineState.STOPPED,
}
# What is neither there nor on its way is of no use: failed, error, invalid, deregistered, disabled.
_IMAGES = {
    "pending": ImageState.PENDING,
    "transient": ImageState.PENDING,
    "available": ImageState.AVAILABLE,
}
_KEYS = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_KEY = re.compile(r"((?:ssh|ecdsa)-[a-z0-9-]+) ([A-Za-z0-9+/]+=*)")


def short(token: str) -> str:
    """Return a token in the 64 characters that EC2 takes."""
    return hashlib.sha256(token.encode()).hexdigest()[:40]


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tags_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a record."""
    return {it["Key"]: it["Value"] for it in record.get("Tags", ())}


def carries(record: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
    """Whether a record has all these tags, to the letter: in the values of filters EC2 reads `*` and `?` as wildcards."""
    return tags.items() <= tags_of(record).items()


def names_image(snapshot: Mapping[str, Any], images: Collection[str]) -> bool:
    """Whether a snapshot says in its description that it was made for one of these AMIs, which may not name it yet."""
    return any(image in images for image in re.findall(r"ami-[0-9a-f]+", snapshot.get("Description") or ""))


def filters(tags: Mapping[str, str], **more: Sequence[str]) -> list[dict[str, Any]]:
    """Return the filters of what carries all these tags; in names of others, `_` stands for `-`."""
    by_tag = [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]
    return by_tag + [
        {"Name": name.replace("_", "-"), "Values": list(values)} for name, values in more.items()
    ]


def specifications(tags: Mapping[str, str], *kinds: str) -> list[dict[str, Any]]:
    """Return the tags of what a call makes."""
    return [{"ResourceType": kind, "Tags": tag_list(tags)} for kind in kinds]


def machine(record: Mapping[str, Any], *, has_public_address: bool) -> Machine:
    """Return an instance as a machine."""
    tags = tags_of(record)
    return Machine(
        id=record["InstanceId"],
        name=tags.get("Name", record["InstanceId"]),
        state=_MACHINES[record["State"]["Name"]],
        image=record.get("ImageId", ""),
        address=record.get("PublicIpAddress" if has_public_address else "PrivateIpAddress") or None,
        tags=tags,
        launched_at=record.get("LaunchTime"),
    )


def image(record: Mapping[str, Any]) -> ProviderImage:
    """Return an AMI as an image."""
    state = _IMAGES.get(record.get("State", ""), ImageState.FAILED)
    reason = record.get("StateReason", {}).get("Message") or record.get("State")
    sizes = [it["Ebs"].get("VolumeSize", 0) for it in record.get("BlockDeviceMappings", ()) if "Ebs" in it]
    return ProviderImage(
        id=record["ImageId"],
        name=record.get("Name", ""),
        state=state,
        tags=tags_of(record),
        size_bytes=sum(sizes) << 30 or None,
        reason=reason if state is ImageState.FAILED else None,
    )


def snapshots_of(record: Mapping[str, Any]) -> list[str]:
    """Return the snapshots that an AMI consists of."""
    mappings = record.get("BlockDeviceMappings", ())
    return [it["Ebs"]["SnapshotId"] for it in mappings if it.get("Ebs", {}).get("SnapshotId")]


def host_keys(console: str) -> list[str]:
    """Return the host keys (`type base64`) that cloud-init has written to the console last; none if it has not yet."""
    blocks = _KEYS.findall(console)
    return [f"{kind} {key}" for kind, key in _KEY.findall(blocks[-1])] if blocks else []

"""Who this server is: an id that survives restarts and that no other server has, a name, an image, facts.

On EC2 the id is the instance's. Elsewhere it comes from the machine-id, hashed as machine-id(5) asks for,
together with the state directory: several agents on one machine are several servers. The id is kept in
`state_dir/server-id` for the day the machine-id can't be read; whatever may have come along with a copied
image is not believed, since two servers under one id would fence each other off.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shlex
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import log
from agent.config import Settings
from agent.errors import AgentFailed
from agent.host.image import read_image
from agent.host.metadata import Instance, MetadataClient, MetadataUnavailable
from agent.model.server import Identity

_log = log.get(__name__)

TAG_PREFIX = "build-agent:"
# Ours alone, from `systemd-id128 new`. Changing it renames every server that is not on EC2.
_APPLICATION_ID = bytes.fromhex("ba06f335ae714394be75f04df59652fb")
_STORED_NAME = "server-id"
# What the fleet and the bake mark their machines with is theirs: it says nothing about which builds a server takes.
RESERVED_TAGS = frozenset({"bake", "dev", "fleet", "image", "machine", "owner", "pool", "token"})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Who:
    id: str
    name: str
    ami_id: str | None
    facts: dict[str, Any]
    tags: dict[str, str]


def identify(settings: Settings, *, root: Path = Path("/")) -> Identity:
    """Find out who this server is and keep the id in the state directory.

    With cloud=auto a machine that looks like EC2 must get an answer from its metadata service; it never falls
    back to its machine-id, or it would be another server after each boot with a slow network. Nothing is
    waited for here: the caller tries again on a retriable error.

    `host` of the answer holds `cloud`, `tags` (the instance's tags that begin with "build-agent:", without
    that prefix, the fleet's own left out), `image` (further keys of the image file) and facts for people, all plain JSON.

    Args:
        root: where /etc and /sys are looked for.
    Raises: MetadataUnavailable (retriable); SettingsError for a broken image file or metadata address;
        AgentFailed when nothing says who the machine is.
    """
    image = read_image(settings.image_file)
    is_ec2 = settings.cloud == "ec2" or (settings.cloud == "auto" and looks_like_ec2(root))
    who = _from_ec2(settings, root) if is_ec2 else _from_machine(settings, root)
    host: dict[str, Any] = {"cloud": "ec2" if is_ec2 else "none", **_machine_facts(root), **who.facts}
    host |= {"tags": who.tags, "image": dict(image.facts) if image else {}}
    return Identity(
        id=who.id,
        name=settings.server_name or who.name,
        image_id=image.id if image else who.ami_id,
        image_version=image.version if image else None,
        host=host,
    )


def looks_like_ec2(root: Path = Path("/")) -> bool:
    """Say whether firmware or hypervisor name EC2, without asking the network.

    Source: "Determine whether a system is an EC2 instance" (EC2 User Guide): a system or hypervisor UUID that
    begins with ec2, in either byte order; and the vendor, which unlike the UUID everybody may read.
    """
    vendors = {_first_line(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "bios_vendor")}
    if "Amazon EC2" in vendors:
        return True
    for uuid in (_product_uuid(root), _first_line(root / "sys/hypervisor/uuid").lower()):
        swapped = "".join(reversed(re.findall("..", uuid[:8])))
        if uuid.startswith("ec2") or swapped.startswith("ec2"):
            return True
    return False


def application_machine_id(machine_id: str) -> bytes:
    """Hash 32 hex digits of a machine-id into 16 bytes that only this application uses.

    The same as sd_id128_get_machine_app_specific(3): HMAC-SHA256 keyed with the machine-id over the
    application's id, cut to 128 bits and marked as a version 4 UUID. `systemd-id128 machine-id
    --app-specific=` prints it too.
    """
    digest = bytearray(hmac.digest(bytes.fromhex(machine_id), _APPLICATION_ID, hashlib.sha256)[:16])
    digest[6] = (digest[6] & 0x0F) | 0x40
    digest[8] = (digest[8] & 0x3F) | 0x80
    return bytes(digest)


def _from_ec2(settings: Settings, root: Path) -> _Who:
    client = MetadataClient(settings.metadata_url)
    try:
        instance, tags = client.instance(), client.tags()
    except MetadataUnavailable as error:
        why = "cloud = ec2" if settings.cloud == "ec2" else "this machine looks like EC2 and cloud = auto"
        raise MetadataUnavailable(
            f"{why}, but the instance's metadata can't be had: {error}; see that the instance's metadata "
            "options enable the endpoint and that no firewall rule closes it to the agent's user, "
            "or set cloud = none"
        ) from error
    _settle(settings.state_dir, _record(instance.id, "ec2", settings, root))
    return _Who(
        id=instance.id,
        name=(instance.hostname or "").split(".")[0] or instance.id,
        ami_id=instance.ami_id,
        facts=_instance_facts(instance),
        tags=_own_tags(tags),
    )


def _own_tags(tags: Mapping[str, str]) -> dict[str, str]:
    named = {key.removeprefix(TAG_PREFIX): text for key, text in tags.items() if key.startswith(TAG_PREFIX)}
    return {name: text for name, text in named.items() if name not in RESERVED_TAGS}


def _from_machine(settings: Settings, root: Path) -> _Who:
    machine_id = _first_line(root / "etc/machine-id").lower()
    if re.fullmatch("(?!0{32})[0-9a-f]{32}", machine_id):
        key = application_machine_id(machine_id)
        place = os.fsencode(settings.state_dir.absolute())
        server_id = hmac.digest(key, place, hashlib.sha256)[:16].hex()
        _settle(settings.state_dir, _record(server_id, "machine-id", settings, root))
    else:
        server_id = _believed(settings, root)
    host_name = socket.gethostname()
    is_telling = host_name not in ("", "localhost", "localhost.localdomain", "(none)")
    name = host_name if is_telling else f"server-{server_id[:8]}"
    return _Who(id=server_id, name=name, ami_id=None, facts={}, tags={})


def _believed(settings: Settings, root: Path) -> str:
    """Return the stored id, as the machine-id can't be read, where nothing speaks against its being ours."""
    stored = _stored(settings.state_dir)
    now = _record("", "machine-id", settings, root)
    if stored and stored.get("source") == "machine-id" and stored.get("state_dir") == now["state_dir"]:
        hardware = (stored.get("hardware"), now["hardware"])
        if None in hardware or hardware[0] == hardware[1]:
            _log.warning("identity.machine_id_unreadable", "the stored id is used", server=stored["id"])
            return str(stored["id"])
    raise AgentFailed(
        f"{root / 'etc/machine-id'} holds no machine-id and {settings.state_dir / _STORED_NAME} no id of "
        "this machine, so nothing says which server this is; run systemd-machine-id-setup, "
        "or set cloud = ec2 on EC2"
    )


def _record(server_id: str, source: str, settings: Settings, root: Path) -> dict[str, Any]:
    """Make what is kept of an id; `hardware`, hashed as it may be confidential, tells a copy elsewhere."""
    uuid = _product_uuid(root)
    hardware = hmac.digest(_APPLICATION_ID, uuid.encode(), hashlib.sha256).hex()[:32] if uuid else None
    place = str(settings.state_dir.absolute())
    return {"id": server_id, "source": source, "hardware": hardware, "state_dir": place}


def _stored(state_dir: Path) -> dict[str, Any] | None:
    path = state_dir / _STORED_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("identity.stored_id_unreadable", "%s: %s", path, error)
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str) and record["id"] else None


def _settle(state_dir: Path, record: dict[str, Any]) -> None:
    """Keep the id that was found; say so when what was kept before is somebody else's."""
    stored = _stored(state_dir)
    if stored and stored["id"] != record["id"]:
        _log.warning(
            "identity.stored_id_ignored",
            "%s holds %s, the id of another machine or directory",
            state_dir / _STORED_NAME,
            stored["id"],
            server=record["id"],
        )
    if stored != record:
        _keep(state_dir, record)


def _keep(state_dir: Path, record: dict[str, Any]) -> None:
    """Write the record whole or not at all; a full disk does not stop an agent that knows who it is (F25)."""
    temporary = state_dir / f".{_STORED_NAME}-{os.getpid()}"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(state_dir / _STORED_NAME)
    except OSError as error:
        _log.warning("identity.not_kept", "%s: %s", state_dir / _STORED_NAME, error)
        with suppress(OSError):
            temporary.unlink()


def _instance_facts(instance: Instance) -> dict[str, Any]:
    return {
        "instance_id": instance.id,
        "ami_id": instance.ami_id,
        "instance_type": instance.type,
        "availability_zone": instance.availability_zone,
        "region": instance.region,
        "local_ipv4": instance.local_ipv4,
    }


def _machine_facts(root: Path) -> dict[str, Any]:
    kernel = os.uname()
    return {
        "hostname": socket.gethostname(),
        "os": _system_name(root),
        "kernel": kernel.release,
        "arch": kernel.machine,
        "cpu_count": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }


def _system_name(root: Path) -> str | None:
    """Read PRETTY_NAME of os-release(5), whose values are quoted as a shell does."""
    try:
        for line in (root / "etc/os-release").read_text(encoding="utf-8").splitlines():
            if line.startswith("PRETTY_NAME="):
                return " ".join(shlex.split(line.partition("=")[2]))
    except (OSError, ValueError):  # nothing depends on it
        pass
    return None


def _product_uuid(root: Path) -> str:
    return _first_line(root / "sys/class/dmi/id/product_uuid").lower()


def _first_line(path: Path) -> str:
    """Read a small file of /etc or /sys; empty where it is missing, not readable or not text."""
    try:
        return path.read_text(encoding="ascii").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""

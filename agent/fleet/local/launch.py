"""Bring a machine into being: its folder, its record, its keeper."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

import agent
from agent import clock
from agent.fleet.local import address, host_command, inside, keeper, layers, metadata_service, state
from agent.fleet.provider import LaunchSpec, ProviderError

# A machine that boots writes logs and little else; a build needs more, and says so by itself.
ROOM_BYTES = 1 << 30
PROGRAMS = ("systemd-nspawn", "ip", "nft", "nsenter", "setsid", "setpriv", "unshare", "mount", "cp")
_START_LIMIT_S = 60.0


def make(kept: state.State, subnet: IPv4Network, spec: LaunchSpec) -> state.MachineRecord:
    """Make the folder of a machine. Hold the state's lock."""
    image = kept.image(spec.image)
    if image is None:
        raise ProviderError(f"there is no image {spec.image!r} here")
    layers.check_stack(kept.images, image.stack)
    layers.check_space(kept.machines, ROOM_BYTES)
    taken = [it.address for it in kept.machine_records(is_making=True)]
    record = state.MachineRecord(
        id=state.new_id("m"),
        name=spec.name,
        token=spec.token,
        image=image.id,
        stack=image.stack,
        address=str(address.free_address(subnet, taken)),
        subnet=str(subnet),
        uuid=state.new_uuid(),
        launched_at=clock.utc_now().isoformat(),
        tags=dict(spec.tags),
        ssh_user=spec.ssh.user if spec.ssh else "",
        ssh_key=spec.ssh.public_key.strip() if spec.ssh else "",
    )
    with kept.making("machines", record) as (folder, _):
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(mode=0o755)
        state.write_json(folder / "metadata.json", _documents(record, spec))
        kept.finish("machines", folder)
    return record


def start(kept: state.State, record: state.MachineRecord) -> None:
    """Start a machine's keeper and wait until systemd-nspawn runs; nothing when it has one."""
    folder = kept.machine_dir(record.id)
    lock = state.try_lock(folder / "lock")
    if lock is None:
        return
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        # Forked away: the keeper outlives this process, and is nobody's child to wait for.
        words = [
            "setsid",
            "--fork",
            sys.executable,
            "-m",
            "agent.fleet.local",
            str(folder),
            str(lock),
            str(writer),
        ]
        with (folder / "keeper.log").open("ab") as log:
            subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock, writer),
                cwd="/",
                env={
                    "PATH": host_command.PATH,
                    "LC_ALL": "C.UTF-8",
                    "PYTHONPATH": str(Path(agent.__file__).parents[1]),
                    inside.KEEPER_VARIABLE: record.uuid,
                },
                check=True,
                timeout=_START_LIMIT_S,
            )
        os.close(writer)
        writer = -1
        _await_ready(record, folder, reader)
    finally:
        os.close(lock)
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _await_ready(record: state.MachineRecord, folder: Path, reader: int) -> None:
    said, deadline = b"", clock.Deadline.after(_START_LIMIT_S)
    while not said.endswith(keeper.READY):
        readable, _, _ = select.select([reader], [], [], deadline.remaining_s)
        data = os.read(reader, 4096) if readable else b""
        if not data:
            inside.end(record.uuid)
            log = (folder / "keeper.log").read_text(errors="replace")
            words = said.decode("utf-8", "replace") or host_command.last_lines(log)
            raise ProviderError(f"machine {record.id} could not be started: {words}")
        said += data


def _documents(record: state.MachineRecord, spec: LaunchSpec) -> dict[str, str]:
    """Return what the metadata service says of a machine when it starts."""
    documents = {
        "meta-data/instance-id": record.id,
        "meta-data/ami-id": record.image,
        "meta-data/instance-type": "local",
        "meta-data/placement/availability-zone": "local-1a",
        "meta-data/placement/region": "local-1",
        "meta-data/local-ipv4": record.address,
        "meta-data/hostname": record.host_name,
    }
    if spec.user_data:
        documents["user-data"] = spec.user_data
    return metadata_service.with_tags(documents, record.tags)

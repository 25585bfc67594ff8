"""The provider of machines on this host: joins folders, layers, network and keepers into the protocol of providers.

Owns the order in which a machine or an image comes to be and goes. Thread-safe, and safe beside other commands: what
changes hands does so under the lock of `local_dir`, and whether a machine runs is told by its keeper's own lock.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from agent import clock
from agent.errors import NotFound
from agent.fleet.local import (
    address,
    console,
    debian,
    host_command,
    inside,
    keeper,
    layers,
    metadata_service,
    network,
    state,
)
from agent.fleet.local import launch as launching
from agent.fleet.local.rootfs import RootFs
from agent.fleet.provider import (
    ImageState,
    LaunchSpec,
    Leftover,
    Machine,
    MachineState,
    ProviderError,
    ProviderImage,
    ProviderUnavailable,
)
from agent.host import processes

_CONSOLE_BYTES = 64 * 1024


class LocalProvider:
    """Machines of one `local_dir`. Making it touches nothing.

    Raises: ProviderError for a subnet that can't be one.
    """

    name: ClassVar[str] = "local"
    ssh_user: ClassVar[str] = "root"

    def __init__(self, local_dir: Path, subnet: str) -> None:
        self._state = state.State(local_dir.absolute())
        self._subnet = address.subnet_of(subnet)
        self._network = network.Network(local_dir=self._state.root, subnet=self._subnet)

    @property
    def local_dir(self) -> Path:
        """The folder that holds all of it."""
        return self._state.root

    @property
    def gateway(self) -> str:
        """The host's address as machines see it: what listens on it, or on all addresses, they reach."""
        return str(address.gateway(self._subnet))

    @property
    def subnet(self) -> str:
        """The network of its machines."""
        return str(self._subnet)

    # Machines.

    def base_image(self, base: str) -> str:
        """Return the id of a base, which is made if it is not there, or of an image."""
        base = base or debian.DEFAULT_BASE
        if base in debian.BASES:
            return debian.make(self._state, base).id
        if self._state.image(base) is None:
            raise ProviderError(
                f"there is no image {base!r} here; bases that can be made: {', '.join(debian.BASES)}"
            )
        return base

    def launch(self, spec: LaunchSpec) -> Machine:
        """Start a machine, or find the one that the token started."""
        host_command.need(*launching.PROGRAMS)
        with self._state.changing():
            record = next((it for it in self._state.machine_records() if it.token == spec.token), None)
            if record is None:
                record = launching.make(self._state, self._subnet, spec)
        # One that was made by a command that was killed before it could start it is started now.
        if not (self._state.machine_dir(record.id) / keeper.STARTED_FILE).exists():
            launching.start(self._state, record)
        return self._machine(record)

    def get(self, machine_id: str) -> Machine | None:
        """Return a machine; `None` once it was terminated."""
        record = self._state.machine(machine_id)
        return None if record is None else self._machine(record)

    def list_machines(self, tags: Mapping[str, str]) -> Sequence[Machine]:
        """Return the machines that carry all these tags."""
        found = self._state.machine_records()
        return [self._machine(record) for record in found if tags.items() <= record.tags.items()]

    def host_keys(self, machine_id: str) -> Sequence[str]:
        """Return the public host keys that lie on the machine's own disk."""
        root = RootFs(self._dir_of(machine_id) / "upper")
        texts = []
        for name in root.names("/etc/ssh"):
            if name.startswith("ssh_host_") and name.endswith(".pub"):
                with suppress(ProviderError):  # a whiteout: the machine has removed one of its image
                    texts.append((root.read(f"/etc/ssh/{name}") or b"").decode("ascii", "replace"))
        return [" ".join(text.split()[:2]) for text in texts if text.strip()]

    def stop(self, machine_id: str) -> None:
        """Ask the machine to power off; after 90 s it is switched off."""
        folder = self._dir_of(machine_id)
        if not state.is_locked(folder / "lock"):
            return
        (folder / keeper.STOPPING_FILE).touch()
        known = state.read_json(folder / keeper.KEEPER_FILE)
        if known is not None:
            processes.kill([processes.ProcessId(known["pid"], known["started_ticks"])], signal.SIGTERM)

    def start(self, machine_id: str) -> None:
        """Start a machine that is stopped; nothing when it runs."""
        host_command.need(*launching.PROGRAMS)
        launching.start(self._state, self._record_of(machine_id))

    def terminate(self, machine_id: str) -> None:
        """Switch the machine off and remove its disk."""
        record = self._state.machine(machine_id)
        if record is None:
            return
        inside.end(record.uuid)
        with suppress(ProviderError), self._network.changing():
            self._network.release(record.id)
        with self._state.changing():
            folder = self._state.machine_dir(machine_id)
            gone = folder.with_name(f"{state.MAKING}{machine_id}")
            # From here on it is rubbish, whatever ends this command.
            with suppress(FileNotFoundError):
                folder.rename(gone)
            state.remove_tree(gone)

    def reboot(self, machine_id: str) -> None:
        """Restart a running machine in good order."""
        record = self._record_of(machine_id)
        # systemd(1): SIGRTMIN+5 starts reboot.target.
        inside.signal_leader(record.uuid, signal.SIGRTMIN + 5, f"restart {machine_id}")

    def console_output(self, machine_id: str) -> str:
        """Return the newest 64 KiB of the console."""
        return console.read(self._dir_of(machine_id), _CONSOLE_BYTES)

    def run(
        self, machine_id: str, argv: Sequence[str], *, limit_s: float = 60.0, stdin: bytes = b""
    ) -> inside.Result:
        """Run a command in a running machine as root, without ssh.

        Raises: ProviderUnavailable while it does not run, or when the command took too long.
        """
        first = inside.leader(self._record_of(machine_id).uuid)
        if first is None:
            raise ProviderUnavailable(f"machine {machine_id} does not run")
        return inside.run(first, argv, limit_s=limit_s, stdin=stdin)

    # What the machine is told from outside.

    def set_spot_notice(self, machine_id: str, action: str | None, at: datetime | None = None) -> None:
        """Let the metadata say that the machine will be taken back (`terminate`, `stop`) at `at`; `None`: no more."""
        instant = at.isoformat().replace("+00:00", "Z") if at else ""
        self._set_document(machine_id, *metadata_service.spot_action(action, instant))

    def set_target_lifecycle_state(self, machine_id: str, target: str | None) -> None:
        """Let the metadata say where Auto Scaling wants the machine (`Terminated`); `None`: it is in no group."""
        self._set_document(machine_id, *metadata_service.target_lifecycle_state(target))

    # Images.

    def create_image(
        self, machine_id: str, *, name: str, tags: Mapping[str, str], token: str
    ) -> ProviderImage:
        """Copy a stopped machine's disk into an image; it is available when this returns."""
        machine = self._record_of(machine_id)
        image_id = state.new_id("i")
        record = state.ImageRecord(
            id=image_id,
            name=name,
            token=token,
            stack=(image_id, *machine.stack),
            created_at=clock.utc_now().isoformat(),
            tags=dict(tags),
        )
        with ExitStack() as held:
            with self._state.changing():
                made = next(
                    (it for it in self._state.image_records(is_making=True) if it.token == token), None
                )
                if made is not None:
                    return self._image(made)
                off = state.try_lock(self._state.machine_dir(machine_id) / "lock")
                if off is None:
                    raise ProviderError(
                        f"machine {machine_id} runs; stop it first, an image needs a disk at rest"
                    )
                held.callback(os.close, off)
                upper = self._state.machine_dir(machine_id) / "upper"
                layers.check_space(self._state.images, layers.size_of(upper) + launching.ROOM_BYTES)
                folder, lock = held.enter_context(self._state.making("images", record))
            size = layers.copy_layer(upper, folder / "layer", maker_lock=lock)
            self._state.finish("images", folder, size_bytes=size)
        return self._image(self._state.image(record.id) or record)

    def get_image(self, image_id: str) -> ProviderImage | None:
        """Return an image."""
        record = self._state.image(image_id)
        return None if record is None else self._image(record)

    def list_images(self, tags: Mapping[str, str]) -> Sequence[ProviderImage]:
        """Return the images that carry all these tags."""
        found = self._state.image_records()
        return [self._image(record) for record in found if tags.items() <= record.tags.items()]

    def delete_image(self, image_id: str) -> None:
        """Remove an image that nothing stands on.

        Raises: ProviderError that names what does.
        """
        with self._state.changing():
            if self._state.image(image_id) is None:
                return
            upon = [it.id for it in self._state.machine_records(is_making=True) if image_id in it.stack]
            upon += [it.id for it in self._state.image_records(is_making=True) if image_id in it.stack[1:]]
            if upon:
                raise ProviderError(
                    f"image {image_id} can't be removed: {', '.join(sorted(upon))} stand on it; remove them first"
                )
            folder = self._state.image_dir(image_id)
            gone = folder.with_name(f"{state.MAKING}{image_id}")
            folder.rename(gone)
            state.remove_tree(gone)

    # What is left.

    def leftovers(self, tags: Mapping[str, str]) -> Sequence[Leftover]:
        """Return machines, then images from the top of their stacks down, then what killed commands left half made."""
        machines = [
            Leftover(kind="machine", id=it.id, tags=it.tags)
            for it in self._state.machine_records()
            if tags.items() <= it.tags.items()
        ]
        images = [
            Leftover(kind="image", id=it.id, tags=it.tags)
            for it in sorted(self._state.image_records(), key=lambda it: -len(it.stack))
            if tags.items() <= it.tags.items()
        ]
        with self._state.changing():
            unfinished = [
                Leftover(kind="unfinished", id=f"{folder.parent.name}/{folder.name}", tags=found)
                for folder, found in self._state.abandoned()
                if tags.items() <= found.items()
            ]
        return [*machines, *images, *unfinished]

    def remove(self, leftover: Leftover) -> None:
        """Remove one of them."""
        if leftover.kind == "machine":
            self.terminate(leftover.id)
        elif leftover.kind == "image":
            self.delete_image(leftover.id)
        elif leftover.kind == "unfinished":
            with self._state.changing():
                for folder, _ in self._state.abandoned():
                    if f"{folder.parent.name}/{folder.name}" == leftover.id:
                        state.remove_tree(folder)
        else:
            raise ProviderError(f"the local provider makes no {leftover.kind!r}")

    # Inside.

    def _set_document(self, machine_id: str, path: str, text: str | None) -> None:
        file = self._dir_of(machine_id) / "metadata.json"
        with self._state.changing():
            documents = state.read_json(file) or {}
            state.write_json(file, metadata_service.with_document(documents, path, text))

    def _record_of(self, machine_id: str) -> state.MachineRecord:
        record = self._state.machine(machine_id)
        if record is None:
            raise NotFound(f"there is no machine {machine_id!r} here")
        return record

    def _dir_of(self, machine_id: str) -> Path:
        return self._state.machine_dir(self._record_of(machine_id).id)

    def _machine(self, record: state.MachineRecord) -> Machine:
        folder = self._state.machine_dir(record.id)
        if not state.is_locked(folder / "lock"):
            is_new = not (folder / keeper.STARTED_FILE).exists()
            standing = MachineState.PENDING if is_new else MachineState.STOPPED
        elif (folder / keeper.STOPPING_FILE).exists():
            standing = MachineState.STOPPING
        else:
            standing = MachineState.RUNNING
        return Machine(
            id=record.id,
            name=record.name,
            state=standing,
            image=record.image,
            address=record.address,
            tags=record.tags,
            launched_at=state.instant(record.launched_at),
        )

    def _image(self, record: state.ImageRecord) -> ProviderImage:
        is_whole = self._state.image(record.id) is not None
        return ProviderImage(
            id=record.id,
            name=record.name,
            state=ImageState.AVAILABLE if is_whole else ImageState.PENDING,
            tags=record.tags,
            created_at=state.instant(record.created_at),
            size_bytes=record.size_bytes or None,
        )

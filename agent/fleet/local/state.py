"""What is kept of local machines and images: folders, their records, locks.

    local_dir/lock                     held while names, tokens, addresses or places change hands
    local_dir/images/ID/               image.json, layer/ (what it adds to the images below it)
    local_dir/machines/ID/             machine.json, metadata.json, upper/, work/, root/, console.log, keeper.json, lock
    .../.making-ID/                    not finished; its lock is free when its maker has died, and then it is rubbish

A thing comes into being by one rename of its finished folder, so none is ever half there. A machine runs while the lock
in its folder is held (by its keeper): the kernel gives the lock back whatever way a keeper dies.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import secrets
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from agent import clock
from agent.fleet.provider import ProviderError, ProviderUnavailable

MAKING = ".making-"
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_LOCK_LIMIT_S = 60.0
_MACHINE_ID_BYTES = (
    6  # "m-" and twelve digits: it names the machine's network port too, and those have 15 bytes
)
Kind = Literal["images", "machines"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineRecord:
    """A machine. `stack` is what it stands on, its image first; `uuid` marks its processes and is its machine-id."""

    id: str
    name: str
    token: str
    image: str
    stack: tuple[str, ...]
    address: str
    subnet: str
    uuid: str
    launched_at: str
    tags: Mapping[str, str] = field(default_factory=dict)
    ssh_user: str = ""
    ssh_key: str = ""

    @property
    def host_name(self) -> str:
        """Its name where that can be one of a host, else its id."""
        is_host_name = re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", self.name.lower())
        return self.name.lower() if is_host_name else self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """An image. `stack` is itself and what it stands on, down to the base; `recipe` is a base's checksum."""

    id: str
    name: str
    token: str
    stack: tuple[str, ...]
    created_at: str
    tags: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    recipe: str = ""


_Record = TypeVar("_Record", MachineRecord, ImageRecord)


def new_id(prefix: str) -> str:
    """Return an id that nothing has."""
    return f"{prefix}-{secrets.token_hex(_MACHINE_ID_BYTES)}"


def new_uuid() -> str:
    """Return a random UUID as systemd writes them."""
    return str(uuid.uuid4())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object a file holds; `None` where there is no file, or none that can be read as one."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, Any], *, mode: int = 0o600) -> None:
    """Write an object whole or not at all."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, mode), "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ProviderUnavailable(f"could not write {path}: {error.strerror}") from error


def try_lock(path: Path) -> int | None:
    """Lock a file and return its descriptor, whose end ends the lock; `None` while somebody has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def is_locked(path: Path) -> bool:
    """Whether somebody has the lock of a file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at once don't take each other for the owner.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def locked(path: Path, *, limit_s: float = _LOCK_LIMIT_S) -> Iterator[int]:
    """Hold the lock of a file, waiting for it up to a limit; yields its descriptor.

    Raises: ProviderUnavailable.
    """
    deadline = clock.Deadline.after(limit_s)
    while (handle := try_lock(path)) is None:
        if deadline.is_passed:
            raise ProviderUnavailable(f"another command has held {path} for {limit_s:g} s; try again later")
        clock.sleep(0.02)
    try:
        yield handle
    finally:
        os.close(handle)


class State:
    """The folders under `local_dir`, which only root may enter: images hold what their users put in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images, self.machines = root / "images", root / "machines"

    def create(self) -> None:
        """Make the folders that are missing."""
        for path in (self.root, self.images, self.machines):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ProviderError(f"could not make {path} (setting local_dir): {error.strerror}") from error

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of all that is here; for short moments only."""
        self.create()
        with locked(self.root / "lock"):
            yield

    def machine_dir(self, machine_id: str) -> Path:
        """Return a machine's folder; the id is checked, as it becomes a path."""
        return self.machines / _checked(machine_id)

    def image_dir(self, image_id: str) -> Path:
        """Return an image's folder; the id is checked, as it becomes a path."""
        return self.images / _checked(image_id)

    def machine(self, machine_id: str) -> MachineRecord | None:
        """Return a machine's record, `None` when there is none."""
        return _record(MachineRecord, self.machine_dir(machine_id) / "machine.json")

    def image(self, image_id: str) -> ImageRecord | None:
        """Return an image's record, `None` when there is none."""
        return _record(ImageRecord, self.image_dir(image_id) / "image.json")

    def machine_records(self, *, is_making: bool = False) -> list[MachineRecord]:
        """Return the records of all machines; with `is_making` those being made as well."""
        return _records(MachineRecord, self.machines, "machine.json", is_making)

    def image_records(self, *, is_making: bool = False) -> list[ImageRecord]:
        """Return the records of all images; with `is_making` those being made as well."""
        return _records(ImageRecord, self.images, "image.json", is_making)

    @contextmanager
    def making(self, kind: Kind, record: MachineRecord | ImageRecord) -> Iterator[tuple[Path, int]]:
        """Make a thing in a folder of its own; yields the folder and the lock that says its maker lives.

        The body fills it and ends with `finish`; else all of it is removed. The caller holds no lock, or the state's.
        """
        folder = self.root / kind / f"{MAKING}{_checked(record.id)}"
        folder.mkdir(mode=0o700)
        with locked(folder / "lock") as lock:
            try:
                write_json(folder / RECORD_NAMES[kind], dataclasses.asdict(record))
                yield folder, lock
            finally:
                remove_tree(folder)

    def finish(self, kind: Kind, folder: Path, **known: object) -> Path:
        """Put a made thing in its place, with what is `known` of it by now in its record."""
        if known:
            name = RECORD_NAMES[kind]
            write_json(folder / name, {**(read_json(folder / name) or {}), **known})
        place = self.root / kind / folder.name.removeprefix(MAKING)
        try:
            folder.rename(place)
        except OSError as error:
            raise ProviderUnavailable(f"could not put {place} in its place: {error.strerror}") from error
        return place

    def abandoned(self) -> list[tuple[Path, Mapping[str, str]]]:
        """Return folders whose maker has died, with their tags. Hold the lock: a new one is not locked at once."""
        found = list[tuple[Path, Mapping[str, str]]]()
        for kind, name in RECORD_NAMES.items():
            for folder in sorted((self.root / kind).glob(f"{MAKING}*")):
                if not is_locked(folder / "lock"):
                    tags = (read_json(folder / name) or {}).get("tags", {})
                    found.append((folder, tags if isinstance(tags, dict) else {}))
        return found


RECORD_NAMES: Mapping[Kind, str] = {"images": "image.json", "machines": "machine.json"}


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; nothing when it is gone.

    Raises: ProviderUnavailable when something could not be removed.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():  # somebody else removes it too
            raise ProviderUnavailable(f"could not remove {path}: it changes; try again") from None
    except OSError as error:
        raise ProviderUnavailable(f"could not remove {path}: {error}") from error


def instant(text: str) -> datetime | None:
    """Read an instant of a record."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _checked(thing_id: str) -> str:
    if not _ID.fullmatch(thing_id):
        raise ProviderError(f"{thing_id[:80]!r} is no id of a local machine or image")
    return thing_id


def _records(kind: type[_Record], folder: Path, name: str, is_making: bool) -> list[_Record]:
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    wanted = [path for path in paths if is_making or not path.name.startswith(".")]
    return [record for path in wanted if (record := _record(kind, path / name))]


def _record(kind: type[_Record], path: Path) -> _Record | None:
    value = read_json(path)
    if value is None:
        return None
    known = {each.name for each in dataclasses.fields(kind)}
    try:
        return kind(**{**{k: v for k, v in value.items() if k in known}, "stack": tuple(value["stack"])})
    except (KeyError, TypeError) as error:
        raise ProviderError(f"{path} is no record of this version: {error}") from error

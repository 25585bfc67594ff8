"""What keeps this server from building well, looked at before each intake.

Owns the limits' meaning and the words about them. Knows nothing of databases, Redis or the spool: what it
can't see on the machine it asks of `Probes`. A server that can't build well takes nothing and says why; what
runs goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agent import clock
from agent.config import Settings

HOLD_FILE = "hold"
# A tenth above the limit ends a shortage: a server at its limit would otherwise take a build, lose the space
# to it, refuse, get it back, and flap with every build.
_RECOVERY = 1.1
# The spool slows the running steps down at its limit. With the last fifth kept for them, a new build is
# not taken only to be slowed at once.
_SPOOL_SHARE = 0.8
_HOLD_TEXT_BYTES = 500


@dataclass(frozen=True, slots=True)
class Reason:
    """Why nothing is taken.

    `code` is one of disk, inodes, read_only, directory, memory, clock_database, clock_redis, spool, hold;
    `text` says what, how much, the limit and what to do, in one line.
    """

    code: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """What only others know. Each must return a value it already has: it is asked with a lock held.

    The skews are a server's clock minus ours in seconds, None while nothing is known (which is no reason
    here: whoever can't reach the server says so).
    """

    database_skew_s: Callable[[], float | None]
    redis_skew_s: Callable[[], float | None]
    spool_bytes: Callable[[], int]


@dataclass(slots=True)
class _FileSystem:
    """One file system under our directories; `names` says which, so that a full one is one reason."""

    shown: Path
    status: os.statvfs_result
    names: list[str] = field(default_factory=list)


class Preflight:
    """The checks, with memory for their hysteresis. Safe to share between the slots' threads."""

    def __init__(
        self,
        settings: Settings,
        probes: Probes,
        *,
        cache_s: float = 1.0,
        meminfo: Path = Path("/proc/meminfo"),
    ) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            cache_s: how long an answer is given again; 0 looks each time.
            meminfo: where the kernel says how much memory is available.
        """
        self._settings = settings
        self._probes = probes
        self._cache_s = cache_s
        self._meminfo = meminfo
        self._directories = {
            "workspaces": settings.workspace_dir,
            "spool": settings.spool_dir,
            "state": settings.state_dir,
        }
        self._lock = threading.Lock()
        self._short = set[str]()  # what is below its limit and has not recovered
        self._fresh = clock.Deadline.after(0)
        self._reasons = list[Reason]()

    def check(self) -> list[Reason]:
        """Return every reason not to take a build, the operator's hold first; none means go."""
        with self._lock:
            if self._fresh.is_passed:
                found = (self._hold(), self._disks(), self._memory(), self._clocks(), self._spool())
                self._reasons = [reason for part in found for reason in part]
                self._fresh = clock.Deadline.after(self._cache_s)
            return list(self._reasons)

    def _hold(self) -> Iterator[Reason]:
        path = self._settings.state_dir / HOLD_FILE
        try:
            with path.open("rb") as file:
                text = " ".join(file.read(_HOLD_TEXT_BYTES).decode("utf-8", errors="replace").split())
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:  # a hold that can't be read holds all the same
            text = str(error.strerror)
        yield Reason("hold", f"held by {path}: {text or 'no reason given'}; remove the file to go on")

    def _disks(self) -> Iterator[Reason]:
        systems = dict[int, _FileSystem]()
        for name, path in self._directories.items():
            try:
                device = os.stat(path).st_dev  # noqa: PTH116 - on the way of each intake
                system = systems.get(device) or systems.setdefault(
                    device, _FileSystem(path, os.statvfs(path))
                )
            except OSError as error:
                advice = "create it, and give it to the agent's user"
                yield Reason("directory", f"{name} directory {path}: {error.strerror}; {advice}")
                continue
            system.names.append(name)
        for device, system in systems.items():
            yield from self._disk(device, system)

    def _disk(self, device: int, system: _FileSystem) -> Iterator[Reason]:
        status, where = system.status, f"{system.shown} ({', '.join(system.names)})"
        if status.f_flag & os.ST_RDONLY:  # what ext4 does to a disk with errors
            yield Reason(
                "read_only", f"{where} is mounted read-only; see the kernel's log, replace the server"
            )
        # f_bavail and f_favail leave out what is reserved for root, which builds can't have.
        free_bytes, needed_bytes = status.f_bavail * status.f_frsize, self._settings.min_free_bytes
        if self._is_short(f"disk {device}", free_bytes, needed_bytes):
            shortage = _shortage(_size(free_bytes), needed_bytes, _size)
            yield Reason(
                "disk", f"{shortage} on {where}; remove workspaces and caches, or give it a larger disk"
            )
        needed_count = self._settings.min_free_inodes
        # File systems without a fixed number of inodes (btrfs) say 0 of 0.
        if status.f_files and self._is_short(f"inodes {device}", status.f_favail, needed_count):
            shortage = _shortage(f"{status.f_favail} inodes", needed_count, str)
            yield Reason("inodes", f"{shortage} on {where}; remove caches of many small files")

    def _memory(self) -> Iterator[Reason]:
        available, needed = _available_bytes(self._meminfo), self._settings.min_free_memory_bytes
        if available is not None and self._is_short("memory", available, needed):
            advice = "see what uses it, lower slots, or take a larger server"
            yield Reason("memory", f"{_shortage(_size(available) + ' of memory', needed, _size)}; {advice}")

    def _clocks(self) -> Iterator[Reason]:
        limit_s = self._settings.max_clock_skew_s
        for name, probe in (("database", self._probes.database_skew_s), ("redis", self._probes.redis_skew_s)):
            skew_s = probe()
            if skew_s is None or not self._is_over(f"clock {name}", abs(skew_s), limit_s):
                continue
            way = "behind" if skew_s > 0 else "ahead of"
            advice = "see that the time service runs here (timedatectl) and there"
            text = (
                f"the clock is {abs(skew_s):.1f} s {way} the clock of {name}, limit {limit_s:g} s; {advice}"
            )
            yield Reason(f"clock_{name}", text)

    def _spool(self) -> Iterator[Reason]:
        used, limit = self._probes.spool_bytes(), int(self._settings.spool_limit_bytes * _SPOOL_SHARE)
        if self._is_over("spool", used, limit):
            text = f"{_size(used)} of output wait for the database, limit for a new build {_size(limit)}"
            yield Reason("spool", f"{text}; see that the database is up and keeps pace")

    def _is_short(self, what: str, value: float, limit: float) -> bool:
        """Compare with a lower limit; what was short has to be a tenth above it to be enough again."""
        return self._remember(what, value < (limit * _RECOVERY if what in self._short else limit))

    def _is_over(self, what: str, value: float, limit: float) -> bool:
        """Compare with an upper limit; what was over has to be as far below it to be good again."""
        return self._remember(what, value > (limit / _RECOVERY if what in self._short else limit))

    def _remember(self, what: str, is_bad: bool) -> bool:
        (self._short.add if is_bad else self._short.discard)(what)
        return is_bad


def _available_bytes(meminfo: Path) -> int | None:
    """Read MemAvailable: what new work can have without swapping, caches that can go included.

    psutil reads the same line, and 40 others, and takes ten times as long.
    """
    try:
        found = meminfo.read_bytes().partition(b"MemAvailable:")[2].split(maxsplit=1)
        return int(found[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _shortage(free: str, limit: int, show: Callable[[int], str]) -> str:
    return f"{free} free, limit {show(limit)} (again from {show(int(limit * _RECOVERY))})"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"

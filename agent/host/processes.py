"""Process trees as /proc shows them, and signals that hit only the process they were meant for.

Owns every look into /proc/PID that the step killer and the sweep after a crash need. Knows nothing of steps
or builds. Each listing is a snapshot: a tree that forks while it is read may have grown since, so a killer
lists and kills until a listing is empty, and joins the ways of finding (tree, session, environment, mark),
because each of them alone is left by somebody: a double fork leaves the tree, setsid the session, `env -i`
the environment, and a mark whoever takes the trouble (`ulimit -x`).
"""

from __future__ import annotations

import functools
import os
import resource
import secrets
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from agent import clock, log
from agent.errors import AgentError, AgentFailed

_log = log.get(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# asm-generic/resource.h. The kernel has counted no file locks since 2.4.25, yet every process inherits the
# limit through fork, exec, setsid and a change of user, and its own environment has no say in it.
_RLIMIT_LOCKS = 10
_MARK_BITS = 62
_spawning = threading.Lock()
_READ_BYTES = (
    32 * 1024
)  # most environments in one read; below glibc's mmap threshold, so no page faults each time
# A process can go away between any two looks at it; ESRCH comes from a file that was opened before it went.
_GONE = (FileNotFoundError, ProcessLookupError)
_PF_EXITING = 0x4  # include/linux/sched.h


class ProcessId(int):
    """A process id that knows when its process began, so that `kill` tells it from a later one.

    `started_ticks` is the start time since boot in clock ticks (field 22 of /proc/PID/stat).
    """

    started_ticks: int

    def __new__(cls, pid: int, started_ticks: int) -> ProcessId:
        """Join a number and a start time; it compares and hashes as the number."""
        made = super().__new__(cls, pid)
        made.started_ticks = started_ticks
        return made


class _Stat(NamedTuple):
    state: bytes
    parent: int
    session: int
    threads: int
    started_ticks: int

    @property
    def is_alive(self) -> bool:
        # A leader thread that has ended shows as a zombie while the other threads run on.
        return self.state not in (b"Z", b"X") or self.threads > 1


def set_child_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants; holds for all its threads.

    Raises: AgentFailed when the kernel refuses: a killer without it would lose double-forked daemons.
    """
    import ctypes  # only here: a tenth of the agent's start-up time otherwise

    libc = ctypes.CDLL(None, use_errno=True)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, one, none, none, none) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise AgentFailed(
            f"prctl(PR_SET_CHILD_SUBREAPER) failed: {reason}; "
            "it needs Linux 3.4 and a seccomp filter that allows prctl"
        )


def set_oom_score_adj(pid: int, value: int) -> bool:
    """Set how eagerly the kernel ends `pid` when memory is out: -1000 (never) to 1000 (first).

    Returns: False when the process is gone.
    Raises: ValueError outside the range; AgentError when it is not ours to set (lowering needs
        CAP_SYS_RESOURCE).
    """
    if not -1000 <= value <= 1000:
        raise ValueError(f"oom_score_adj must lie in -1000..1000, not {value}")
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(value), encoding="ascii")
    except _GONE:
        return False
    except PermissionError as error:
        # The files of one that has ended and isn't reaped are root's (proc(5), /proc/pid): a step of a millisecond.
        if _has_ended(pid):
            return False
        raise AgentError(
            f"can't set oom_score_adj of process {pid} to {value}: {error.strerror}; "
            "the process belongs to another user, or lowering it needs CAP_SYS_RESOURCE"
        ) from error
    return True


def descendants(pid: int) -> list[int]:
    """List the living descendants of `pid`, parents before children, itself left out.

    Each is a `ProcessId`. A process whose parent has ended is no longer below `pid` but below the nearest
    subreaper; look for it there, by session or by environment.
    """
    children_of = _children if _has_children_files() else _children_by_stat()
    seen, todo, found = {pid}, [pid], list[int]()
    for parent in todo:  # grows while it is walked: breadth first
        for child in children_of(parent):
            if child in seen:
                continue
            seen.add(child)
            todo.append(child)  # a zombie leader can still have living threads with children
            if there := living(child):
                found.append(there)
    return found


def by_environment(marker: bytes) -> list[int]:
    """List the living processes whose environment at exec held the whole entry `marker` (b"NAME=value").

    Each is a `ProcessId`; this process is left out. Needs the right to read their environment: the same user
    or CAP_SYS_PTRACE; others are passed over.

    Raises: ValueError for a marker that is not one whole entry, because a part of one would hit strangers.
    """
    name, equals, value = marker.partition(b"=")
    if not (name and equals and value) or b"\0" in marker:
        raise ValueError(f"a marker is one whole environment entry, NAME=value, not {marker!r}")
    entry, here = b"\0" + marker + b"\0", os.getpid()
    found = list[int]()
    for pid in _all_pids():
        if pid == here or not _has_entry(pid, entry):
            continue
        # Looked at again after its start time is known: the pair then belongs to one process.
        if (there := living(pid)) and _has_entry(pid, entry):
            found.append(there)
    return found


@contextmanager
def marking() -> Iterator[int]:
    """Mark what is started inside, and whatever that will start, with one number; `by_mark` finds them all.

    A mark outlasts what an environment does not: `env -i`, su, a daemon that begins with a clean slate; and it is
    there before the first instruction, so that nothing can be too quick for it. This process wears the mark for
    that moment, which is why whatever else it starts has to be started inside `unmarked`.
    """
    with _spawning:
        soft, hard = resource.getrlimit(_RLIMIT_LOCKS)
        # The soft limit, which needs no right to change; below a hard one that somebody has set.
        ceiling = 1 << _MARK_BITS if hard == resource.RLIM_INFINITY else hard
        number = ceiling // 2 + secrets.randbelow(max(1, ceiling // 2))
        resource.setrlimit(_RLIMIT_LOCKS, (number, hard))
        try:
            yield number
        finally:
            resource.setrlimit(_RLIMIT_LOCKS, (soft, hard))


@contextmanager
def unmarked() -> Iterator[None]:
    """Start a process that belongs to no step."""
    with _spawning:
        yield


def by_mark(number: int) -> list[int]:
    """List the living processes that carry a mark, each a `ProcessId`; those of other users only for root."""
    found, here = list[int](), os.getpid()
    for pid in _all_pids():
        # Looked at again after its start time is known: the pair then belongs to one process.
        if pid != here and _has_mark(pid, number) and (there := living(pid)) and _has_mark(pid, number):
            found.append(there)
    return found


def session_members(sid: int) -> list[int]:
    """List the living members of session `sid`, the leader included, each a `ProcessId`.

    The number is safe from reuse while the session has a member or its leader is not yet waited for; ask
    before the leader is reaped, or compare start times.
    """
    found = list[int]()
    for pid in _all_pids():
        # One system call without a file: four times as fast as reading stat of each process.
        with suppress(OSError):
            if os.getsid(pid) == sid and (stat := _stat(pid)) and stat.session == sid and stat.is_alive:
                found.append(ProcessId(pid, stat.started_ticks))
    return found


def children_of_self() -> list[int]:
    """List the children of this process, of all its threads, zombies and adopted orphans included."""
    here = os.getpid()
    return list((_children if _has_children_files() else _children_by_stat())(here))


def living(pid: int) -> ProcessId | None:
    """Return a process by its number, with what tells it from every other that has it; `None` for one that has ended."""
    stat = _stat(pid)
    return ProcessId(pid, stat.started_ticks) if stat and stat.is_alive else None


def alive(pids: Iterable[int]) -> list[int]:
    """Return those of `pids` that still live; a `ProcessId` whose number another process has does not."""
    return [pid for pid in pids if _is_same(pid, _stat(pid))]


def kill(pids: Iterable[int], sig: int) -> int:
    """Send `sig` to each process and return how many it was sent to.

    The dead, zombies and processes of others are passed over, the last with a log line. A `ProcessId` whose
    number belongs to another process by now is passed over too: the pidfd is opened first and the start time
    read afterwards, so whatever dies in between, the signal goes to the process that was listed or nowhere. A
    plain int carries no start time and is only safe for a child that nobody has waited for.

    Raises: ValueError, before anything is sent, for a process group, init or this process.
    """
    targets = list(dict.fromkeys(pids))
    wrong = [int(pid) for pid in targets if pid <= 1 or pid == os.getpid()]
    if wrong:
        raise ValueError(f"not a process that may be killed: {wrong}")
    return sum(_send(pid, sig) for pid in targets)


_reap_lock = threading.Lock()
_zombies_since: dict[
    tuple[int, int], float
] = {}  # (pid, start) -> first seen; the children are per process too


def reap_orphans(known: Collection[int], *, grace_s: float = 1.0) -> list[int]:
    """Wait for adopted zombies, never blocking, and return the ids that are gone now.

    A zombie in `known` is left to its owner. The kernel does not tell an adopted child from one that a Popen
    in another thread waits for, and a Popen robbed of its status reports exit code 0. So a zombie is only
    taken when two calls at least `grace_s` apart found it: an owner that waits has collected it long before.
    Call it about once a second; pass `grace_s=0` only where nothing else in the process spawns.
    """
    with _reap_lock:
        now_mono = clock.mono()
        reaped, waiting = list[int](), dict[tuple[int, int], float]()
        for pid in children_of_self():
            stat = _stat(pid)
            if pid in known or stat is None or stat.state != b"Z":
                continue
            key = (pid, stat.started_ticks)
            since_mono = _zombies_since.get(key, now_mono)
            if now_mono - since_mono >= grace_s and _collect(pid):
                reaped.append(pid)
            else:
                waiting[key] = since_mono
        _zombies_since.clear()
        _zombies_since.update(waiting)
        return reaped


def _collect(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # its owner was faster
        return False


def _send(pid: int, sig: int) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _is_same(pid, _stat(pid)):
            return False
        signal.pidfd_send_signal(handle, sig)
    except ProcessLookupError:
        return False
    except PermissionError:
        _log.warning("process.kill_refused", "it belongs to another user", pid=int(pid), signal=int(sig))
        return False
    finally:
        os.close(handle)
    return True


def _is_same(pid: int, stat: _Stat | None) -> bool:
    if stat is None or not stat.is_alive:
        return False
    return not isinstance(pid, ProcessId) or pid.started_ticks == stat.started_ticks


def _has_entry(pid: int, entry: bytes) -> bool:
    environment = _read(f"/proc/{pid}/environ")
    # The search over raw bytes comes first: it throws nearly all out before anything is copied.
    return entry[1:-1] in environment and entry in b"\0" + environment + b"\0"


def _has_mark(pid: int, number: int) -> bool:
    with suppress(OSError):
        return resource.prlimit(pid, _RLIMIT_LOCKS)[0] == number
    return False


def _stat(pid: int) -> _Stat | None:
    data = _read(f"/proc/{pid}/stat")
    if not data:
        return None
    # The name may hold blanks and brackets: the fields are counted from the last bracket, so [0] is field 3.
    fields = data[data.rindex(b")") + 2 :].split()
    return _Stat(fields[0], int(fields[1]), int(fields[3]), int(fields[17]), int(fields[19]))


def _has_ended(pid: int) -> bool:
    # Field 9 of proc(5)'s stat; the flag is set before the state says so.
    data = _read(f"/proc/{pid}/stat")
    fields = data[data.rfind(b")") + 2 :].split()
    return len(fields) < 7 or bool(int(fields[6]) & _PF_EXITING) or fields[0] in (b"Z", b"X")


@functools.cache
def _has_children_files() -> bool:
    return Path("/proc/thread-self/children").exists()  # CONFIG_PROC_CHILDREN


def _children(pid: int) -> list[int]:
    """Read the children of each thread of `pid`; one missed because a sibling just ended comes next time."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names, and twice as fast as Path
    except _GONE:
        return []
    found = list[int]()
    for thread in threads:
        found.extend(map(int, _read(f"/proc/{pid}/task/{thread}/children").split()))
    return found


def _children_by_stat() -> Callable[[int], list[int]]:
    """Read the parent of every process once, for kernels that do not list children."""
    table = dict[int, list[int]]()
    for pid in _all_pids():
        if stat := _stat(pid):
            table.setdefault(stat.parent, []).append(pid)
    return lambda pid: table.get(pid, [])


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - as above


def _read(path: str) -> bytes:
    """Read a file under /proc whole; empty when the process is gone or not ours to look into."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (*_GONE, PermissionError):
        return b""
    try:
        data = part = os.read(handle, _READ_BYTES)
        while part and (len(part) == _READ_BYTES or path.endswith("children")):
            # The kernel gives a list of children by the page, so only an empty read is its end.
            part = os.read(handle, _READ_BYTES)
            data += part
    except (*_GONE, PermissionError):
        return b""
    finally:
        os.close(handle)
    return data

"""Who works at a bake: a session with a heartbeat, so that one at a time does, and how it is told that one is dead.

The owner registers as a server that takes no builds. Its heartbeat is counted, as every server's is: whoever wants to
take a bake over sees it stand still for a whole lease, by the own clock; on the same machine it is enough to see that
the process is gone.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent import __version__, clock, log
from agent.clock import Deadline
from agent.errors import AgentError, QueueUnavailable, StateConflict, StoreUnavailable
from agent.host import processes
from agent.model.build import AttemptRef
from agent.model.image import Bake, Owner
from agent.model.server import Identity, Registration, ServerState
from agent.queue import lease
from agent.queue.carrier import Carrier
from agent.store import attempts, bakes, orders, servers
from agent.store.engine import Store

_log = log.get("bake")


class BakeCancelled(AgentError):
    """Somebody has cancelled the bake."""

    exit_code = 1


class BakeTaken(AgentError):
    """Another works at the bake, or this process was silent for so long that it is taken for dead."""

    exit_code = 73


def this_process() -> dict[str, Any]:
    """Return what tells this process from every other that ever was: boot, namespace, number and start."""
    return _process(os.getpid()) or {}


def is_gone(process: Mapping[str, Any]) -> bool:
    """Whether a process is known to have ended; not known of one on another machine, or of another namespace."""
    mine = this_process()
    if not mine or any(process.get(key) != mine[key] for key in ("boot", "namespace")):
        return False
    return _process(int(process["pid"])) != dict(process)


def _process(pid: int) -> dict[str, Any] | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None
    found = processes.living(pid)
    if found is None:
        return None
    return {"boot": boot, "namespace": namespace, "pid": int(found), "start": found.started_ticks}


def await_death(store: Store, bake: Bake, *, lease_s: float, tell: Callable[[str], None]) -> None:
    """Return when nobody works at a bake.

    Raises: StateConflict when somebody does, and lives.
    """
    if bake.owner_beat is None or is_gone(bake.owner_process):
        return
    tell(f"bake {bake.id} is {bake.owner_name}'s; waiting {lease_s:g} s for a sign of life")
    deadline, seen = Deadline.after(lease_s), (bake.session, bake.owner_beat)
    while not deadline.is_passed:
        clock.sleep(0.2)
        now = bakes.get(store, bake.id)
        if now.owner_beat is None:
            return
        if (now.session, now.owner_beat) != seen:
            raise StateConflict(f"bake {bake.id} goes on: {now.owner_name} works at it")


class Ownership:
    """One life at one bake: takes it, beats, and says when it is over."""

    def __init__(
        self, store: Store, carrier: Carrier, bake: Bake, *, version: str, heartbeat_s: float, lease_s: float
    ) -> None:
        self._store = store
        self._carrier = carrier
        self._bake = bake
        self._version = version
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._ended = threading.Event()
        self._fault: AgentError | None = None
        self._count = 0
        self._thread: threading.Thread | None = None
        self.session = uuid.uuid4().hex

    def take(self, *, by: str) -> AttemptRef:
        """Become the owner; the former one must be dead (`await_death`). Raises: StateConflict."""
        server_id = bakes.server_of(self._bake.id)
        servers.register(
            self._store,
            Registration(
                identity=Identity(id=server_id, name=f"bake-{self._version}"),
                session=self.session,
                slots=1,
                queues=[],
                tags={"bake": self._bake.id},
                agent_version=__version__,
                lease_s=self._lease_s,
            ),
        )
        why = "whoever worked at the bake was killed or cut off"
        attempts.close_orphans(self._store, server_id=server_id, session=self.session, why=why)
        owner = Owner(session=self.session, name=f"{by}, process {os.getpid()}", process=this_process())
        ref = bakes.take(self._store, self._bake.id, owner, by=by)
        self._beat()
        self._thread = threading.Thread(target=self._run, name="bake-heartbeat", daemon=True)
        self._thread.start()
        return ref

    def check(self) -> None:
        """Raise what ends this life, if something does: BakeCancelled or BakeTaken."""
        if self._fault is not None:
            raise self._fault

    def end(self) -> None:
        """Stop beating and sign off."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(10)
        with contextlib.suppress(AgentError):
            servers.leave(
                self._store,
                server_id=bakes.server_of(self._bake.id),
                session=self.session,
                state=ServerState.STOPPED,
                reason="the bake's command has ended",
            )

    def _run(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                self._beat()
            except StoreUnavailable as error:
                # Nobody can take the bake over either while the database is away.
                _log.warning("bake.beat_missed", str(error), bake=self._bake.id)
            except Exception as error:  # noqa: BLE001 - a heartbeat that ends unseen would leave two owners
                _log.exception("bake.beat_failed", bake=self._bake.id)
                self._fault = BakeTaken(f"the heartbeat of bake {self._bake.id} failed: {error}")
                return

    def _beat(self) -> None:
        self._count += 1
        with contextlib.suppress(QueueUnavailable):
            lease.beat(self._carrier.connection, self.session, self._count, lease_s=self._lease_s)
        reply = servers.beat(
            self._store,
            server_id=bakes.server_of(self._bake.id),
            session=self.session,
            state=ServerState.DRAINING,
            reason=f"bakes image {self._version}; takes no builds",
            status={},
        )
        if not reply.is_current:
            self._fault = BakeTaken(
                f"another works at bake {self._bake.id} now, or this one was taken for dead"
            )
        for order in reply.orders:
            orders.done(self._store, order.id, f"a bake takes no orders: build-agent cancel {self._bake.id}")
        for cancellation in reply.cancellations:
            self._fault = BakeCancelled(f"cancelled by {cancellation.by}")

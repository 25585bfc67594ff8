"""The composition root: makes the parts that need to know who the server is, and joins them.

Nothing starts here: `agent.py` starts, watches and stops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agent import __version__, log
from agent.build.artifacts import Artifacts
from agent.build.attempt import AttemptSummary, Shop
from agent.build.cache import Caches
from agent.build.cancel import CancelToken
from agent.build.mirror import Mirrors
from agent.build.secrets import SecretDirectory
from agent.build.workspace import Workspaces
from agent.config import Settings
from agent.daemon.heartbeat import DatabaseHeartbeat, RedisHeartbeat
from agent.daemon.vitals import Vitals
from agent.errors import QueueUnavailable
from agent.host import notices
from agent.host.guardian import Guardian
from agent.host.metadata import MetadataClient
from agent.metrics import machine
from agent.metrics.pump import Pump, open_sinks
from agent.model.build import AttemptRef, Claim
from agent.model.server import Identity, Registration
from agent.output.shipper import Shipper
from agent.queue.carrier import Carrier, Waiter
from agent.queue.connection import connect
from agent.queue.leader import Leader
from agent.queue.listen import Listener, nudge
from agent.queue.names import queues_of_server
from agent.queue.slot import WAIT_S, Slot, SlotPlan
from agent.store import attempts
from agent.store.engine import Store

_log = log.get("agent")


class Parts:
    """Every part of an agent that knows its server. Making it reaches neither database nor Redis.

    Raises: SettingsError when the server's tags and queues don't fit.
    """

    def __init__(
        self,
        vitals: Vitals,
        identity: Identity,
        *,
        guardian: Guardian,
        status: Callable[[], Mapping[str, Any]],
        read_gauges: Callable[[], None],
    ) -> None:
        settings = vitals.settings
        self.vitals = vitals
        self.identity = identity
        self.tags: dict[str, str] = {**identity.host.get("tags", {}), **settings.tags}
        self.queues = queues_of_server(settings.queues, self.tags)
        # One for each slot's claim, and the shipper, the heartbeat and the leader.
        self.store = Store(settings.database_url, pool_size=settings.slots + 3)
        self.carrier = Carrier(connect(settings.redis_url))
        self.pump = self._make_pump(settings, read_gauges)
        self.shop = self._make_shop(settings, guardian)
        self.shipper = Shipper(
            spool=vitals.spool,
            store=self.store,
            metrics=vitals.metrics,
            rejected_dir=settings.state_dir / "rejected",
            on_ended=self._attempt_ended,
        )
        self.slots = [Slot(self._plan_slot(index)) for index in range(settings.slots)]
        self.heartbeat = DatabaseHeartbeat(
            store=self.store,
            registration=self.registration,
            vitals=vitals,
            slots=self.slots,
            status=status,
            requeue=self.requeue,
        )
        self.redis_heartbeat = RedisHeartbeat(carrier=self.carrier, vitals=vitals, slots=self.slots)
        self.leader = Leader(
            store=self.store,
            carrier=self.carrier,
            metrics=vitals.metrics,
            lease_s=settings.lease_s,
            sweep_s=settings.sweep_s,
            session=lambda: vitals.lease.session,
        )
        self.leader.watch_queues(self.queues)
        self._metadata = MetadataClient(settings.metadata_url)

    def make_listener(self, on_nudge: Callable[[], None]) -> Listener:
        """Return the listener, which wakes the heartbeat."""
        return Listener(
            self.carrier.connection,
            server_id=self.identity.id,
            workers={slot.name: partial(_obey, self.carrier, slot) for slot in self.slots},
            on_nudge=on_nudge,
        )

    def wake_slots(self) -> None:
        """End the slots' waits for the queue, so that each looks at the gate and at whether it is to stop."""
        self.carrier.wake([slot.waiter for slot in self.slots])

    def end_waits(self) -> None:
        """Wake the loops that wait for something to come, so that they see that they are to stop."""
        self.vitals.spool.wake()
        with contextlib.suppress(QueueUnavailable):
            nudge(self.carrier.connection, self.identity.id)

    def registration(self) -> Registration:
        """Return what the server writes when a life begins."""
        return Registration(
            identity=self.identity,
            session=self.vitals.lease.session,
            slots=len(self.slots),
            queues=self.queues,
            tags=self.tags,
            agent_version=__version__,
            lease_s=self.vitals.settings.lease_s,
        )

    def read_notice(self) -> None:
        """Ask the cloud whether this server is to go, and act on what it says.

        Raises: MetadataUnavailable (retriable): what it said before stands.
        """
        notice = notices.read(self._metadata)
        if self.vitals.condition.notice(notice, margin_s=self.vitals.settings.notice_margin_s):
            if notice is None:
                _log.warning("host.notice_withdrawn", "the server may stay")
            else:
                _log.warning("host.notice", notice.words)

    def requeue(self, result: attempts.EndResult) -> None:
        """Bring a build that waits again to Redis; if that is away, the sweep does it later."""
        if not result.requeued:
            return
        try:
            self.carrier.publish(result.build_id, result.queue)
        except QueueUnavailable as error:
            _log.warning("build.requeue_later", str(error), build=result.build_id)

    def _attempt_ended(self, ref: AttemptRef, result: attempts.EndResult) -> None:
        """Queue again what a former life had in hand; a slot of this life does it itself, after RQ is told."""
        if ref.session != self.vitals.lease.session:
            self.requeue(result)

    def _make_shop(self, settings: Settings, guardian: Guardian) -> Shop:
        return Shop(
            settings=settings,
            store=self.store,
            spool=self.vitals.spool,
            metrics=self.vitals.metrics,
            workspaces=Workspaces(settings.workspace_dir),
            mirrors=Mirrors(
                settings.mirror_dir,
                local_roots=[Path(root) for root in settings.source_roots],
                limit_bytes=settings.mirror_limit_bytes,
            ),
            caches=Caches(settings.cache_dir, settings.cache_limit_bytes),
            artifacts=Artifacts(settings.artifact_dir),
            secrets=SecretDirectory(settings.secrets_dir),
            server_name=self.identity.name,
            life=guardian.life,
            guardian_acted_since=guardian.has_acted_since,
            annotate=self.pump.annotate,
            leaving=self.vitals.leaving,
        )

    def _plan_slot(self, index: int) -> SlotPlan:
        vitals = self.vitals
        return SlotPlan(
            index=index,
            server_id=self.identity.id,
            server_name=self.identity.name,
            queues=self.queues,
            max_attempts=vitals.settings.max_attempts,
            carrier=self.carrier,
            waiter=Waiter(vitals.settings.redis_url, longest_wait_s=WAIT_S),
            store=self.store,
            gate=vitals.gate,
            lease=vitals.lease,
            metrics=vitals.metrics,
            run=partial(_run_attempt, self.shop),
        )

    def _make_pump(self, settings: Settings, read_gauges: Callable[[], None]) -> Pump:
        places = {"workspace": settings.workspace_dir, "state": settings.state_dir}
        sinks = open_sinks(
            librato_url=settings.librato_url,
            librato_user=settings.librato_user,
            librato_token=settings.librato_token,
            statsd_address=settings.statsd_address,
            source=settings.metrics_source or self.identity.name,
        )
        return Pump(
            self.vitals.metrics,
            sinks,
            settings.gauges_interval_s,
            readers=[partial(machine.read, self.vitals.metrics, places), read_gauges],
        )


def _run_attempt(shop: Shop, claim: Claim, token: CancelToken) -> AttemptSummary:
    """Run an attempt; what only builds need, pydantic above all, is loaded with the first (0.15 s, 10 MB)."""
    from agent.build.build import run_attempt

    return run_attempt(shop, claim, token)


def _obey(carrier: Carrier, slot: Slot, command: Mapping[str, Any]) -> None:
    """Answer one of RQ's commands to a worker, which is a slot here."""
    word = command["command"]
    if word == "shutdown":
        # It finishes its build and takes no other; when every slot has been shut, the agent ends.
        slot.stop()
        carrier.wake([slot.waiter])
    elif word == "kill-horse" or (word in ("stop-job", "stop-execution") and slot.holds(command["job_id"])):
        slot.kill_horse()
    else:
        return
    _log.info("slot.rq_command", slot=slot.name, command=word)

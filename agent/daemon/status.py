"""What the agent shows of itself: on the endpoint, in its heartbeat, and as gauges."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent import __version__
from agent.daemon.health import Views
from agent.daemon.parts import Parts
from agent.daemon.vitals import Vitals
from agent.host import former_end
from agent.metrics import catalogue as gauge
from agent.metrics.prometheus import PrometheusExposition
from agent.queue.slot import Slot


class Status:
    """Reads the agent's parts, once there are any; changes nothing."""

    def __init__(self, vitals: Vitals, *, dead: Callable[[], Sequence[str]]) -> None:
        self._vitals = vitals
        self._dead = dead
        self._exposition = PrometheusExposition(vitals.metrics)
        self._former_end = former_end.read(vitals.settings.state_dir)
        self.parts: Parts | None = None

    def views(self) -> Views:
        """Return what the health endpoint serves."""
        return Views(
            dead=self._dead,
            unready=lambda: self._vitals.gate.reasons,
            status=self.full,
            metrics=self._exposition.render,
        )

    def summary(self) -> dict[str, Any]:
        """Return what the heartbeat stores: small, and JSON."""
        vitals = self._vitals
        return {
            "slots": [_slot(slot) for slot in self._slots],
            "busy": vitals.gate.in_hand,
            "spool_bytes": vitals.spool.used_bytes,
            "spool_records": vitals.spool.record_count,
            "uptime_s": round(vitals.uptime_s, 1),
            "load": round(os.getloadavg()[0], 2),
            "is_leading": self.parts is not None and self.parts.leader.is_leading,
            **self._drain(),
        }

    def full(self) -> dict[str, Any]:
        """Return everything, for people and tools on the server."""
        vitals = self._vitals
        identity = None if self.parts is None else self.parts.identity
        verdict = vitals.judge()
        return {
            "version": __version__,
            "server": None if identity is None else {"id": identity.id, "name": identity.name},
            "image": None
            if identity is None
            else {"id": identity.image_id, "version": identity.image_version},
            "host": {} if identity is None else dict(identity.host),
            "session": vitals.lease.session,
            "state": verdict.state,
            "reasons": list(vitals.gate.reasons),
            "wanted": vitals.condition.wanted.kind,
            "former_end": self._former_end,
            "links": {link.name: link.fault or "up" for link in (vitals.database, vitals.redis)},
            "lease_age_s": round(vitals.lease.age_s, 3),
            "dead": list(self._dead()),
            **self.summary(),
        }

    def set_gauges(self) -> None:
        """Set the gauges that are read, not counted."""
        vitals, metrics = self._vitals, self._vitals.metrics
        metrics.set(gauge.BUILDS_RUNNING, sum(slot.claim is not None for slot in self._slots))
        metrics.set(gauge.SLOTS_TOTAL, len(self._slots))
        metrics.set(gauge.SLOTS_BUSY, vitals.gate.in_hand)
        metrics.set(gauge.SPOOL_BYTES, vitals.spool.used_bytes)
        metrics.set(gauge.SPOOL_RECORDS, vitals.spool.record_count)
        metrics.set(gauge.HEARTBEAT_AGE, vitals.lease.age_s)
        metrics.set(gauge.DATABASE_UP, vitals.database.is_up)
        metrics.set(gauge.REDIS_UP, vitals.redis.is_up)
        metrics.set(gauge.AGENT_READY, vitals.gate.is_open)
        metrics.set(gauge.AGENT_UPTIME, vitals.uptime_s)

    @property
    def _slots(self) -> Sequence[Slot]:
        return () if self.parts is None else self.parts.slots

    def _drain(self) -> Mapping[str, Any]:
        """Return when the server will be empty while it drains, expected by what builds usually take."""
        vitals = self._vitals
        if vitals.gate.is_open or not vitals.gate.in_hand:
            return {}
        left_s = [
            max(0.0, slot.typical_s - slot.running_s)
            for slot in self._slots
            if slot.claim is not None and slot.typical_s is not None
        ]
        deadline_s = vitals.condition.drain_deadline.remaining_s
        return {
            "drain": {
                "waits_for": vitals.gate.in_hand,
                "eta_s": round(max(left_s), 1) if left_s else None,
                "deadline_s": None if deadline_s is None else round(deadline_s, 1),
            }
        }


def _slot(slot: Slot) -> dict[str, Any]:
    claim = slot.claim
    if claim is None:
        return {"slot": slot.name, "build": None}
    return {
        "slot": slot.name,
        "build": claim.ref.build_id,
        "attempt": claim.ref.number,
        "project": claim.project,
        "running_s": round(slot.running_s, 1),
    }

"""What the agent knows of itself from its first moment, before it knows who it is or reaches anything."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent import clock
from agent.config import Settings
from agent.daemon.condition import Condition, Verdict
from agent.daemon.link import Link
from agent.host.preflight import Preflight, Probes
from agent.metrics.registry import Metrics
from agent.output.spool import Spool
from agent.queue.gate import Gate
from agent.queue.lease import Lease


class Vitals:
    """Shared by all parts; each member guards itself.

    `leaving` is set when what the database could not be told is left to the next life of the agent. `failure`
    is why the agent ends by itself, `fenced` why it takes nothing until it has registered anew.
    """

    def __init__(self, settings: Settings, *, on_change: Callable[[], None]) -> None:
        self.settings = settings
        self.began_mono = clock.mono()
        self.metrics = Metrics()
        self.condition = Condition(on_change)
        self.gate = Gate()
        self.lease = Lease(settings.lease_s)
        self.database = Link("database")
        self.redis = Link("redis")
        self.spool = Spool(settings.spool_dir, limit_bytes=settings.spool_limit_bytes)
        self.leaving = threading.Event()
        self.failure: str | None = None
        self.fenced: str | None = None
        self.is_suspended = False  # by `rq suspend`
        self._preflight = Preflight(
            settings,
            Probes(
                database_skew_s=lambda: self.database.skew_s,
                redis_skew_s=lambda: self.redis.skew_s,
                spool_bytes=lambda: self.spool.used_bytes,
            ),
        )

    @property
    def uptime_s(self) -> float:
        """Seconds since the agent began."""
        return clock.mono() - self.began_mono

    def judge(self) -> Verdict:
        """Return what the agent does and every reason not to take a build, by what is known now."""
        known = (self.failure, self.fenced, self.database.fault, self.redis.fault)
        faults = [fault for fault in known if fault]
        if self.is_suspended:
            faults.append("suspended through RQ: `rq resume` ends it")
        faults += [reason.text for reason in self._preflight.check()]
        return self.condition.judge(in_hand=self.gate.in_hand, faults=faults)

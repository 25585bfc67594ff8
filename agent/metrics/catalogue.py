"""Every metric of the agent, declared once: name, kind, unit, help and labels.

Owns the names. The dotted name is Librato's and StatsD's; Prometheus' is derived from it. Docs and sinks read
this module, none repeats it. Knows nothing of values or of where they go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agent.model.outcome import Outcome

PROMETHEUS_PREFIX = "build_agent"

# Fine steps up to the bound the project holds itself to, 0.25 s from print to stored; above, only the scale.
_QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
# From an empty step to the default limits of a step (3,600 s) and a build (7,200 s), both as bounds.
_WORK_S = (0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0)
# A free slot takes a build in milliseconds; a full fleet keeps it waiting for hours.
_WAIT_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10800.0)

# Units that are no quantity: a flag (1 or 0) and a bare number; neither belongs into a Prometheus name.
FLAG = "1 or 0"
NUMBER = "number"


# No __eq__: a metric is itself only, and its hash, taken with every count, stays the object's own (30 ns).
@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Metric:
    """What a figure is called and means.

    `known` lists label values that exist from the start with 0, so that a rate sees the first event.
    """

    name: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()
    kind: ClassVar[str] = ""

    @property
    def prometheus_name(self) -> str:
        """The name as `build_agent_<thing>_<unit>`, with `_total` for counters.

        The unit is left out where the thing names it already (`spool.bytes`), and so is a leading `agent.`,
        which the prefix says. A gauge loses its `total`: Prometheus keeps that ending for counters.
        """
        words = self.name.removeprefix("agent.").replace(".", "_").split("_")
        if self.unit not in (FLAG, NUMBER) and self.unit not in words:
            words.append(self.unit)
        if self.kind == Counter.kind:
            words.append("total")
        elif words[-1] == "total":
            words.pop()
        return "_".join([PROMETHEUS_PREFIX, *words])


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Gauge(Metric):
    """A state that goes up and down."""

    kind: ClassVar[str] = "gauge"


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Counter(Metric):
    """Events since the agent's start; only grows."""

    kind: ClassVar[str] = "counter"


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Timing(Metric):
    """Durations. `buckets` are the upper bounds of Prometheus' histogram: seconds, ascending, no infinity."""

    unit: str = "seconds"
    buckets: tuple[float, ...]
    kind: ClassVar[str] = "timing"


# Builds, attempts and steps
BUILDS_RUNNING = Gauge(name="builds.running", unit="builds", help="Builds that run on this server now.")
BUILDS_ENDED = Counter(
    name="builds.ended",
    unit="builds",
    help="Attempts that this server ended, by outcome.",
    labels=("outcome",),
    known=tuple((outcome.value,) for outcome in Outcome),
)
QUEUE_WAIT_SECONDS = Timing(
    name="builds.queue_wait", help="From queued to claimed by this server.", buckets=_WAIT_S
)
BUILD_SECONDS = Timing(
    name="builds.duration", help="From claimed to ended, of one attempt at a build.", buckets=_WORK_S
)
STEP_SECONDS = Timing(name="steps.duration", help="From start to end of one step.", buckets=_WORK_S)
CHECKOUT_SECONDS = Timing(
    name="checkout.duration", help="To fetch and check out the source of one build.", buckets=_WORK_S
)
CLAIM_SECONDS = Timing(
    name="dispatch.claim", help="From a job taken off Redis to its attempt written.", buckets=_QUICK_S
)
ATTEMPTS_INFRASTRUCTURE = Counter(
    name="attempts.infrastructure",
    unit="attempts",
    help="Attempts that the infrastructure ended, not the user's work, by reason.",
    labels=("reason",),
    known=tuple((outcome.value,) for outcome in Outcome if outcome.is_infrastructure),
)
SLOTS_TOTAL = Gauge(name="slots.total", unit="slots", help="Builds that this server runs at once at most.")
SLOTS_BUSY = Gauge(name="slots.busy", unit="slots", help="Slots that hold a build now.")
QUEUE_WAITING = Gauge(
    name="queue.waiting",
    unit="builds",
    help="Builds that wait in a queue this server listens on.",
    labels=("queue",),
)
ORDERS_DONE = Counter(
    name="orders.done",
    unit="orders",
    help="Orders of operators and of the host carried out, by kind.",
    labels=("kind",),
)

# Output
OUTPUT_BYTES = Counter(name="output.bytes", unit="bytes", help="Output of steps, after masking.")
OUTPUT_LINES = Counter(name="output.lines", unit="lines", help="Lines of output of steps.")
OUTPUT_MASKED = Counter(
    name="output.masked", unit="secrets", help="Times that a secret was masked in the output."
)
OUTPUT_LAG_SECONDS = Timing(
    name="output.lag", help="From printed by a step to stored in the database.", buckets=_QUICK_S
)
SPOOL_BYTES = Gauge(name="spool.bytes", unit="bytes", help="Output on local disk that is not stored yet.")
SPOOL_RECORDS = Gauge(
    name="spool.records", unit="records", help="Records in the spool that are not stored yet."
)
SPOOL_STALLS = Counter(
    name="spool.stalls", unit="stalls", help="Times that a full spool made a step wait with its output."
)

# The agent
HEARTBEAT_AGE = Gauge(
    name="heartbeat.age", unit="seconds", help="Since the database last took a heartbeat of this server."
)
DATABASE_UP = Gauge(name="database.up", unit=FLAG, help="Whether the database answers.")
REDIS_UP = Gauge(name="redis.up", unit=FLAG, help="Whether Redis answers.")
AGENT_READY = Gauge(name="agent.ready", unit=FLAG, help="Whether this server takes builds.")
AGENT_UPTIME = Gauge(name="agent.uptime", unit="seconds", help="Since the agent's start.")
START_TO_READY = Gauge(
    name="agent.start_to_ready", unit="seconds", help="From the agent's start to its first readiness."
)
BOOT_TO_READY = Gauge(
    name="server.boot_to_ready",
    unit="seconds",
    help="From the machine's boot to the agent's first readiness.",
)
AGENT_RSS = Gauge(name="agent.rss", unit="bytes", help="Resident memory of the agent, steps not included.")
AGENT_CPU = Counter(
    name="agent.cpu", unit="seconds", help="Processor time of the agent, user and system, steps not included."
)
AGENT_THREADS = Gauge(name="agent.threads", unit="threads", help="Threads of the agent.")
AGENT_DESCRIPTORS = Gauge(name="agent.descriptors", unit="descriptors", help="Open descriptors of the agent.")

# The machine
SERVER_CPU = Gauge(
    name="server.cpu", unit="percent", help="Busy time of all processors since the last reading, 0 to 100."
)
SERVER_LOAD = Gauge(name="server.load", unit=NUMBER, help="Load average over one minute.")
MEMORY_USED = Gauge(
    name="memory.used", unit="bytes", help="Memory of the machine in use, caches not counted."
)
MEMORY_AVAILABLE = Gauge(
    name="memory.available", unit="bytes", help="Memory the machine can give without swapping."
)
DISK_FREE = Gauge(
    name="disk.free",
    unit="bytes",
    help="Space left to the agent's user on the file system of a directory.",
    labels=("place",),
)
DISK_FREE_INODES = Gauge(
    name="disk.free_inodes",
    unit="inodes",
    help="Inodes left on the file system of a directory; absent where it has no fixed number.",
    labels=("place",),
)

# The metrics themselves
VALUES_IGNORED = Counter(
    name="metrics.ignored", unit="values", help="Values left out: not finite, negative or beyond reason."
)
READINGS_DROPPED = Counter(
    name="metrics.dropped",
    unit="readings",
    help="Readings that a sink could not deliver and gave up, by sink.",
    labels=("sink",),
)

CATALOGUE: tuple[Metric, ...] = tuple(
    thing for thing in list(globals().values()) if isinstance(thing, Metric)
)

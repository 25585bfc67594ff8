"""The pump: takes readings from the registry at a steady rhythm and hands them to the sinks.

Owns the rhythm and the guard around each sink. Knows no protocol and, but for opening them, no sink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol, runtime_checkable

from agent import clock, log
from agent.metrics.catalogue import READINGS_DROPPED
from agent.metrics.reading import Reading
from agent.metrics.registry import Metrics

_log = log.get(__name__)


class Sink(Protocol):
    """Where readings go. `publish` only queues: it returns in milliseconds whatever the far end does."""

    @property
    def name(self) -> str:
        """A word for logs and the label `sink`."""

    @property
    def dropped_count(self) -> int:
        """How much was given up since the start."""

    def publish(self, readings: Sequence[Reading], at: datetime) -> None:
        """Queue readings taken at `at`."""

    def close(self, limit_s: float) -> None:
        """Send what is waiting, for at most `limit_s` seconds, and end."""


@runtime_checkable
class Annotator(Protocol):
    """A sink that can also draw an event over its graphs."""

    def annotate(
        self, stream: str, *, title: str, description: str, start_at: datetime, end_at: datetime | None
    ) -> None:
        """Queue an event of the stream `stream`; `end_at` is None while it is not known."""


class Pump:
    """Read, take and hand on, once a cycle. `cycle` and `close` belong to one thread."""

    def __init__(
        self,
        metrics: Metrics,
        sinks: Sequence[Sink],
        interval_s: float,
        *,
        readers: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Take the sinks over: `close` closes them.

        Args:
            readers: called first in each cycle; they set gauges, such as those of machine.py.
        """
        self._metrics = metrics
        self._sinks = tuple(sinks)
        self._readers = tuple(readers)
        self._interval_s = interval_s
        self._due_mono: float | None = None
        self._broken: set[str] = set()

    def cycle(self) -> float:
        """Do one round and return the seconds to wait before the next; never raises over a figure.

        The rhythm is held on monotonic time, so a step of the wall clock moves the stamp of the readings
        only; a round that comes late does not make the following ones hurry.
        """
        now = clock.mono()
        self._round()
        due = now if self._due_mono is None else self._due_mono
        self._due_mono = due + self._interval_s if due + self._interval_s > now else now + self._interval_s
        return max(0.0, self._due_mono - clock.mono())

    def annotate(
        self,
        stream: str,
        *,
        title: str,
        description: str = "",
        start_at: datetime,
        end_at: datetime | None = None,
    ) -> None:
        """Have an event, such as a deployment, drawn over the graphs where a sink can; on any thread."""
        for sink in self._sinks:
            if isinstance(sink, Annotator):
                queue = partial(sink.annotate, stream, title=title, description=description)
                self._guard(f"annotating in {sink.name}", partial(queue, start_at=start_at, end_at=end_at))

    def close(self, limit_s: float) -> None:
        """Send the last readings and close every sink, all within `limit_s` seconds."""
        deadline = clock.Deadline.after(limit_s)
        self._round()
        for sink in self._sinks:
            self._guard(f"closing {sink.name}", partial(sink.close, deadline.remaining_s or 0.0))

    def _round(self) -> None:
        for reader in self._readers:
            self._guard(f"reading {getattr(reader, '__qualname__', repr(reader))}", reader)
        readings, at = self._metrics.take(), clock.utc_now()
        for sink in self._sinks:
            self._guard(f"publishing to {sink.name}", partial(self._hand_on, sink, readings, at))

    def _hand_on(self, sink: Sink, readings: Sequence[Reading], at: datetime) -> None:
        sink.publish(readings, at)
        self._metrics.set_total(READINGS_DROPPED, sink.dropped_count, sink=sink.name)

    def _guard(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - a broken reader or sink costs neither the agent nor the others
            if what not in self._broken:  # once, not every ten seconds
                self._broken.add(what)
                _log.exception("metrics.broken", "%s fails; builds are not touched", what)
        else:
            self._broken.discard(what)


def open_sinks(
    *, librato_url: str, librato_user: str, librato_token: str, statsd_address: str, source: str
) -> list[Sink]:
    """Open the sinks the settings ask for: Librato with a user and a token, StatsD with an address.

    Prometheus is none: it comes and asks (prometheus.py).

    Raises: SettingsError.
    """
    from agent.metrics.statsd import StatsdSink

    sinks: list[Sink] = []
    if statsd_address:
        # First, so that closing it, which takes no time, is not left to the end of a slow Librato.
        sinks.append(StatsdSink(address=statsd_address, source=source))
    if librato_user and librato_token:
        from agent.metrics.librato import LibratoSink

        sinks.append(LibratoSink(url=librato_url, user=librato_user, token=librato_token, source=source))
    return sinks

"""The registry the code counts into: thread-safe, bounded, and about a microsecond a call.

Nothing here knows a sink: a call changes a number under one lock and returns. Readers come for the numbers:
`snapshot` for totals, any number of times (Prometheus), `take` for what happened since the last one (the
pump).
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TypeVar

from agent import log
from agent.metrics.catalogue import CATALOGUE, VALUES_IGNORED, Counter, Gauge, Metric, Timing
from agent.metrics.reading import CounterValue, GaugeValue, Reading, TimingInterval, TimingTotals, Totals

_log = log.get(__name__)

# Larger is a broken reading, not a size: an exbibyte is 1e18. Librato refuses a whole request over one number
# above 1e126; sums and squares of numbers below this stay far under it.
LARGEST = 1e24
# 31 years. Its square times any count stays finite.
LONGEST_S = 1e9
# A label value comes from a queue's name or an enumeration; more than this many are a mistake that would
# otherwise grow memory here and the bill at the sinks.
SERIES_LIMIT = 200
OTHER = "other"
# Enough for a 90th percentile in StatsD; 64 floats a timing are 2 KiB.
SAMPLE_LIMIT = 64

_Key = tuple[str, ...]
_Cell = TypeVar("_Cell")


class _CounterCell:
    __slots__ = ("taken", "total")

    def __init__(self) -> None:
        self.total: float = 0
        self.taken: float = 0


class _TimingCell:
    __slots__ = (
        "bucket_counts", "buckets", "count", "max", "min", "samples", "sum", "sum_squares",
        "taken_count", "taken_sum",
    )  # fmt: skip

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.bucket_counts = [0] * (len(buckets) + 1)
        self.count = 0
        self.sum = 0.0
        self.taken_count = 0
        self.taken_sum = 0.0
        self.start_interval()

    def start_interval(self) -> None:
        self.taken_count += self.count
        self.taken_sum += self.sum
        self.count = 0
        self.sum = 0.0
        self.sum_squares = 0.0
        self.min = LONGEST_S
        self.max = 0.0
        self.samples: list[float] = []

    def observe(self, seconds: float) -> None:
        self.bucket_counts[bisect_left(self.buckets, seconds)] += 1
        self.count += 1
        self.sum += seconds
        self.sum_squares += seconds * seconds
        self.min = min(self.min, seconds)
        self.max = max(self.max, seconds)
        if self.count <= SAMPLE_LIMIT:
            self.samples.append(seconds)
            return
        # Vitter's algorithm R (ACM TOMS 11, 1985): every observation of the interval is kept with
        # equal chance.
        place = int(random.random() * self.count)  # noqa: S311 - a sample, not a secret
        if place < SAMPLE_LIMIT:
            self.samples[place] = seconds


class Metrics:
    """Hold the value of every metric of the catalogue.

    Every method may be called on any thread. A value that is not finite or makes no sense is counted in
    `metrics.ignored` and otherwise left out: a figure never fails the agent. Wrong labels are a mistake in
    the code and raise ValueError at the first call.
    """

    def __init__(self) -> None:
        """Open every series that needs no event to exist: those without labels and with known ones."""
        # One lock for all: held for well under a microsecond, and a reader gets one consistent picture.
        self._lock = threading.Lock()
        self._gauges: dict[Gauge, dict[_Key, float]] = {}
        self._counters: dict[Counter, dict[_Key, _CounterCell]] = {}
        self._timings: dict[Timing, dict[_Key, _TimingCell]] = {}
        self._watches: dict[tuple[Gauge, _Key], Callable[[], float | None]] = {}
        self._broken_watches: set[tuple[Gauge, _Key]] = set()
        for metric in CATALOGUE:
            keys = metric.known if metric.labels else ((),)
            match metric:
                case Gauge():
                    self._gauges[metric] = {}
                case Counter():
                    self._counters[metric] = {key: _CounterCell() for key in keys}
                case Timing():
                    self._timings[metric] = {key: _TimingCell(metric.buckets) for key in keys}

    def set(self, gauge: Gauge, value: float, **labels: str) -> None:
        """Set a gauge. A value that is not finite takes the series away: an old value would be a lie."""
        key = _key(gauge, labels) if labels or gauge.labels else ()
        with self._lock:
            series = self._gauges[gauge]
            if not -LARGEST <= value <= LARGEST:  # false for NaN too
                series.pop(key, None)
                self._counters[VALUES_IGNORED][()].total += 1
            elif key in series:
                series[key] = value
            elif len(series) < SERIES_LIMIT:
                series[tuple(map(str, key))] = value
            else:
                # Gauges of different things do not add up, so there is no sensible "other".
                self._counters[VALUES_IGNORED][()].total += 1

    def forget(self, gauge: Gauge, **labels: str) -> None:
        """Take a gauge's series away, for a thing that is no more or can't be read."""
        key = _key(gauge, labels)
        with self._lock:
            self._gauges[gauge].pop(key, None)
            self._watches.pop((gauge, key), None)

    def watch(self, gauge: Gauge, read: Callable[[], float | None], **labels: str) -> None:
        """Have a gauge read whenever somebody looks, so that an age is never older than the look.

        `read` runs on the reader's thread, must be quick and may return None for "not known". One that raises
        takes the series away.
        """
        with self._lock:
            self._watches[gauge, _key(gauge, labels)] = read

    def add(self, counter: Counter, amount: float = 1, **labels: str) -> None:
        """Let a counter grow by `amount`, 0 or more."""
        key = _key(counter, labels) if labels or counter.labels else ()
        with self._lock:
            if 0 <= amount <= LARGEST:
                series = self._counters[counter]
                cell = series.get(key)
                if cell is None:
                    cell = _open(series, key, _CounterCell)
                cell.total += amount
            else:
                self._counters[VALUES_IGNORED][()].total += 1

    def set_total(self, counter: Counter, total: float, **labels: str) -> None:
        """Let a counter grow to `total`, which somebody else counts; a smaller one changes nothing."""
        key = _key(counter, labels) if labels or counter.labels else ()
        with self._lock:
            if 0 <= total <= LARGEST:
                series = self._counters[counter]
                cell = series.get(key) or _open(series, key, _CounterCell)
                cell.total = max(cell.total, total)
            else:
                self._counters[VALUES_IGNORED][()].total += 1

    def observe(self, timing: Timing, seconds: float, **labels: str) -> None:
        """Record one duration, 0 or more seconds."""
        key = _key(timing, labels) if labels or timing.labels else ()
        with self._lock:
            if 0 <= seconds <= LONGEST_S:
                series = self._timings[timing]
                cell = series.get(key)
                if cell is None:
                    cell = _open(series, key, lambda: _TimingCell(timing.buckets))
                cell.observe(seconds)
            else:
                self._counters[VALUES_IGNORED][()].total += 1

    def snapshot(self) -> list[Totals]:
        """Return every series as it stands since the agent's start; changes nothing."""
        self._look()
        with self._lock:
            readings: list[Totals] = [
                GaugeValue(metric=gauge, labels=key, value=value)
                for gauge, series in self._gauges.items()
                for key, value in series.items()
            ]
            readings += [
                CounterValue(metric=counter, labels=key, total=cell.total)
                for counter, cells in self._counters.items()
                for key, cell in cells.items()
            ]
            readings += [
                TimingTotals(
                    metric=timing,
                    labels=key,
                    count=cell.taken_count + cell.count,
                    sum=cell.taken_sum + cell.sum,
                    bucket_counts=tuple(cell.bucket_counts),
                )
                for timing, spans in self._timings.items()
                for key, cell in spans.items()
            ]
        return readings

    def take(self) -> list[Reading]:
        """Return gauges as they stand, and counters and timings since the last `take`; for the pump alone.

        Left out are timings without an observation and labelled counters that never counted: at Librato every
        series costs, and most outcomes never happen on most servers.
        """
        self._look()
        with self._lock:
            readings: list[Reading] = [
                GaugeValue(metric=gauge, labels=key, value=value)
                for gauge, series in self._gauges.items()
                for key, value in series.items()
            ]
            for counter, cells in self._counters.items():
                for key, cell in cells.items():
                    if cell.total or not key:
                        increase = cell.total - cell.taken
                        readings.append(
                            CounterValue(metric=counter, labels=key, total=cell.total, increase=increase)
                        )
                        cell.taken = cell.total
            for timing, spans in self._timings.items():
                readings += [_interval(timing, key, cell) for key, cell in spans.items() if cell.count]
        return readings

    def _look(self) -> None:
        """Read the watched gauges, outside the lock: a reader may take its own."""
        with self._lock:
            watches = list(self._watches.items())
        for (gauge, key), read in watches:
            try:
                value = read()
            except Exception:  # noqa: BLE001 - foreign code, and only a figure
                value = None
                if (gauge, key) not in self._broken_watches:
                    self._broken_watches.add((gauge, key))
                    _log.exception("metrics.broken", "gauge %s can't be read", gauge.name)
            labels = dict(zip(gauge.labels, key, strict=True))
            if value is not None:
                self.set(gauge, value, **labels)
                continue
            with self._lock:
                self._gauges[gauge].pop(key, None)


def _key(metric: Metric, labels: Mapping[str, str]) -> _Key:
    try:
        if len(labels) == len(metric.labels):
            return tuple([labels[name] for name in metric.labels])
    except KeyError:
        pass  # the error below names both sides
    raise ValueError(f"metric {metric.name} has the labels {list(metric.labels)}, given were {list(labels)}")


def _open(series: dict[_Key, _Cell], key: _Key, make: Callable[[], _Cell]) -> _Cell:
    """Add a series; beyond the limit all further ones share one whose labels are `other`."""
    if len(series) >= SERIES_LIMIT:
        key = (OTHER,) * len(key)
    # As plain strings: an enumeration's member finds them (equal, same hash) but would print differently.
    return series.setdefault(tuple(map(str, key)), make())


def _interval(timing: Timing, key: _Key, cell: _TimingCell) -> TimingInterval:
    interval = TimingInterval(
        metric=timing,
        labels=key,
        count=cell.count,
        sum=cell.sum,
        min=cell.min,
        max=cell.max,
        sum_squares=cell.sum_squares,
        samples=tuple(cell.samples),
    )
    cell.start_interval()
    return interval

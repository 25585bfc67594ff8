"""What the registry hands out: one immutable reading per series.

A series is a metric with one set of label values. Every number in a reading is finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agent.metrics.catalogue import Counter, Gauge, Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class GaugeValue:
    """A gauge as it stands."""

    metric: Gauge
    labels: tuple[str, ...]
    value: float

    @property
    def dotted_name(self) -> str:
        """The metric's name with the label values appended, for sinks that know no labels."""
        return ".".join((self.metric.name, *self.labels))


@dataclass(frozen=True, kw_only=True, slots=True)
class CounterValue:
    """A counter since the agent's start, and what it grew by since the last `take` (0 in a snapshot)."""

    metric: Counter
    labels: tuple[str, ...]
    total: float
    increase: float = 0.0

    @property
    def dotted_name(self) -> str:
        """The metric's name with the label values appended, for sinks that know no labels."""
        return ".".join((self.metric.name, *self.labels))


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingTotals:
    """A timing since the agent's start.

    `bucket_counts` has one count per bucket and one for all above; not cumulated.
    """

    metric: Timing
    labels: tuple[str, ...]
    count: int
    sum: float
    bucket_counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingInterval:
    """A timing between two `take`s; at least one observation.

    `samples` is a fair sample of the observations: all of them while they are few, see
    `registry.SAMPLE_LIMIT`.
    """

    metric: Timing
    labels: tuple[str, ...]
    count: int
    sum: float
    min: float
    max: float
    sum_squares: float
    samples: tuple[float, ...]

    @property
    def dotted_name(self) -> str:
        """The metric's name with the label values appended, for sinks that know no labels."""
        return ".".join((self.metric.name, *self.labels))


Totals: TypeAlias = GaugeValue | CounterValue | TimingTotals
Reading: TypeAlias = GaugeValue | CounterValue | TimingInterval

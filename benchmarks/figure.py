"""Numbers, and what becomes of them: medians, spreads, ratios taken round by round.

Pure arithmetic; knows nothing of what is measured or how it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is measured: rounds of everything, and whether each is cut short for a quick look."""

    rounds: int
    is_quick: bool = False

    def pick(self, whole: int, quick: int) -> int:
        """Return the size of a measurement: `quick` for a quick look."""
        return quick if self.is_quick else whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a number should be: at most or at least `limit`."""

    limit: float
    is_upper: bool

    def is_met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value <= self.limit if self.is_upper else value >= self.limit


def at_most(limit: float) -> Target:
    """Return the target of a number that should be small."""
    return Target(limit=limit, is_upper=True)


def at_least(limit: float) -> Target:
    """Return the target of a number that should be large."""
    return Target(limit=limit, is_upper=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One number of a subject: a sample from each round.

    `unit` is "x" for a ratio. `meaning` says what was measured, from what to what.
    """

    name: str
    unit: str
    samples: Sequence[float]
    meaning: str
    target: Target | None = None

    @property
    def median(self) -> float:
        """The middle of the samples: one round that a busy machine spoiled does not move it."""
        return median(self.samples)

    @property
    def is_met(self) -> bool | None:
        """Whether the median meets the target; `None` without one."""
        return None if self.target is None else self.target.is_met(self.median)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a subject found. `words` stand above the table."""

    words: str
    rows: Sequence[Row]


@dataclass(slots=True)
class Samples:
    """Collects what rounds find, by key."""

    found: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Note one value for each key."""
        for key, value in values.items():
            self.found.setdefault(key, []).append(value)

    def __getitem__(self, key: str) -> list[float]:
        return self.found[key]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours over theirs for each round.

    Both of a round ran within seconds of each other, so what else the machine did at the time is in both; a ratio of
    two medians would compare moments that have nothing to do with each other.

    Raises: ValueError when the rounds don't match.
    """
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values don't exceed: nearest rank.

    Raises: ValueError without values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = max(1, -int(-share * len(ordered) // 1))  # ceil
    return ordered[min(rank, len(ordered)) - 1]

"""The only callers of time: monotonic seconds, UTC instants, deadlines and back-off.

Monotonic time is CLOCK_BOOTTIME: it goes on while a machine is suspended, so a lease that ran out
during a suspend is seen as run out on the first look afterwards.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime


def mono() -> float:
    """Return seconds since boot, never set back, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc_now() -> datetime:
    """Return the wall clock as an aware UTC datetime; for records and people, never for waiting."""
    return datetime.now(UTC)


def sleep(seconds: float) -> None:
    """Sleep; only for loops that nothing has to interrupt."""
    time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time; `None` means never."""

    at_mono: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Make a deadline `seconds` from now; `None` or 0 and below 0 seconds mean never and now."""
        return cls(None if seconds is None else mono() + seconds)

    @property
    def remaining_s(self) -> float | None:
        """Seconds left, 0.0 when passed, `None` for never."""
        return None if self.at_mono is None else max(0.0, self.at_mono - mono())

    @property
    def is_passed(self) -> bool:
        """Whether the deadline lies behind."""
        return self.at_mono is not None and mono() >= self.at_mono

    def earlier(self, other: Deadline) -> Deadline:
        """Return whichever of the two comes first."""
        if self.at_mono is None:
            return other
        if other.at_mono is None:
            return self
        return self if self.at_mono <= other.at_mono else other


def backoff(first_s: float = 0.2, limit_s: float = 15.0) -> Iterator[float]:
    """Yield waits that double up to `limit_s`, each with full jitter in its upper half.

    Source: "Exponential Backoff And Jitter" (AWS Architecture Blog), the equal-jitter form: a floor keeps a
    fleet from hammering a server that has just come back.
    """
    wait_s = first_s
    while True:
        yield wait_s / 2 + random.uniform(0, wait_s / 2)  # noqa: S311 - jitter, not a secret
        wait_s = min(wait_s * 2, limit_s)

"""How attempts and builds end: the outcomes, which of them are the infrastructure's, and their words."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The reason an attempt, a step or a build ended with."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    LOST = "lost"
    PREEMPTED = "preempted"
    REFUSED = "refused"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    OUTPUT_LIMIT = "output_limit"
    INFRASTRUCTURE = "infrastructure"

    @property
    def is_infrastructure(self) -> bool:
        """Whether the system, not the user's work, ended it, so that the system may try again."""
        return self in _INFRASTRUCTURE

    @property
    def is_success(self) -> bool:
        """Whether the user got what was asked for."""
        return self in (Outcome.PASSED, Outcome.SKIPPED)


_INFRASTRUCTURE = frozenset({Outcome.LOST, Outcome.PREEMPTED, Outcome.DISK_FULL, Outcome.INFRASTRUCTURE})


class TimeoutKind(StrEnum):
    """Which limit a `timed_out` step met; stands in the detail of its outcome."""

    NO_OUTPUT = "no-output"
    STEP = "step"
    BUILD = "build"

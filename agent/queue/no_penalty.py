"""RQ's time-outs, switched off: limits of builds are ours."""

from __future__ import annotations

from rq.timeouts import BaseDeathPenalty


class NoDeathPenalty(BaseDeathPenalty):
    """RQ's time-out does nothing: a thread can't be interrupted safely, and every limit of a build is watched,
    on monotonic time, by the thread that runs its steps."""

    def setup_death_penalty(self) -> None:
        """Do nothing."""

    def cancel_death_penalty(self) -> None:
        """Do nothing."""

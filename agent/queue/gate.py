"""Whether this server takes builds, and how many it has in hand.

One lock decides both questions at once: a build is either taken before the gate closed, and then it is in
hand and a drain waits for it, or the gate was closed, and then it goes back to its queue.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from agent import clock


class Gate:
    """Opened and closed by the daemon, passed by slots. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reasons: tuple[str, ...] = ("starting",)
        self._in_hand = 0

    @property
    def is_open(self) -> bool:
        """Whether a slot may take a build."""
        return not self._reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the gate is closed; empty while it is open."""
        return self._reasons

    @property
    def in_hand(self) -> int:
        """How many builds have passed the gate and not come out again."""
        return self._in_hand

    def set_reasons(self, reasons: Sequence[str], *, instead_of: tuple[str, ...] | None = None) -> bool:
        """Close the gate for `reasons`, or open it when there are none; whether that was done.

        Args:
            instead_of: the reasons that were read before judging anew. When others have come since, by `close`,
                nothing changes: the judgement may be older than what it closed for.
        """
        with self._changed:
            if instead_of is not None and self._reasons != instead_of:
                return False
            self._reasons = tuple(reasons)
            self._changed.notify_all()
            return True

    def close(self, reason: str) -> None:
        """Close the gate at once for one more reason; the next `set_reasons` decides anew."""
        with self._changed:
            if reason not in self._reasons:
                self._reasons = (*self._reasons, reason)
            self._changed.notify_all()

    def wait_open(self, timeout_s: float) -> bool:
        """Wait until the gate is open; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._reasons, timeout_s)

    def try_enter(self) -> bool:
        """Pass with one build, if the gate is open; `leave` must follow."""
        with self._changed:
            if self._reasons:
                return False
            self._in_hand += 1
            return True

    def leave(self) -> None:
        """Come out again."""
        with self._changed:
            self._in_hand -= 1
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in hand; whether nothing is."""
        deadline = clock.Deadline.after(timeout_s)
        with self._changed:
            return self._changed.wait_for(lambda: self._in_hand == 0, deadline.remaining_s)

"""The one way to end a running attempt from outside: a token that every process of the attempt watches.

The first word said decides how the attempt ends; a later one can only shorten the grace (a second SIGTERM,
a lease that is about to end). Thread-safe.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from agent.model.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Cancel:
    """Why an attempt is to end, and how long its processes have to clean up; `grace_s` None: the setting's."""

    outcome: Outcome
    detail: str
    grace_s: float | None = None


class CancelToken:
    """Watched by `select` through `fileno()`, which turns readable for good once the token is set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._event = threading.Event()
        self._cancel: Cancel | None = None

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._event_fd

    @property
    def cancel(self) -> Cancel | None:
        """What was said, `None` while nothing was."""
        return self._cancel

    def request(self, outcome: Outcome, detail: str, *, grace_s: float | None = None) -> None:
        """End the attempt with `outcome`; said again, only a shorter grace counts."""
        with self._lock:
            if self._cancel is None:
                self._cancel = Cancel(outcome, detail, grace_s)
            elif grace_s is not None and (self._cancel.grace_s is None or grace_s < self._cancel.grace_s):
                self._cancel = Cancel(self._cancel.outcome, self._cancel.detail, grace_s)
            self._event.set()
            if self._event_fd >= 0:
                os.eventfd_write(self._event_fd, 1)

    def wait(self, timeout_s: float) -> bool:
        """Wait until the token is set; whether it is."""
        return self._event.wait(timeout_s)

    def close(self) -> None:
        """Free the descriptor, after the last process of the attempt has ended."""
        with self._lock:
            os.close(self._event_fd)
            self._event_fd = -1

"""Ctrl-C for commands that watch: heard at once, and acted on where nothing is in the midst of anything.

A KeyboardInterrupt in the midst of a database driver comes out as some other error, or not at all. So the signal
only sets a flag while something is being asked or written, and raises where the command waits. What hangs for
longer than a second, as a database that is frozen does, is interrupted wherever it is.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_S = 1.0


class Interrupt:
    """Used by the main thread."""

    def __init__(self) -> None:
        self.is_pending = False
        self._is_waiting = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear Ctrl-C inside; the former handling is back afterwards."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # Started in the background by a shell that keeps Ctrl-C from us.
            yield
            return
        former = [(number, signal.signal(number, self._note)) for number in (signal.SIGINT, signal.SIGALRM)]
        timer = signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in former:
                signal.signal(number, handler)
            signal.setitimer(signal.ITIMER_REAL, *timer)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed: nothing is in the midst of anything here."""
        if self.is_pending:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let Ctrl-C end what is inside, a wait, at once."""
        # In this order: a signal before the first line is found by the second, one after it raises by itself.
        self._is_waiting = True
        try:
            self.check()
            yield
        finally:
            self._is_waiting = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._is_waiting or self.is_pending:
            self.is_pending = True
            raise KeyboardInterrupt
        self.is_pending = number == signal.SIGINT
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)

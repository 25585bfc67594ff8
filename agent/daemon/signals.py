"""Signals as bytes in a pipe: handlers do nothing, the main thread reads what came.

`Event.wait` in the main thread misses signals while other threads start processes; the wakeup descriptor does
not, because the interpreter's own handler writes to it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Installed once, by the main thread."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.stop_count = 0

    def install(self) -> None:
        """Take over SIGTERM and SIGINT."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            # A handler there must be, or the signal ends the process.
            signal.signal(number, lambda *_: None)

    def wait(self, timeout_s: float) -> None:
        """Wait for signals, at most `timeout_s`, and count what came."""
        readable, _, _ = select.select([self._reader], [], [], timeout_s)
        if not readable:
            return
        for number in os.read(self._reader, 512):
            if number in STOP_SIGNALS:
                self.stop_count += 1

    def wake(self) -> None:
        """End a `wait` from another thread."""
        # A pipe that is full ends the wait as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

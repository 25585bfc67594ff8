"""Whether the database and Redis answer, as those who speak with them have last seen it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from agent import clock, log
from agent.errors import AgentError

_log = log.get("link")


class Link:
    """The state of the way to one server. Thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._fault: str | None = "not reached yet"
        self._since_mono = clock.mono()
        self.skew_s: float | None = None

    @property
    def fault(self) -> str | None:
        """Why it can't be used, with since when; `None` while it answers."""
        fault = self._fault
        return (
            None if fault is None else f"{self.name}: {fault} (for {clock.mono() - self._since_mono:.0f} s)"
        )

    @property
    def is_up(self) -> bool:
        """Whether the last try was answered."""
        return self._fault is None

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Note how the use of the server inside ends."""
        try:
            yield
        except AgentError as error:
            self.fail(str(error))
            raise
        self.succeed()

    def succeed(self) -> None:
        """Note an answer."""
        with self._lock:
            if self._fault is None:
                return
            _log.info("link.up", server=self.name, away_s=round(clock.mono() - self._since_mono, 1))
            self._fault = None
            self._since_mono = clock.mono()

    def fail(self, why: str) -> None:
        """Note a failure."""
        with self._lock:
            if self._fault is None:
                _log.warning("link.down", why, server=self.name)
                self._since_mono = clock.mono()
            self._fault = why.partition("\n")[0]

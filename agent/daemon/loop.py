"""A named thread that does one thing over and over, and is missed when it dies."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent import clock, log
from agent.errors import AgentError

_log = log.get("loop")


class Loop:
    """Calls `cycle` every `interval_s`; `cycle` may return how long to wait instead.

    An error that a retry may help is told once for each outage and waited out with back-off. Any other ends the
    loop, and with it the agent: `failure` says why. A loop that is not endless runs one cycle.
    """

    def __init__(
        self, name: str, cycle: Callable[[], float | None], *, interval_s: float, is_endless: bool = True
    ) -> None:
        self.name = name
        self.interval_s = interval_s
        self.failure: BaseException | None = None
        self._cycle = cycle
        self._is_endless = is_endless
        self._wake = threading.Event()
        self._stopping = False
        self._alive_at_mono = clock.mono()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Run the next cycle now."""
        self._wake.set()

    def stop(self) -> None:
        """Run no further cycle."""
        self._stopping = True
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def silent_s(self) -> float:
        """How long ago the last cycle ended or failed."""
        return clock.mono() - self._alive_at_mono

    def _run(self) -> None:
        waits = clock.backoff(limit_s=min(5.0, max(1.0, self.interval_s)))
        is_failing = False
        while not self._stopping:
            wait_s = self.interval_s
            try:
                asked = self._cycle()
            except AgentError as error:
                if not error.is_retriable:
                    self._fail(error)
                    return
                if not is_failing:
                    _log.warning("loop.waiting", str(error), loop=self.name)
                is_failing = True
                wait_s = next(waits)
            except BaseException as error:  # noqa: BLE001 - told, kept, and the daemon ends with it
                self._fail(error)
                return
            else:
                if is_failing:
                    _log.info("loop.recovered", loop=self.name)
                    waits = clock.backoff(limit_s=min(5.0, max(1.0, self.interval_s)))
                is_failing = False
                wait_s = self.interval_s if asked is None else asked
                if not self._is_endless:
                    return
            self._alive_at_mono = clock.mono()
            if wait_s > 0:
                self._wake.wait(wait_s)
                self._wake.clear()

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        _log.exception("loop.died", f"{type(error).__name__}: {error}", loop=self.name)

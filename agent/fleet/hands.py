"""What the controller has done by providers: each call in a thread, one at a time for each thing, none waited for.

A provider that hangs, throttles or answers twice holds up nothing but what it was asked for. Every call can be made
again, so what a dead controller had under way is simply asked again by the next.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

_THREADS = 16


@dataclass(frozen=True, slots=True)
class Done:
    """How a call ended: with an answer or a fault."""

    key: tuple[str, str]
    answer: Any
    fault: Exception | None


class Hands:
    """Used by the controller's thread alone."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._free = threads
        self._busy: dict[tuple[str, str], Future[Any]] = {}
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def is_busy(self, kind: str, thing: str) -> bool:
        """Whether a call about a thing is under way, or has ended and was not collected yet."""
        return (kind, thing) in self._busy

    def do(self, kind: str, thing: str, call: Callable[[], Any]) -> None:
        """Make a call, unless one of this kind about this thing is under way."""
        if not self.is_busy(kind, thing):
            future: Future[Any] = Future()
            self._busy[(kind, thing)] = future
            self._waiting.append((future, call))
            self._begin()

    def collect(self) -> Iterator[Done]:
        """Yield the calls that have ended since the last time."""
        ended = [(key, future) for key, future in self._busy.items() if future.done()]
        self._free += len(ended)
        self._begin()
        for key, future in ended:
            del self._busy[key]
            fault = future.exception()
            if isinstance(fault, Exception):
                yield Done(key, None, fault)
            elif fault is not None:
                raise fault
            else:
                yield Done(key, future.result(), None)

    def close(self) -> None:
        """Let go: what is under way ends by itself, what has not begun never begins."""
        self._waiting.clear()

    def _begin(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            # Daemons, unlike the threads of an executor: a provider that hangs must not hold up the end of the process.
            threading.Thread(target=_run, args=self._waiting.popleft(), name="provider", daemon=True).start()


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        answer = call()
    except BaseException as fault:  # noqa: BLE001 - it is raised, or taken for an answer, where it is collected
        future.set_exception(fault)
    else:
        future.set_result(answer)

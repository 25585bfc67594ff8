"""Asks the database over and over, for commands that watch something: not too often, and through its absences.

Owns rhythm and patience. Knows nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from agent import clock
from agent.errors import StoreUnavailable
from agent.model import wording

if TYPE_CHECKING:
    from agent.cli.screen import Screen

T = TypeVar("T")

# A line is in the database some milliseconds after it was printed; with this it is on the screen within 250 ms.
QUICK_S = 0.1
# While nothing comes the questions get rarer, up to this; a step that has been silent is shown that much later.
SLOW_S = 0.5
IDLE_S = 1.0
_AWAY_LIMIT_S = 3.0


class Watch:
    """The rhythm of one command. The first answer has to come at once; after that an absence is waited out."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._pause_s = QUICK_S
        self._has_answered = False

    def ask(self, question: Callable[[], T]) -> T:
        """Return the answer, however long the database stays away once it has answered.

        Raises: StoreUnavailable, only for the first question.
        """
        waits = clock.backoff(limit_s=_AWAY_LIMIT_S)
        away_mono: float | None = None
        while True:
            try:
                answer = question()
            except StoreUnavailable as error:
                if not self._has_answered:
                    raise
                if away_mono is None:
                    away_mono = clock.mono()
                    self._screen.note(f"build-agent: {error}; waiting for it to come back")
                    self._screen.show_status("the database is away")
                self._screen.pause(next(waits))
            else:
                self._has_answered = True
                if away_mono is not None:
                    away = wording.duration(clock.mono() - away_mono)
                    self._screen.note(f"build-agent: the database is back after {away}")
                return answer

    def pause(self, *, has_news: bool, limit_s: float = SLOW_S) -> None:
        """Wait until it is time to ask again: soon after news, then ever later, up to `limit_s`."""
        self._pause_s = QUICK_S if has_news else min(self._pause_s * 1.3, limit_s)
        self._screen.pause(self._pause_s)

"""How a bake looks to whoever started it: a line for each phase, and below it, live, what the server printed last."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from agent import clock
from agent.cli.escape import Cleaner
from agent.cli.screen import Screen
from agent.model import wording
from agent.model.image import Phase

_LINES_AFTER_A_FAULT = 20
# A line without an end is taken as one here.
_LINE_LIMIT = 4096


class BakeDisplay:
    """An observer of a bake (agent.fleet.work), or of something else that has phases.

    Args:
        has_output: show every line that is printed.
        phases: their names, in order.
    """

    def __init__(self, screen: Screen, *, has_output: bool, phases: Sequence[str] = tuple(Phase)) -> None:
        self._screen = screen
        self._has_output = has_output
        self._phases = phases
        self._width = max(map(len, phases))
        self._phase: str | None = None
        self._began_mono = 0.0
        self._cleaner = Cleaner(is_terminal=False)
        self._begun_line = ""
        self._last: deque[str] = deque(maxlen=_LINES_AFTER_A_FAULT)

    def phase_begun(self, phase: str) -> None:
        """Begin a line of status."""
        self._phase, self._began_mono = phase, clock.mono()
        self._cleaner, self._begun_line = Cleaner(is_terminal=False), ""
        self._last.clear()
        if self._has_output:
            self._screen.write(f"-- {phase}\n")
        self._draw()

    def output(self, data: bytes) -> None:
        """Take what the server printed: the newest line stands in the status."""
        *whole, rest = (self._begun_line + self._cleaner.feed(data)).split("\n")
        if len(rest) > _LINE_LIMIT:
            whole, rest = [*whole, rest], ""
        self._begun_line = rest
        for line in whole:
            self._hear(line)
        self._draw()

    def said(self, text: str) -> None:
        """Take something that the bake itself says."""
        for line in text.splitlines():
            self._hear(line)
        self._draw()

    def phase_ended(self, phase: str, seconds: float, fault: str | None) -> None:
        """Write the line of a phase that is over; after a fault, also the last that was printed."""
        if self._begun_line:
            self._hear(self._begun_line)
        self._phase = None
        self._screen.hide_status()
        sign = "failed" if fault else "done"
        name = f"{self._number(phase)} {phase:<{self._width}}"
        self._screen.write(f"{name}  {wording.duration(seconds):>10}  {sign}\n")
        if fault and not self._has_output:
            for line in self._last:
                self._screen.write(f"    {line}\n")

    def _hear(self, line: str) -> None:
        shown = wording.one_line(line)
        if not shown:
            return
        self._last.append(shown)
        if self._has_output:
            self._screen.write(f"{shown}\n")

    def _draw(self) -> None:
        if self._phase is None:
            return
        seconds = clock.mono() - self._began_mono
        newest = self._last[-1] if self._last else ""
        name = f"{self._number(self._phase)} {self._phase}"
        self._screen.show_status(f"{name} {wording.clock_face(seconds)}  {newest}")

    def _number(self, phase: str) -> str:
        count = str(len(self._phases))
        return f"{self._phases.index(phase) + 1:{len(count)}}/{count}"


class Silent:
    """An observer that says nothing."""

    def phase_begun(self, phase: str) -> None:
        """Say nothing."""

    def output(self, data: bytes) -> None:
        """Say nothing."""

    def said(self, text: str) -> None:
        """Say nothing."""

    def phase_ended(self, phase: str, seconds: float, fault: str | None) -> None:
        """Say nothing."""

"""Shows a build as text for people: headings, output, and on a terminal one line of status below it.

While steps of several pipelines run, each line names its own; whole lines only then, so that none is mixed with
another. A step that runs alone is shown byte by byte, as soon as something comes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent import clock
from agent.cli.escape import Cleaner
from agent.cli.screen import Screen
from agent.model import wording
from agent.model.build import Attempt, Build, BuildState, OutputChunk, Step

_RESET = "\x1b[0m"
_LABEL_LENGTH = 28
_NAME_LENGTH = 60
# A line that goes on without end is shown in pieces of this length between other steps' lines.
_HELD_LIMIT = 64 * 1024
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_RESETS = re.compile(r"\x1b\[[0;]*m")
_PAINT_LIMIT = 256
_PAINTS_KEPT = 8
_LABEL_COLOURS = (36, 35, 34, 33, 32)


@dataclass(slots=True)
class _Shown:
    """A step on the screen. `held` is a line's beginning; `paint` the colours that hold where its text ends."""

    step: Step
    cleaner: Cleaner
    label: str
    held: str = ""
    paint: str = ""


class Transcript:
    """A `Viewer`. `has_headings`: say where each step begins and ends."""

    def __init__(self, screen: Screen, *, has_headings: bool = True) -> None:
        self._screen = screen
        self._has_headings = has_headings
        self._shown: dict[int, _Shown] = {}
        self._alone: int | None = None
        self._is_labelled = False
        self._colours: dict[str, int] = {}
        self._is_moving = False
        self._attempt = 0

    # What has happened.

    def waiting(self, build: Build) -> None:
        """Tell it in the status; what waits prints nothing."""
        waited = clock.utc_now() - build.queued_at
        face = wording.clock_face(waited.total_seconds())
        words = "to be cancelled" if build.cancel_requested_at else f"in queue {build.queue}"
        self._screen.show_status(f"{face}  {wording.short_id(build.id)} waits {words}")

    def attempt_begun(self, build: Build, attempt: Attempt) -> None:
        """Name the attempt, unless it is the only one."""
        self._attempt = attempt.number
        if attempt.number > 1:
            self._heading(f"attempt {attempt.number} of build {wording.short_id(build.id)}")

    def step_begun(self, step: Step) -> None:
        """Head the step."""
        cleaner = Cleaner(is_terminal=self._screen.is_terminal)
        self._shown[step.step] = _Shown(step=step, cleaner=cleaner, label=self._label(step))
        if len({it.step.pipeline for it in self._shown.values()}) > 1:
            # Until all have ended: a line without a label would seem to be whoever's printed last.
            self._is_labelled = True
        self._heading(f"{step.step} {_name(step)}")

    def output(self, step: Step, chunk: OutputChunk) -> None:
        """Show what is new."""
        shown = self._shown[step.step]
        shown.cleaner.may_move = not self._is_labelled
        self._text(shown, shown.cleaner.feed(chunk.data))

    def step_ended(self, step: Step) -> None:
        """Show the rest and tell how it went."""
        shown = self._shown.pop(step.step)
        self._flush(shown)
        if not self._shown:
            self._is_labelled = False
            self._is_moving = False
        if step.outcome is None:
            return
        self._heading(f"{step.step} {_name(step)}: {_ending(step)}", is_good=step.outcome.is_success)

    def running(self, build: Build, steps: Sequence[Step]) -> None:
        """Tell in the status which steps run, and for how long."""
        if self._is_moving:
            # Where the cursor stands is the step's business now.
            self._screen.hide_status()
            return
        now = clock.utc_now()
        began = build.started_at or now
        face = wording.clock_face((now - began).total_seconds())
        parts = [
            f"{_name(step, _LABEL_LENGTH)} {wording.clock_face((now - step.started_at).total_seconds())}"
            for step in steps
        ]
        state = "cancelling  " if build.cancel_requested_at else ""
        attempt = f"attempt {self._attempt}  " if self._attempt > 1 else ""
        self._screen.show_status(f"{face}  {attempt}{state}{'  |  '.join(parts) or 'between steps'}")

    def attempt_ended(self, build: Build, attempt: Attempt) -> None:
        """Tell how an attempt ended that was not the last."""
        for shown in list(self._shown.values()):
            self.step_ended(shown.step)
        if attempt.outcome is None or (build.attempt == attempt.number and build.state is BuildState.ENDED):
            return
        words = wording.one_line(wording.outcome(attempt.outcome, attempt.detail))
        self._heading(f"attempt {attempt.number} {words}; the build was queued again", is_good=False)

    def build_ended(self, build: Build) -> None:
        """Tell how it all ended."""
        self._screen.hide_status()
        self._heading(ending_of_build(build), is_good=build.outcome is not None and build.outcome.is_success)

    def finish(self) -> None:
        """Show what was held back of steps that still run."""
        for shown in self._shown.values():
            self._flush(shown)

    # How it is written.

    def _flush(self, shown: _Shown) -> None:
        self._text(shown, shown.cleaner.finish())
        held, shown.held = shown.held, ""
        if _COLOURS.sub("", held):
            self._lines(shown, [held])

    def _text(self, shown: _Shown, text: str) -> None:
        if not text:
            return
        if not self._is_labelled:
            self._is_moving |= shown.cleaner.has_moved
            self._write(shown, text)
            return
        lines = (shown.held + text).split("\n")
        shown.held = lines.pop()
        if len(shown.held) > _HELD_LIMIT:
            lines.append(shown.held)
            shown.held = ""
        self._lines(shown, lines)

    def _write(self, shown: _Shown, text: str) -> None:
        """Write text of the one step that runs, as it comes; what another left on the line is ended first."""
        number = shown.step.step
        if self._alone != number:
            self._screen.end_line()
        self._alone = number
        # Between two writes the status may have been drawn, in colours of its own.
        self._screen.write(shown.paint + text)
        shown.paint = paint_after(shown.paint, text)

    def _lines(self, shown: _Shown, lines: Sequence[str]) -> None:
        """Write whole lines with their label; of what a carriage return overwrites, the last is left."""
        if not lines:
            return
        self._screen.end_line()
        self._alone = None
        parts = []
        for line in lines:
            visible = next((it for it in reversed(line.split("\r")) if it), "")
            after = paint_after(shown.paint, line)
            end = _RESET if after or shown.paint else ""
            parts.append(f"{shown.label}{shown.paint}{visible}{end}\n")
            shown.paint = after
        self._screen.write("".join(parts))

    def _heading(self, text: str, *, is_good: bool | None = None) -> None:
        if not self._has_headings:
            return
        # A step may have left its colours on.
        reset = _RESET if self._screen.is_terminal else ""
        self._screen.end_line()
        self._alone = None
        line = f"--- {text}"
        if self._screen.has_colour:
            line = f"\x1b[{ {True: '32', False: '1;31', None: '1'}[is_good] }m{line}{_RESET}"
        self._screen.write(f"{reset}{line}\n")

    def _label(self, step: Step) -> str:
        name = wording.one_line(_name(step).replace(" / ", "/"), _LABEL_LENGTH)
        if not self._screen.has_colour:
            return f"{name} | "
        colour = self._colours.setdefault(
            step.pipeline, _LABEL_COLOURS[len(self._colours) % len(_LABEL_COLOURS)]
        )
        return f"\x1b[{colour}m{name} |{_RESET} "


def ending_of_build(build: Build) -> str:
    """Return in one line how a build ended, after how long."""
    words = wording.outcome(build.outcome, build.detail) if build.outcome else build.state.value
    took = ""
    if build.started_at and build.ended_at:
        took = f" ({wording.duration((build.ended_at - build.started_at).total_seconds())})"
    return f"build {wording.short_id(build.id)} {wording.one_line(words)}{took}"


def paint_after(paint: str, text: str) -> str:
    """Return the colour sequences that hold behind a text, given those before it."""
    if "\x1b[" not in text:
        return paint
    for sequence in _COLOURS.findall(text):
        # A reset, or one that begins with it (`0;31`), makes all before it void.
        is_reset = sequence[2:-1].split(";")[0].strip("0") == ""
        paint = sequence if is_reset else paint + sequence
    if _RESETS.fullmatch(paint):
        return ""
    # Hundreds of changes without a reset: the newest decide.
    return paint if len(paint) <= _PAINT_LIMIT else "".join(_COLOURS.findall(paint)[-_PAINTS_KEPT:])


def _name(step: Step, length: int = _NAME_LENGTH) -> str:
    name = wording.one_line(step.name, length)
    return name if name == step.pipeline else f"{step.pipeline} / {name}"


def _ending(step: Step) -> str:
    words = wording.outcome(step.outcome, step.detail) if step.outcome else step.state
    took = (step.ended_at - step.started_at).total_seconds() if step.ended_at else 0.0
    return f"{wording.one_line(words)} ({wording.duration(took)})"

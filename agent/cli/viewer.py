"""The other ways to show a build: as JSON lines, or as the bytes it printed."""

from __future__ import annotations

from collections.abc import Sequence

from agent.cli import record
from agent.cli.screen import Screen
from agent.model.build import Attempt, Build, OutputChunk, Step

# A line that goes on without end is told in pieces of this length.
_HELD_LIMIT_BYTES = 1 << 20


class Silence:
    """A `Viewer` that shows nothing; those below add what they have to say."""

    def waiting(self, build: Build) -> None:
        """Say nothing."""

    def attempt_begun(self, build: Build, attempt: Attempt) -> None:
        """Say nothing."""

    def step_begun(self, step: Step) -> None:
        """Say nothing."""

    def output(self, step: Step, chunk: OutputChunk) -> None:
        """Say nothing."""

    def step_ended(self, step: Step) -> None:
        """Say nothing."""

    def running(self, build: Build, steps: Sequence[Step]) -> None:
        """Say nothing."""

    def attempt_ended(self, build: Build, attempt: Attempt) -> None:
        """Say nothing."""

    def build_ended(self, build: Build) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""


class RawBytes(Silence):
    """Writes the bytes that the steps printed, as they are and nothing else."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def output(self, step: Step, chunk: OutputChunk) -> None:  # noqa: ARG002 - a Viewer's signature
        """Write them."""
        self._screen.write_bytes(chunk.data)


class JsonLines(Silence):
    """Writes one JSON object for each thing that happens and each line of output, `event` saying what it is."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._held: dict[int, tuple[int, bytes]] = {}
        self._has_waited = False

    def waiting(self, build: Build) -> None:
        """Tell it once."""
        if not self._has_waited:
            self._has_waited = True
            self._tell("build.waiting", build=build.id, queue=build.queue, attempt=build.attempt)

    def attempt_begun(self, build: Build, attempt: Attempt) -> None:  # noqa: ARG002 - a Viewer's signature
        """Tell it."""
        self._has_waited = False
        self._tell("attempt.begun", **record.plain(attempt))

    def step_begun(self, step: Step) -> None:
        """Tell it."""
        names = ("attempt", "step", "pipeline", "pipeline_class", "name", "command", "started_at")
        self._tell("step.begun", **{name: getattr(step, name) for name in names})

    def output(self, step: Step, chunk: OutputChunk) -> None:
        """Tell each line once it is whole."""
        line, held = self._held.pop(step.step, (chunk.first_line, b""))
        *lines, rest = (held + chunk.data).split(b"\n")
        for text in lines:
            self._tell_line(step, line, text)
            line += 1
        if len(rest) > _HELD_LIMIT_BYTES:
            self._tell_line(step, line, rest)
            rest = b""
        if rest:
            self._held[step.step] = (line, rest)

    def step_ended(self, step: Step) -> None:
        """Tell its last line, if that has no end, and how it went."""
        if step.step in self._held:
            self._tell_line(step, *self._held.pop(step.step))
        self._tell("step.ended", **record.plain(step))

    def attempt_ended(self, build: Build, attempt: Attempt) -> None:
        """Tell it, and what became of the build."""
        self._tell("attempt.ended", **record.plain(attempt), build_state=build.state)

    def build_ended(self, build: Build) -> None:
        """Tell it."""
        self._tell("build.ended", **record.plain(build))

    def _tell_line(self, step: Step, line: int, text: bytes) -> None:
        self._tell(
            "output",
            attempt=step.attempt,
            step=step.step,
            pipeline=step.pipeline,
            line=line,
            text=text.removesuffix(b"\r").decode("utf-8", "replace"),
        )

    def _tell(self, event: str, **values: object) -> None:
        self._screen.write(record.line({"event": event, **values}))

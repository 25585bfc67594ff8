"""Reads a build as it happens, or as it was: every step's beginning, output and end, in an order that makes sense.

Owns what is asked of the database and in which order, so that nothing is told before what it belongs to, and no
end before the last byte. How it looks is a `Viewer`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from agent.cli import watch
from agent.errors import NotFound
from agent.model.build import Attempt, Build, BuildState, OutputAccount, OutputChunk, Step
from agent.model.outcome import Outcome

if TYPE_CHECKING:
    from agent.cli.screen import Screen
    from agent.store.engine import Store

# Pages of output read before the steps are looked at again: one that prints without end must not hide the others.
_PAGES = 4
# A step nobody asked for: no chunk comes after this one.
_NEVER_SEQ = 2**31 - 1


class Viewer(Protocol):
    """Shows a build. Calls come in order; a step's output comes between its beginning and its end."""

    def waiting(self, build: Build) -> None:
        """The build waits for a server; called again and again."""

    def attempt_begun(self, build: Build, attempt: Attempt) -> None:
        """An attempt has begun."""

    def step_begun(self, step: Step) -> None:
        """A step has begun."""

    def output(self, step: Step, chunk: OutputChunk) -> None:
        """A step has printed something."""

    def step_ended(self, step: Step) -> None:
        """A step has ended."""

    def running(self, build: Build, steps: Sequence[Step]) -> None:
        """So far so good, and these steps run; called again and again."""

    def attempt_ended(self, build: Build, attempt: Attempt) -> None:
        """An attempt has ended; what became of the build stands in `build`."""

    def build_ended(self, build: Build) -> None:
        """All is over."""

    def finish(self) -> None:
        """Show what was held back: nothing more comes now."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The steps somebody wants to see: by number, by name or by `pipeline/name`; `None` for all."""

    word: str | None = None

    def fits(self, step: Step) -> bool:
        """Whether a step is one of them."""
        word = self.word
        if word is None or (word.isdecimal() and int(word) == step.step):
            return True
        return word in (step.name, f"{step.pipeline}/{step.name}")


ALL = Choice()


class Follower:
    """Reads one build for one viewer.

    Args:
        tail: begin with so many last lines of what is there; `None`: with all of it.
    """

    def __init__(
        self, store: Store, viewer: Viewer, screen: Screen, *, choice: Choice = ALL, tail: int | None = None
    ) -> None:
        self._store = store
        self._viewer = viewer
        self._choice = choice
        self._tail = tail
        self._watch = watch.Watch(screen)
        self._begin()

    def _begin(self) -> None:
        self._cursors: dict[int, int] = {}
        self._skips: dict[int, int] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def follow(self, build_id: str, first: int, *, is_only: bool = False) -> Outcome | None:
        """Show a build from attempt `first` on, until it has ended.

        Args:
            is_only: end with that attempt, whatever becomes of the build.
        Returns: the outcome, of the build or of that one attempt.
        Raises: NotFound when the build is deleted meanwhile; ReaderGone.
        """
        number = max(1, first)
        while True:
            build = self._build(build_id)
            if build.attempt >= number:
                attempt = self._follow_attempt(build, number)
                if is_only:
                    return attempt.outcome
                number += 1
            elif build.state is BuildState.ENDED:
                self._viewer.build_ended(build)
                return build.outcome
            else:
                self._viewer.waiting(build)
                self._watch.pause(has_news=False, limit_s=watch.IDLE_S)

    def show(self, build: Build, number: int) -> None:
        """Show an attempt as it stands now. Raises: NotFound when nothing of it fits the choice."""
        attempt = self._attempt(build.id, number)
        self._place(build.id, number)
        self._viewer.attempt_begun(build, attempt)
        # Everything there is, whether or not more is to come.
        self._look(build, number, is_whole_wanted=True)
        if self._choice.word is not None and not self._begun:
            steps = ", ".join(f"{it.step} {it.pipeline}/{it.name}" for it in self._steps(build.id, number))
            raise NotFound(
                f"no step {self._choice.word!r} in attempt {number} of build {build.id}; there are: {steps or 'none'}"
            )
        self._viewer.finish()
        if attempt.state == "ended":
            self._viewer.attempt_ended(build, attempt)
        if build.attempt == number and build.state is BuildState.ENDED:
            self._viewer.build_ended(build)

    def _follow_attempt(self, build: Build, number: int) -> Attempt:
        """Show an attempt until it has ended; return it."""
        self._begin()
        self._place(build.id, number)
        self._viewer.attempt_begun(build, self._attempt(build.id, number))
        while True:
            # The build first: when it says that the attempt is over, all that is read below is complete.
            build = self._build(build.id)
            is_over = build.attempt > number or build.state is not BuildState.RUNNING
            has_news, is_behind = self._look(build, number, is_whole_wanted=is_over)
            if is_over:
                attempt = self._attempt(build.id, number)
                self._viewer.attempt_ended(build, attempt)
                return attempt
            if not is_behind:
                self._watch.pause(has_news=has_news)

    def _look(self, build: Build, number: int, *, is_whole_wanted: bool) -> tuple[bool, bool]:
        """Show what is new in an attempt.

        Returns: whether there was anything, and whether there is more to be read at once.
        """
        # Before their output: of a step that has ended here, everything is there below.
        steps = {it.step: it for it in self._steps(build.id, number)}
        for step in steps.values():
            if not self._choice.fits(step):
                self._cursors[step.step] = _NEVER_SEQ
        has_news, page_count = False, 0
        while is_whole_wanted or page_count < _PAGES:
            page = self._page(build.id, number)
            known = [it for it in page if it.step in steps or is_whole_wanted]
            if not known:
                has_news |= self._show(steps, [], before=None) or bool(page)
                running = [it for it in steps.values() if it.state == "running" and self._choice.fits(it)]
                self._viewer.running(build, running)
                return has_news, False
            # Ordered by step: what comes before the page's last one has been read to its end.
            self._show(steps, known, before=known[-1].step)
            has_news, page_count = True, page_count + 1
        return has_news, True

    def _show(self, steps: Mapping[int, Step], chunks: Sequence[OutputChunk], *, before: int | None) -> bool:
        """Show steps in their order, each with its chunks; ends only of those `before`, `None`: of all."""
        has_news = False
        by_step: dict[int, list[OutputChunk]] = {}
        for chunk in chunks:
            by_step.setdefault(chunk.step, []).append(chunk)
        for number in sorted({*steps, *by_step}):
            if before is not None and number > before:
                break
            step = steps.get(number) or _unrecorded(by_step[number][0])
            if number in self._ended or not self._choice.fits(step):
                continue
            if number not in self._begun:
                self._begun.add(number)
                self._viewer.step_begun(step)
                has_news = True
            for chunk in by_step.get(number, ()):
                self._cursors[number] = chunk.seq
                self._viewer.output(step, self._without_skipped(chunk))
            if step.state == "ended" and (before is None or number < before):
                self._ended.add(number)
                self._viewer.step_ended(step)
                has_news = True
        return has_news

    def _place(self, build_id: str, number: int) -> None:
        """Put the cursors so that `tail` lines are still to be read; steps before them count as shown."""
        if self._tail is None:
            return
        from agent.cli import tail

        wanted, self._tail = self._tail, None
        for step in reversed(self._steps(build_id, number)):
            if not self._choice.fits(step):
                continue
            start = self._watch.ask(
                partial(tail.locate, self._store, build_id, number, step.step, lines=wanted)
            )
            self._cursors[step.step] = start.after_seq
            self._skips[step.step] = start.skip_bytes
            if wanted == 0 and step.state == "ended":
                self._begun.add(step.step)
                self._ended.add(step.step)
            wanted -= start.line_count

    def _without_skipped(self, chunk: OutputChunk) -> OutputChunk:
        """Return the first chunk of a tail without the lines before it."""
        skip = self._skips.pop(chunk.step, 0)
        if not skip:
            return chunk
        lines = chunk.data.count(b"\n", 0, skip)
        return replace(
            chunk,
            data=chunk.data[skip:],
            first_line=chunk.first_line + lines,
            line_count=chunk.line_count - lines,
        )

    # Questions.

    def _build(self, build_id: str) -> Build:
        from agent.store import builds

        return self._watch.ask(lambda: builds.get(self._store, build_id))

    def _attempt(self, build_id: str, number: int) -> Attempt:
        from agent.store import attempts

        for attempt in self._watch.ask(lambda: attempts.list_attempts(self._store, build_id)):
            if attempt.number == number:
                return attempt
        raise NotFound(f"build {build_id} has no attempt {number}")

    def _steps(self, build_id: str, number: int) -> list[Step]:
        from agent.store import steps

        return self._watch.ask(lambda: steps.list_steps(self._store, build_id, number))

    def _page(self, build_id: str, number: int) -> list[OutputChunk]:
        from agent.store import output

        return self._watch.ask(lambda: output.follow(self._store, build_id, number, self._cursors))


def _unrecorded(chunk: OutputChunk) -> Step:
    """Stand in for a step whose beginning never reached the database, though its output did."""
    return Step(
        build_id=chunk.build_id,
        attempt=chunk.attempt,
        step=chunk.step,
        pipeline="unknown",
        pipeline_class="unknown",
        name=f"step {chunk.step}",
        command="",
        state="ended",
        outcome=None,
        detail=None,
        exit_code=None,
        started_at=chunk.at,
        ended_at=None,
        account=OutputAccount(),
    )

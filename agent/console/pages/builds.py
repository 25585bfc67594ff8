"""Builds: the list, one with its attempts and steps, the end of a step's output; cancel and retry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Annotated, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from markupsafe import Markup, escape

from agent import clock
from agent.console import page
from agent.console.ground import Ground, Here, Submitter, Viewer
from agent.console.live.row import Run
from agent.console.live.style import classes
from agent.console.live.terminal import Terminal
from agent.errors import NotFound
from agent.model import wording
from agent.model.build import Build, BuildState, Step
from agent.model.outcome import Outcome
from agent.queue import operate
from agent.store import attempts, builds, output, servers, steps

router = APIRouter(include_in_schema=False)
_PAGE = 50
_TAIL_LINES = 500
_MOST_LINES = 20_000
_SEE_OTHER = 303

Word = Annotated[str, Query(max_length=200)]
Choice = TypeVar("Choice", BuildState, Outcome)


@router.get("/builds")
def list_(
    request: Request,
    ground: Here,
    _person: Viewer,
    *,
    state: Word = "",
    outcome: Word = "",
    project: Word = "",
    queue: Word = "",
    before: Word = "",
) -> Response:
    """Show builds, the newest first, page by page."""
    chosen = {"state": state, "outcome": outcome, "project": project, "queue": queue}
    found = builds.list_builds(
        ground.store,
        state=_one_of(BuildState, state),
        outcome=_one_of(Outcome, outcome),
        project=project or None,
        queue=queue or None,
        before=_read_key(before),
        limit=_PAGE + 1,
    )
    shown = found[:_PAGE]
    same = {name: value for name, value in chosen.items() if value}
    return page.render(
        request,
        "builds.html",
        title="Builds",
        builds=shown,
        filter=chosen,
        outcomes=["", *Outcome],
        is_filtered=bool(same),
        is_paged=bool(before),
        first=f"/builds?{urlencode(same)}",
        older=f"/builds?{urlencode({**same, 'before': _key(shown[-1])})}" if len(found) > _PAGE else None,
    )


@router.get("/builds/{build_id}")
def show(request: Request, ground: Here, _person: Viewer, build_id: str) -> Response:
    """Show a build."""
    build = builds.find(ground.store, build_id)
    tries = attempts.list_attempts(ground.store, build.id)
    return page.render(
        request,
        "build.html",
        title=f"{wording.short_id(build.id)} {build.project}",
        build=build,
        rows=_facts(build),
        attempts=tries,
        parts={it.number: _by_pipeline(ground, build.id, it.number) for it in tries},
        servers={it.id: it.name for it in servers.list_servers(ground.store)},
    )


@router.get("/builds/{build_id}/output")
def show_output(
    request: Request,
    ground: Here,
    _person: Viewer,
    build_id: str,
    *,
    attempt: Annotated[int, Query(ge=1, le=1_000_000)],
    step: Annotated[int, Query(ge=0, le=1_000_000)],
    lines: Annotated[int, Query(ge=1, le=_MOST_LINES)] = _TAIL_LINES,
) -> Response:
    """Show the end of what a step has printed, as a terminal would."""
    build = builds.find(ground.store, build_id)
    found = next((it for it in steps.list_steps(ground.store, build.id, attempt) if it.step == step), None)
    if found is None:
        raise NotFound(f"build {wording.short_id(build.id)} has no step {step} in attempt {attempt}")
    first, data = output.tail(ground.store, build.id, attempt, step, lines=lines)
    terminal = Terminal(first_line=first, rows_limit=lines)
    terminal.feed(data)
    terminal.finish()
    more = {"attempt": attempt, "step": step, "lines": min(_MOST_LINES, lines * 10)}
    has_more = first > 1 and lines < _MOST_LINES
    return page.render(
        request,
        "output_page.html",
        title=f"{found.name}, {wording.short_id(build.id)}",
        build=build,
        attempt=attempt,
        step=found,
        lines=[(row.number, _html(row.runs())) for row in terminal.shown],
        earlier=f"/builds/{build.id}/output?{urlencode(more)}" if has_more else None,
    )


@router.post("/builds/{build_id}/cancel")
def cancel(
    ground: Here, person: Submitter, build_id: str, why: Annotated[str, Form(max_length=300)] = ""
) -> Response:
    """Cancel a build."""
    build = builds.find(ground.store, build_id)
    done = operate.cancel(ground.store, ground.carrier, build.id, by=person.actor, why=why)
    told = "cancelled" if done.result == "cancelled" else "cancelling"
    return RedirectResponse(f"/builds/{build.id}?done={told}", _SEE_OTHER)


@router.post("/builds/{build_id}/retry")
def retry(ground: Here, person: Submitter, build_id: str) -> Response:
    """Run a build again; whoever presses the button means it, also of one that has passed."""
    build = builds.find(ground.store, build_id)
    operate.retry(
        ground.store,
        ground.carrier,
        build,
        by=person.actor,
        max_attempts=ground.settings.max_attempts,
        force=True,
    )
    return RedirectResponse(f"/builds/{build.id}?done=retried", _SEE_OTHER)


def _facts(build: Build) -> list[tuple[str, object]]:
    now = clock.utc_now()
    asked = build.cancel_requested_at if build.outcome is None else None
    took = build.started_at and wording.duration(((build.ended_at or now) - build.started_at).total_seconds())
    waited = build.started_at and wording.duration((build.started_at - build.created_at).total_seconds())
    return [
        ("build", build.id),
        ("reason", wording.outcome(build.outcome, build.detail) if build.outcome else None),
        ("cancel", f"asked by {build.cancel_by}" if asked else None),
        ("source", wording.source(build)),
        ("message", build.message.partition("\n")[0] if build.message else None),
        ("queue", build.queue),
        ("by", build.created_by),
        ("times", f"waited {waited}, ran {took}" if took else None),
        ("attempts", f"{build.attempt} of {build.attempts_allowed} allowed"),
    ]


def _by_pipeline(ground: Ground, build_id: str, attempt: int) -> list[tuple[str, list[Step]]]:
    """Return the steps of an attempt by pipeline, both in their order."""
    found = sorted(steps.list_steps(ground.store, build_id, attempt), key=lambda it: it.step)
    firsts: dict[str, int] = {}
    for it in found:
        firsts.setdefault(it.pipeline, it.step)
    found.sort(key=lambda it: (firsts[it.pipeline], it.step))
    return [(name, list(group)) for name, group in groupby(found, key=lambda it: it.pipeline)]


def _html(runs: Sequence[Run]) -> Markup:
    """Return the styled text of a row. Every letter of it comes from a program that nobody vouches for."""
    parts = []
    for text, style in runs:
        names = classes(style)
        parts.append(Markup('<samp class="{}">{}</samp>').format(names, text) if names else escape(text))
    return Markup("").join(parts)


def _one_of(kind: type[Choice], word: str) -> Choice | None:
    if not word:
        return None
    try:
        return kind(word)
    except ValueError:
        known = ", ".join(kind)
        raise NotFound(f"{word!r} is no {kind.__name__.lower()}; there are {known}") from None


def _key(build: Build) -> str:
    return f"{build.created_at.isoformat()} {build.id}"


def _read_key(text: str) -> tuple[datetime, str] | None:
    """Read where a page goes on, as `_key` wrote it. Raises: NotFound."""
    if not text:
        return None
    at, _, build_id = text.partition(" ")
    try:
        instant = datetime.fromisoformat(at)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None or not build_id:
        raise NotFound(f"there is no page of builds before {text!r}")
    return instant, build_id

"""Pages: templates, what they show values with, and what every page has around it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from agent import __version__, clock
from agent.console.ground import person_of
from agent.console.problem import Problem
from agent.model import wording
from agent.model.person import Role

# What a page says after something was done; only these, so that no link can put words into the console's mouth.
_DONE: Mapping[str, str] = {
    "cancelled": "The build is cancelled: it had not begun.",
    "cancelling": "The build is being cancelled.",
    "retried": "The build is queued again.",
    "ordered": "The order is on record; the server hears of it within seconds.",
    "signed-out": "You are signed out.",
    "revoked": "The session is over.",
    "saved": "It is on record.",
}
# (path, word, role that sees it)
_NAVIGATION = (
    ("/", "Overview", Role.VIEWER),
    ("/builds", "Builds", Role.VIEWER),
    ("/servers", "Servers", Role.VIEWER),
    ("/images", "Images", Role.VIEWER),
    ("/fleet", "Fleet", Role.VIEWER),
    ("/audit", "Audit", Role.VIEWER),
)


def render(
    request: Request, template: str, *, status: HTTPStatus = HTTPStatus.OK, title: str, **values: Any
) -> HTMLResponse:
    """Return a page made from a template."""
    person = person_of(request)
    here = request.url.path
    text = _environment.get_template(template).render(
        title=title,
        person=person,
        may_act=person is not None and person.role.includes(Role.OPERATOR),
        navigation=[
            {"path": path, "word": word, "is_here": here == path or (path != "/" and here.startswith(path))}
            for path, word, role in _NAVIGATION
            if person is not None and person.role.includes(role)
        ],
        done=_DONE.get(request.query_params.get("done", "")),
        version=__version__,
        now=clock.utc_now(),
        **values,
    )
    return HTMLResponse(text, status)


def render_problem(request: Request, problem: Problem) -> HTMLResponse:
    """Return a page that says what is wrong."""
    return render(
        request, "problem.html", status=problem.status, title=problem.status.phrase, problem=problem
    )


def _instant(at: datetime | None, *, now: datetime | None = None) -> str | Markup:
    """Show an instant: how long ago, or the time; exact in UTC on hover, in the reader's zone where scripts run."""
    if at is None:
        return "-"
    exact = at.astimezone(UTC)
    shown = wording.ago(at, now) if now is not None else f"{exact:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}"{}>{}</time>').format(
        exact.isoformat(timespec="seconds"),
        f"{exact:%Y-%m-%d %H:%M:%S} UTC",
        Markup(" data-ago") if now is not None else "",
        shown,
    )


def _span(start: datetime | None, end: datetime | None, now: datetime) -> str:
    """Show how long something took, or has taken until now."""
    return "-" if start is None else wording.duration(((end or now) - start).total_seconds())


def _make_environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "instant": _instant,
        "duration": wording.duration,
        "short": wording.short_id,
        "size": wording.size,
        "account": wording.account,
    }
    made.globals |= {
        "span": _span,
        "count": wording.count,
        "outcome": wording.outcome,
        "state": wording.state,
    }
    return made


_environment = _make_environment()

"""The overview, images, the fleet and the audit: what there is, what is wrong, who did what."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from agent.console import page
from agent.console.ground import Here, Viewer
from agent.fleet import report, words
from agent.model.build import BuildState
from agent.model.image import Image
from agent.store import audit, builds, fleet_events, fleet_survey, images, servers, usage

router = APIRouter(include_in_schema=False)
_RUNNING_SHOWN = 50
_EVENTS = 100
_ENTRIES = 100

Word = Annotated[str, Query(max_length=200)]


@router.get("/")
def overview(request: Request, ground: Here, _person: Viewer) -> Response:
    """Show whether all is well, and if not, what to do."""
    fleet = report.look(ground.store)
    survey = fleet_survey.look(ground.store)
    up = Counter(str(it.state) for it in servers.list_servers(ground.store) if it.state not in servers.GONE)
    wrong = words.problems(fleet)
    if fleet.pools and not words.is_led(fleet):
        wrong.insert(0, words.NOBODY_LEADS)
    if survey.waiting and not up.get("accepting"):
        wrong.append("builds wait, and no server accepts any: build-agent servers says why")
    return page.render(
        request,
        "overview.html",
        title="Overview",
        problems=wrong,
        running=builds.list_builds(ground.store, state=BuildState.RUNNING, limit=_RUNNING_SHOWN),
        waiting=sum(it.count for it in survey.waiting.values()),
        queues=survey.waiting,
        servers=up,
        pools=[{"pool": it.pool, "words": words.servers(it)} for it in fleet.pools],
    )


@router.get("/images")
def list_images(request: Request, ground: Here, _person: Viewer) -> Response:
    """Show the catalogue."""
    return page.render(request, "images.html", title="Images", images=images.list_images(ground.store))


@router.get("/images/{image_id}")
def show_image(request: Request, ground: Here, _person: Viewer, image_id: str) -> Response:
    """Show an image, who uses it and what its checks said."""
    image = images.find(ground.store, image_id)
    with ground.store.read() as connection:
        users = usage.of(connection, image.id)
    return page.render(
        request,
        "image.html",
        title=f"Image {image.version}",
        image=image,
        rows=_facts(image),
        users=users,
        reports=images.list_reports(ground.store, image.id),
    )


@router.get("/fleet")
def fleet(request: Request, ground: Here, _person: Viewer) -> Response:
    """Show pools, what the rule says of them, and what happened lately."""
    found = report.look(ground.store)
    pools = [
        {"pool": it.pool, "rows": words.facts(found, it)[1:], "plan": report.plan(it)} for it in found.pools
    ]
    events = fleet_events.list_events(ground.store, limit=_EVENTS)[::-1]
    return page.render(request, "fleet.html", title="Fleet", pools=pools, events=events)


@router.get("/audit")
def show_audit(
    request: Request,
    ground: Here,
    _person: Viewer,
    actor: Word = "",
    subject: Word = "",
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
) -> Response:
    """Show who did what, the newest first, page by page."""
    found = audit.list_entries(
        ground.store,
        actor=actor or None,
        subject_id=subject or None,
        before_id=before,
        limit=_ENTRIES + 1,
    )
    shown = found[:_ENTRIES]
    same = {name: value for name, value in {"actor": actor, "subject": subject}.items() if value}
    older = f"/audit?{urlencode({**same, 'before': shown[-1].id})}" if len(found) > _ENTRIES else None
    return page.render(
        request,
        "audit.html",
        title="Audit",
        entries=shown,
        details={it.id: json.dumps(it.detail, ensure_ascii=False) if it.detail else "" for it in shown},
        filter={"actor": actor, "subject": subject},
        older=older,
    )


def _facts(image: Image) -> list[tuple[str, object]]:
    return [
        ("id", image.id),
        ("reason", image.reason),
        ("provider", f"{image.provider}, {image.provider_image_id or 'not there'}"),
        ("profile", image.profile),
        ("base", image.base),
        ("begun by", image.created_by),
        ("commit", image.provenance.get("commit")),
        ("package", image.provenance.get("deb")),
    ]

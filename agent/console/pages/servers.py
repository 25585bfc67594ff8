"""Servers: the list, one with what runs on it, and what it is told to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic_core import PydanticCustomError

from agent.console import page
from agent.console.ground import Here, Operator, Viewer
from agent.errors import SettingsError
from agent.model import wording
from agent.model.definition_field import to_seconds
from agent.model.server import OrderKind, Server
from agent.queue import operate
from agent.store import attempts, builds, servers

router = APIRouter(include_in_schema=False)
_SEE_OTHER = 303
_KINDS = (
    (OrderKind.DRAIN, "finish what runs, and take nothing new until it is resumed"),
    (OrderKind.RESUME, "take builds again"),
    (OrderKind.QUARANTINE, "take nothing until it is resumed, over restarts too"),
    (OrderKind.TERMINATE, "finish what runs, and end; a machine of the fleet ends with it"),
)


@router.get("/servers")
def list_(request: Request, ground: Here, _person: Viewer, all: Annotated[bool, Query()] = False) -> Response:
    """Show the servers that are up, or all there ever were."""
    found = servers.list_servers(ground.store)
    shown = [it for it in found if all or it.state not in servers.GONE]
    return page.render(
        request,
        "servers.html",
        title="Servers",
        servers=shown,
        left=len(found) - len(shown),
        load=_load,
    )


@router.get("/servers/{server_id}")
def show(request: Request, ground: Here, _person: Viewer, server_id: str) -> Response:
    """Show a server."""
    server = servers.get(ground.store, server_id)
    ids = [it.ref.build_id for it in attempts.running(ground.store) if it.server_id == server.id]
    return page.render(
        request,
        "server.html",
        title=server.name,
        server=server,
        rows=_facts(server),
        reasons=[str(it) for it in server.status.get("reasons", ())],
        builds=[builds.get(ground.store, it) for it in ids],
        kinds=_KINDS,
    )


@router.post("/servers/{server_id}/order")
def order(
    ground: Here,
    person: Operator,
    server_id: str,
    *,
    kind: Annotated[OrderKind, Form()],
    note: Annotated[str, Form(max_length=300)] = "",
    limit: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Give a server an order."""
    server = servers.get(ground.store, server_id)
    operate.order(
        ground.store,
        ground.carrier,
        server.id,
        kind,
        by=person.actor,
        note=note or None,
        limit=_read_limit(limit),
    )
    return RedirectResponse(f"/servers/{server.id}?done=ordered", _SEE_OTHER)


def _read_limit(text: str) -> timedelta | None:
    if not text.strip():
        return None
    try:
        return timedelta(seconds=to_seconds(text))
    except PydanticCustomError as error:
        raise SettingsError(f"limit: {error.message()}") from error


def _facts(server: Server) -> list[tuple[str, object]]:
    drain = server.status.get("drain") or {}
    eta = drain.get("eta_s")
    asked = f"{server.wanted} by {server.wanted_by}" if server.wanted_by else None
    return [
        ("id", server.id),
        ("reason", server.state_reason),
        ("asked", f"{asked}: {server.wanted_note}" if asked and server.wanted_note else asked),
        ("to go", f"about {wording.duration(eta)}" if isinstance(eta, int | float) else None),
        ("image", server.image_version or server.image_id),
        ("agent", server.agent_version),
        ("slots", f"{server.status.get('busy', '-')} of {server.slots} in use"),
        ("load", _load(server)),
        ("queues", ", ".join(server.queues)),
        ("tags", ", ".join(f"{name}={value}" for name, value in server.tags.items())),
    ]


def _load(server: Server) -> str:
    load = server.status.get("load")
    return f"{load:.2f}" if isinstance(load, int | float) else "-"

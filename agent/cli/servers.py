"""`build-agent servers`: every server and how it feels, as a table."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from agent.cli import argument
from agent.cli.context import Context
from agent.model.server import ServerState

if TYPE_CHECKING:
    from datetime import datetime

    from agent.model.server import Server

# Gone in good order: of interest only to whoever asks.
_LEFT = frozenset({ServerState.STOPPED, ServerState.TERMINATED})


@click.command()
@click.option(
    "--all", "-a", "with_all", is_flag=True, help="Those that have stopped or were terminated, too."
)
@argument.as_json
@click.pass_obj
def servers(obj: Context, *, with_all: bool, as_json: bool) -> None:
    """List servers."""
    from agent import clock
    from agent.cli import record
    from agent.store import servers as store_servers

    found = store_servers.list_servers(obj.store)
    shown = [it for it in found if with_all or it.state not in _LEFT]
    if as_json:
        record.echo(shown)
        return
    if shown:
        # Beats are stamped by the database's clock, so their age is told by it, too.
        _print(shown, clock.utc_now() + timedelta(seconds=obj.store.clock_skew_s()))
    if not found:
        click.echo("no server has registered yet: build-agent run", err=True)
    elif left := len(found) - len(shown):
        click.echo(f"{left} more {'has' if left == 1 else 'have'} left; --all shows them, too", err=True)


def _print(found: list[Server], now: datetime) -> None:
    from agent.cli import table, wording

    columns = [
        table.Column("name"),
        table.Column("state", is_state=True),
        table.Column("image"),
        table.Column("slots", is_number=True),
        table.Column("load", is_number=True),
        table.Column("beat", is_number=True),
        table.Column("reason", is_elastic=True),
    ]
    rows = [
        [
            it.name,
            it.state.replace("_", " "),
            it.image_version or it.image_id or "-",
            _slots(it),
            _load(it),
            wording.ago(it.beat_at, now),
            it.state_reason or "-",
        ]
        for it in found
    ]
    table.show(columns, rows)


def _slots(server: Server) -> str:
    busy = server.status.get("busy")
    return f"{'-' if busy is None else busy}/{server.slots}"


def _load(server: Server) -> str:
    load = server.status.get("load")
    return f"{load:.2f}" if isinstance(load, int | float) else "-"

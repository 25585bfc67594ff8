"""`build-agent servers`: every server and how it feels, as a table; and starting some by hand."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from agent.cli import argument
from agent.cli.context import Context
from agent.model.server import ServerState

if TYPE_CHECKING:
    from datetime import datetime

    from agent.model.fleet import FleetMachine
    from agent.model.server import Server

# Gone in good order: of interest only to whoever asks.
_LEFT = frozenset({ServerState.STOPPED, ServerState.TERMINATED})


@click.group(invoke_without_command=True)
@click.option(
    "--all", "-a", "with_all", is_flag=True, help="Those that have stopped or were terminated, too."
)
@argument.as_json
@click.pass_context
def servers(context: click.Context, *, with_all: bool, as_json: bool) -> None:
    """List servers, or start some."""
    if context.invoked_subcommand is None:
        _list(context.obj, with_all=with_all, as_json=as_json)


@servers.command()
@click.option("--pool", metavar="NAME", help="Of which pool; needed where there are several.")
@click.option(
    "--image",
    metavar="IMAGE",
    shell_complete=argument.complete_image,
    help="Any verified image; the pool's own without it.",
)
@click.option("--count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many.")
@click.option("--why", metavar="TEXT", help="Why, for the record.")
@click.option("--wait", is_flag=True, help="Wait until they take builds; exit 1 if one does not.")
@argument.as_json
@click.pass_obj
def start(
    obj: Context,
    *,
    pool: str | None,
    image: str | None,
    count: int,
    why: str | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Start servers from an image. The scaling rule counts them, and drains them when they are too many."""
    from agent.cli import fleet_show, fleet_wait, record
    from agent.fleet import report
    from agent.fleet.start import start as start_servers
    from agent.model.fleet import MachineState
    from agent.store import machines

    ids = start_servers(
        obj.store,
        pool_name=pool,
        image_id=obj.find_image(image).id if image else None,
        count=count,
        by=obj.actor,
        why=why,
    )
    if not as_json:
        for it in ids:
            click.echo(f"server {machines.get(obj.store, it).name} is to start")
        fleet_show.note_without_leader(report.look(obj.store))
    found = (
        fleet_wait.wait_machines(obj.store, ids, is_quiet=as_json)
        if wait
        else [machines.get(obj.store, it) for it in ids]
    )
    if as_json:
        record.echo(found)
    return int(wait and any(it.state is not MachineState.SERVING for it in found))


def _list(obj: Context, *, with_all: bool, as_json: bool) -> None:
    from agent import clock
    from agent.cli import record
    from agent.model.fleet import MachineState
    from agent.store import machines
    from agent.store import servers as store_servers

    found = store_servers.list_servers(obj.store)
    shown = [it for it in found if with_all or it.state not in _LEFT]
    # Machines that no server has come of yet, or never will.
    known = {it.name for it in found} | {it.id for it in found}
    coming = [
        it
        for it in machines.list_machines(obj.store)
        if it.state in (MachineState.WANTED, MachineState.BOOTING, MachineState.TERMINATING)
        and not known & {it.name, it.provider_machine_id, it.server_id}
    ]
    if as_json:
        record.echo(shown)
        return
    if shown or coming:
        # Beats are stamped by the database's clock, so their age is told by it, too.
        now = clock.utc_now() + timedelta(seconds=obj.store.clock_skew_s())
        _print(shown, coming, now, _versions(obj) if coming else {})
    elif not found:
        click.echo("no server has registered yet: build-agent run", err=True)
    if left := len(found) - len(shown):
        click.echo(f"{left} more {'has' if left == 1 else 'have'} left; --all shows them, too", err=True)


def _versions(obj: Context) -> dict[str, str]:
    from agent.store import images

    return {it.id: it.version for it in images.list_images(obj.store)}


def _print(found: list[Server], coming: list[FleetMachine], now: datetime, versions: dict[str, str]) -> None:
    from agent.cli import table
    from agent.model import wording

    columns = [
        table.Column("name"),
        table.Column("state", is_state=True),
        table.Column("image"),
        table.Column("slots", is_number=True),
        table.Column("load", is_number=True),
        table.Column("beat", is_number=True),
        table.Column("age", is_number=True),
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
            wording.duration((now - it.registered_at).total_seconds()),
            it.state_reason or "-",
        ]
        for it in found
    ]
    rows += [
        [
            it.name,
            "starting" if it.fault is None else "failed",
            versions.get(it.image_id or "", it.image_id or "-"),
            "-",
            "-",
            "-",
            wording.duration((now - it.created_at).total_seconds()),
            it.fault or it.reason or "-",
        ]
        for it in coming
    ]
    table.show(columns, rows)


def _slots(server: Server) -> str:
    busy = server.status.get("busy")
    return f"{'-' if busy is None else busy}/{server.slots}"


def _load(server: Server) -> str:
    load = server.status.get("load")
    return f"{load:.2f}" if isinstance(load, int | float) else "-"

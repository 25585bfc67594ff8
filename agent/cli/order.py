"""`build-agent drain`, `resume`, `quarantine`, `terminate`: what operators say to one server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from agent.cli import argument
from agent.cli.context import Context
from agent.model.server import OrderKind, Server, ServerState

if TYPE_CHECKING:
    from agent.cli.screen import Screen
    from agent.model.server import Order
    from agent.store.engine import Store

_GONE = frozenset({ServerState.LOST, ServerState.STOPPED, ServerState.TERMINATED, ServerState.FAILED})
_note = click.option("--note", metavar="TEXT", help="Why, for the record and the server's list of reasons.")
_wait = click.option("--wait", is_flag=True, help="Wait until it is so, and show how far it is.")


def _read_span(_context: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta | None:
    """Read a duration such as `10min`, as definitions write it."""
    if value is None:
        return None
    from pydantic_core import PydanticCustomError

    from agent.model.definition_field import to_seconds

    try:
        return timedelta(seconds=to_seconds(value))
    except PydanticCustomError as error:
        raise click.BadParameter(error.message()) from None


_deadline = click.option(
    "--deadline",
    callback=_read_span,
    metavar="10min",
    help="After so long, give back what still runs: it runs again elsewhere.",
)


@click.command()
@argument.server
@_note
@_deadline
@_wait
@argument.as_json
@click.pass_obj
def drain(
    obj: Context, *, server: str, note: str | None, deadline: timedelta | None, wait: bool, as_json: bool
) -> int:
    """Let a server finish what runs and take nothing new."""
    return _give(obj, OrderKind.DRAIN, server, note=note, deadline=deadline, wait=wait, as_json=as_json)


@click.command()
@argument.server
@_note
@_wait
@argument.as_json
@click.pass_obj
def resume(obj: Context, *, server: str, note: str | None, wait: bool, as_json: bool) -> int:
    """Let a server take builds again."""
    return _give(obj, OrderKind.RESUME, server, note=note, wait=wait, as_json=as_json)


@click.command()
@argument.server
@_note
@click.option(
    "--for", "deadline", metavar="DURATION", callback=_read_span, help="It ends by itself after this, as 2h."
)
@_wait
@argument.as_json
@click.pass_obj
def quarantine(
    obj: Context, *, server: str, note: str | None, deadline: timedelta | None, wait: bool, as_json: bool
) -> int:
    """Keep a server from taking builds until it is resumed, over restarts too.

    What runs there goes on.
    """
    return _give(obj, OrderKind.QUARANTINE, server, note=note, deadline=deadline, wait=wait, as_json=as_json)


@click.command()
@argument.server
@_note
@_deadline
@_wait
@argument.as_json
@click.pass_obj
def terminate(
    obj: Context, *, server: str, note: str | None, deadline: timedelta | None, wait: bool, as_json: bool
) -> int:
    """Drain a server and end its agent; a machine of the fleet ends with it, one that has not come up at once."""
    if _has_ended_machine(obj, server, note=note, as_json=as_json):
        return 0
    return _give(obj, OrderKind.TERMINATE, server, note=note, deadline=deadline, wait=wait, as_json=as_json)


def _has_ended_machine(obj: Context, word: str, *, note: str | None, as_json: bool) -> bool:
    """End a machine that no server has come of; whether `word` names one."""
    from agent.cli import record
    from agent.errors import NotFound
    from agent.fleet import start
    from agent.store import machines

    try:
        obj.find_server(word)
    except NotFound:
        try:
            machine = machines.get(obj.store, word)
        except NotFound:
            return False
        start.end(obj.store, machine, by=obj.actor, why=note or "no reason given")
        if as_json:
            record.echo(machines.get(obj.store, machine.id))
        else:
            click.echo(f"machine {machine.name} is to end")
        return True
    return False


def _give(
    obj: Context,
    kind: OrderKind,
    word: str,
    *,
    note: str | None,
    deadline: timedelta | None = None,
    wait: bool,
    as_json: bool,
) -> int:
    from agent.cli import record
    from agent.cli.screen import Screen
    from agent.errors import StateConflict
    from agent.queue import operate
    from agent.store import servers

    server = obj.find_server(word)
    if wait and server.state in _GONE:
        raise StateConflict(
            f"server {server.name} is {server.state}: nothing to wait for; without --wait the order stands for "
            "its next start"
        )
    done = operate.order(obj.store, obj.carrier, server.id, kind, by=obj.actor, note=note, limit=deadline)
    order = done.order
    screen = Screen(is_live=not as_json)
    stopped = f"build-agent: stopped waiting; the order stands. To undo it: build-agent resume {server.name}"
    # Ctrl-C is heard before anything is told: whoever reads it may press at once.
    with screen.watching(stopped) if wait else nullcontext():
        if not as_json:
            click.echo(_told(kind, server))
            if server.state in _GONE:
                screen.note(f"build-agent: it is {server.state}: the order stands for its next start")
            elif not done.is_told:
                screen.note("build-agent: Redis can't be reached: it hears of it with its next heartbeat")
        if wait:
            _wait_for(obj.store, screen, order, server, is_quiet=as_json)
    if as_json:
        record.echo({"order": order, "server": servers.get(obj.store, server.id)})
    return 0


def _told(kind: OrderKind, server: Server) -> str:
    words = {
        OrderKind.DRAIN: "is to finish what runs and take nothing new",
        OrderKind.RESUME: "is to take builds again",
        OrderKind.QUARANTINE: "is in quarantine until somebody resumes it",
        OrderKind.TERMINATE: "is to finish what runs and end",
    }
    return f"server {server.name} {words[kind]}"


def _wait_for(store: Store, screen: Screen, order: Order, server: Server, *, is_quiet: bool) -> None:
    """Wait until an order is carried out, and show how far it is.

    Raises: StateConflict when another order came in between, or the server went away without carrying it out.
    """
    from agent.cli import watch
    from agent.errors import StateConflict
    from agent.store import orders, servers

    rhythm = watch.Watch(screen)
    told = ""

    def look() -> tuple[Server, Order | None]:
        with store.read() as connection:
            still_open = {it.id: it for it in orders.read_open(connection, server.id)}
        return servers.get(store, server.id), still_open.get(order.id)

    while True:
        now, still_open = rhythm.ask(look)
        if now.wanted is not order.kind or now.wanted_by != order.by:
            raise StateConflict(
                f"server {now.name}: {now.wanted} asked by {now.wanted_by or 'nobody'} came after this "
                f"{order.kind}"
            )
        if _has_come(order.kind, now, is_done=still_open is None):
            if not is_quiet:
                _finish(screen, now)
            return
        if now.state in _GONE and order.kind is not OrderKind.TERMINATE:
            raise StateConflict(f"server {now.name} is {now.state}: {now.state_reason or 'it has left'}")
        if still_open is not None and still_open.taken_at is None:
            screen.show_status(f"{now.name}: has not heard of it yet")
        elif screen.is_terminal:
            screen.show_status(f"{now.name}: {_progress(now)}")
        elif not is_quiet and (plain := _progress(now, has_times=False)) != told:
            # In a pipe a line for each change, and none for time that goes by.
            told = plain
            screen.write(f"{now.name}: {_progress(now)}\n")
        rhythm.pause(has_news=False, limit_s=watch.IDLE_S)


def _has_come(kind: OrderKind, server: Server, *, is_done: bool) -> bool:
    """Whether the server is as the order wants it."""
    if kind is OrderKind.TERMINATE:
        return server.state in _GONE
    wanted: dict[OrderKind, Callable[[ServerState], bool]] = {
        OrderKind.DRAIN: lambda state: state is ServerState.DRAINED,
        OrderKind.QUARANTINE: lambda state: state is ServerState.QUARANTINED,
        # It takes builds, or says what keeps it from that, which is no longer the order.
        OrderKind.RESUME: lambda state: state in (ServerState.ACCEPTING, ServerState.NOT_READY),
    }
    return is_done and wanted[kind](server.state)


def _finish(screen: Screen, server: Server) -> None:
    screen.hide_status()
    reason = f": {server.state_reason}" if server.state_reason else ""
    screen.write(f"server {server.name} is {server.state.replace('_', ' ')}{reason}\n")


def _progress(server: Server, *, has_times: bool = True) -> str:
    """Return how far a server is, by its last heartbeat: what runs there, how long yet, and until when."""
    from agent.model import wording

    running = [it for it in server.status.get("slots", ()) if it.get("build")]
    parts = [server.state.replace("_", " ")]
    if running:
        names = ", ".join(_running(it, has_times=has_times) for it in running)
        parts.append(f"{wording.count(len(running), 'build')} to finish: {names}")
    drain = server.status.get("drain") or {}
    if has_times and drain.get("eta_s") is not None:
        parts.append(f"about {wording.duration(drain['eta_s'])} to go")
    if has_times and drain.get("deadline_s") is not None:
        parts.append(f"given back in {wording.duration(drain['deadline_s'])}")
    return "; ".join(parts)


def _running(slot: dict[str, Any], *, has_times: bool) -> str:
    from agent.model import wording

    name = f"{wording.short_id(str(slot['build']))} {slot.get('project', '')}".rstrip()
    return f"{name} ({wording.duration(slot.get('running_s', 0))})" if has_times else name

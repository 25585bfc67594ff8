"""`build-agent cancel`: end a build that nobody wants any more."""

from __future__ import annotations

import click

from agent.cli import argument
from agent.cli.context import Context


@click.command()
@argument.build
@click.option("--why", metavar="TEXT", default="", help="Why, for the record.")
@argument.as_json
@click.pass_obj
def cancel(obj: Context, *, build: str, why: str, as_json: bool) -> None:
    """Cancel a build that waits or runs.

    One that waits ends at once. The steps of one that runs get SIGTERM, and SIGKILL when their grace is over.
    """
    from agent.cli import record
    from agent.cli.screen import is_terminal
    from agent.model import wording
    from agent.queue import operate

    found = obj.find_build(build)
    done = operate.cancel(obj.store, obj.carrier, found.id, by=obj.actor, why=why)
    if as_json:
        record.echo({"id": found.id, "result": done.result})
        return
    short = wording.short_id(found.id)
    if done.result == "cancelled":
        click.echo(f"build {short} is cancelled: it had not begun")
        return
    late = (
        "" if done.is_told else "; Redis can't be reached, so its server hears of it with its next heartbeat"
    )
    click.echo(f"build {short} is being cancelled{late}")
    if is_terminal():
        click.echo(f"see it end: build-agent logs --follow --tail 20 {short}", err=True)

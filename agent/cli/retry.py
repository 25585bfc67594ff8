"""`build-agent retry`: run an ended build again."""

from __future__ import annotations

import click

from agent.cli import argument
from agent.cli.context import Context


@click.command()
@argument.build
@click.option("--force", is_flag=True, help="Even if it has passed.")
@click.option(
    "-f", "--follow", is_flag=True, help="Print its output until it has ended; exit 1 unless it passes."
)
@argument.as_json
@click.pass_obj
def retry(obj: Context, *, build: str, force: bool, follow: bool, as_json: bool) -> int:
    """Queue an ended build again, as its next attempt.

    The same commit with the same definition. A deploy that was lost runs again, too: look first how far it came.
    """
    from agent.cli import record
    from agent.cli.submit import SWEPT
    from agent.model import wording
    from agent.queue import operate

    found = obj.find_build(build)
    done = operate.retry(
        obj.store,
        obj.carrier,
        found,
        by=obj.actor,
        max_attempts=obj.settings.max_attempts,
        force=force,
    )
    again, is_queued = done.build, done.is_queued
    if as_json:
        document = record.plain(again) | {"is_queued": is_queued}
        click.echo(record.line(document), nl=False) if follow else record.echo(document)
    else:
        short = wording.short_id(again.id)
        click.echo(f"build {short} is queued again, as attempt {again.attempt + 1}, in {again.queue}")
    if not is_queued:
        click.echo(f"build-agent: {SWEPT}", err=True)
    if not follow:
        return 0
    from agent.cli.logs import follow_to_end

    return follow_to_end(obj.store, again.id, first=again.attempt + 1, as_json=as_json)

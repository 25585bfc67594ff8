"""`build-agent builds`: the newest builds, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli import argument
from agent.cli.context import Context
from agent.model.build import BuildState
from agent.model.outcome import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from agent.model.build import Build


@click.command()
@click.option(
    "--state", type=click.Choice([it.value for it in BuildState]), help="Only builds in this state."
)
@click.option("--outcome", type=click.Choice([it.value for it in Outcome]), help="Only builds that ended so.")
@click.option("--queue", metavar="NAME", help="Only builds of this queue.")
@click.option("--project", metavar="NAME", help="Only builds of this project.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="So many at most."
)
@argument.as_json
@click.pass_obj
def builds(
    obj: Context,
    *,
    state: str | None,
    outcome: str | None,
    queue: str | None,
    project: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List builds, the newest first."""
    from agent import clock
    from agent.cli import record
    from agent.store import builds as store_builds

    found = store_builds.list_builds(
        obj.store,
        state=BuildState(state) if state else None,
        outcome=Outcome(outcome) if outcome else None,
        queue=queue,
        project=project,
        limit=limit,
    )
    if as_json:
        record.echo(found)
        return
    if not found:
        is_filtered = any((state, outcome, queue, project))
        click.echo(
            "no build fits" if is_filtered else "there are no builds yet: build-agent submit", err=True
        )
        return
    _print(found, clock.utc_now())


def _print(found: list[Build], now: datetime) -> None:
    from agent.cli import table
    from agent.cli.screen import is_terminal
    from agent.model import wording

    # In a pipe whole ids: they are for programs, and for later.
    ids = [it.id for it in found]
    shown = wording.short_ids(ids) if is_terminal() else {it: it for it in ids}
    columns = [
        table.Column("build"),
        table.Column("state", is_state=True),
        table.Column("project"),
        table.Column("branch"),
        table.Column("commit"),
        table.Column("queue"),
        table.Column("created"),
        table.Column("ran", is_number=True),
        table.Column("by", is_elastic=True),
    ]
    rows = [
        [
            shown[it.id],
            wording.state(it),
            it.project,
            it.branch or "-",
            (it.commit or "-")[:8],
            it.queue,
            wording.ago(it.created_at, now),
            _ran(it, now),
            it.created_by or "-",
        ]
        for it in found
    ]
    table.show(columns, rows)


def _ran(build: Build, now: datetime) -> str:
    from agent.model import wording

    if build.started_at is None:
        return "-"
    return wording.duration(((build.ended_at or now) - build.started_at).total_seconds())

"""`build-agent db`: bring the database's schema up to date, check it, tell its version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from agent.cli import argument

if TYPE_CHECKING:
    from agent.config_load import Loaded
    from agent.store.engine import Store
    from agent.store.schema import Standing


class Context(Protocol):
    """What the commands here need of click's context object."""

    def load(self) -> Loaded:
        """Return the settings as file, environment and command line give them."""


@click.group()
def db() -> None:
    """Create, upgrade and check the database."""


@db.command()
@click.option(
    "--lock-out-older",
    is_flag=True,
    help="Upgrade even if agents of the schema that is there now can't work with the new one.",
)
@argument.as_json
@click.pass_obj
def upgrade(obj: Context, lock_out_older: bool, as_json: bool) -> None:
    """Run the migrations that the database lacks; safe to run on several machines at once."""
    from agent.cli import record
    from agent.store import migrate, schema

    with _store(obj) as store:
        before = schema.current(store)
        migrate.upgrade(store, may_lock_out=lock_out_older)
        standing = schema.check(store)
    if as_json:
        record.echo(
            {"before": before, "after": standing.revision, "compatible_from": standing.compatible_from}
        )
    elif standing.is_newer:
        click.echo(_newer(standing))
    elif before == standing.revision:
        click.echo(f"the schema is up to date: {standing.revision}")
    else:
        click.echo(f"the schema went from {before or 'nothing'} to {standing.revision}")


@db.command()
@argument.as_json
@click.pass_obj
def check(obj: Context, as_json: bool) -> None:
    """Say whether this version works with the database's schema."""
    from agent.cli import record
    from agent.store import schema

    with _store(obj) as store:
        standing = schema.check(store)
    if as_json:
        record.echo(
            {
                "current": standing.revision,
                "needed": schema.HEAD,
                "compatible_from": standing.compatible_from,
            }
        )
    elif standing.is_newer:
        click.echo(_newer(standing))
    else:
        click.echo(f"the schema is the one this version needs: {standing.revision}")


@db.command()
@argument.as_json
@click.pass_obj
def current(obj: Context, as_json: bool) -> None:
    """Print the version of the database's schema, `none` where there is none yet."""
    from agent.cli import record
    from agent.store import schema

    with _store(obj) as store:
        revision = schema.current(store)
    if as_json:
        record.echo({"current": revision, "needed": schema.HEAD})
    else:
        click.echo(revision or "none")


def _newer(standing: Standing) -> str:
    return (
        f"the schema is a later version's, {standing.revision}, and works with agents from schema "
        f"{standing.compatible_from} on, this one among them"
    )


@contextmanager
def _store(obj: Context) -> Iterator[Store]:
    from agent.store.engine import Store

    store = Store(obj.load().settings.database_url)
    try:
        yield store
    finally:
        store.dispose()

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


class Context(Protocol):
    """What the commands here need of click's context object."""

    def load(self) -> Loaded:
        """Return the settings as file, environment and command line give them."""


@click.group()
def db() -> None:
    """Create, upgrade and check the database."""


@db.command()
@argument.as_json
@click.pass_obj
def upgrade(obj: Context, as_json: bool) -> None:
    """Run the migrations that the database lacks; safe to run on several machines at once."""
    from agent.cli import record
    from agent.store import migrate, schema

    with _store(obj) as store:
        before = schema.current(store)
        migrate.upgrade(store)
        after = schema.current(store)
    if as_json:
        record.echo({"before": before, "after": after})
    elif before == after:
        click.echo(f"the schema is up to date: {after}")
    else:
        click.echo(f"the schema went from {before or 'nothing'} to {after}")


@db.command()
@argument.as_json
@click.pass_obj
def check(obj: Context, as_json: bool) -> None:
    """Say whether the database's schema is the one this version needs."""
    from agent.cli import record
    from agent.store import schema

    with _store(obj) as store:
        schema.check(store)
    if as_json:
        record.echo({"current": schema.HEAD, "needed": schema.HEAD})
    else:
        click.echo(f"the schema is the one this version needs: {schema.HEAD}")


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


@contextmanager
def _store(obj: Context) -> Iterator[Store]:
    from agent.store.engine import Store

    store = Store(obj.load().settings.database_url)
    try:
        yield store
    finally:
        store.dispose()
